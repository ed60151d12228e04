"""Durable workflows: code that goes on where it was, whatever is killed. The one module with DBOS.

A workflow is an async function that does nothing but call `Run.step`, decide by what the steps
answered, and return. A step does the effect; its answer is on disk before the next step begins.
After a crash the function runs again from its top: steps that have answered give the recorded
answer without running, the one that was under way runs again. So

- a step must be repeatable: it may run, have its effect, and die before its answer is recorded;
- what a workflow decides may depend on its argument and on steps' answers only, never on a clock,
  on randomness or on a store that it read outside a step;
- arguments and answers are JSON (tuples come back as lists), an error is an `IronError`;
- when the sequence of steps of a function changes, register it under a new name and keep the old
  one until no run of it is left: a run that finds other steps than it recorded is stopped.

**Threads.** DBOS lives on threads and on an event loop of its own, and nothing of it touches the
service's loop. Three things that DBOS 3 does make this the arrangement that works: `launch` and
`destroy` block (migrations, joining threads), its async API replaces the running loop's default
executor by its own, which it then shuts down, so that every later `to_thread` of the service fails,
and workflows on an adopted loop are neither cancelled nor awaited when it stops. Launched from a
thread without a loop, it starts one itself: there the workflow functions run, which only decide.
The steps' bodies run on the service's loop, where the service's clients and database live, and
cross over by a future. Stopping cancels workflows where they are; nothing is recorded for them, so
the next start goes on with them.

**Many processes.** With `lease_seconds` several processes serve one database, each with a name of
its own and a lease (`runtime.executors`). The runs of one whose lease has ended go back to their
queues, where the others find them. If it lives after all, it cancels what it was doing as soon as
it sees that, and DBOS refuses what it would still record; what its steps did outside is theirs to
fence.

**Quiet.** No admin server (DBOS 3 has none), no conductor, no telemetry, no console; what DBOS
warns of goes to our log. Its application version is pinned, since by default it is a hash of source
code, and a release would then strand what the release before it had begun.

**Cost** (SQLite, 2 cores): importing takes 0.4 s and 29 MiB, most of it SQLAlchemy's ORM and
psycopg, which DBOS imports whether it uses them or not. So this module imports DBOS when the engine
starts, and only services that use workflows pay.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeVar, cast

import structlog

from ironworks.model.errors import (
    FailedPrecondition,
    Internal,
    InvalidRequest,
    IronError,
    NotFound,
)
from ironworks.runtime.executors import Executors, Heartbeat
from ironworks.runtime.identity.caller import current_request_id, request_id_var
from ironworks.runtime.records import Json, JsonRecords

if TYPE_CHECKING:
    from dbos import DBOSConfig, WorkflowStatus

WorkflowFunction: TypeAlias = "Callable[[Run, Json], Awaitable[Json]]"
_T = TypeVar("_T")

_log = structlog.stdlib.get_logger()
_APPLICATION_VERSION = "1"
_REQUEST_ID, _ARGUMENT = "request_id", "argument"
_QUEUE_THREAD = "queue-worker-"
"""How DBOS names the threads that take runs from queues."""
_JOIN_SECONDS = 10.0
MAX_RECOVERIES = 100
"""Crashes that one run survives; after that it is given up, since it is what kills the process."""


class WorkflowState(Enum):
    """Where a run stands."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    GIVEN_UP = "given_up"


_STATES = {
    "ENQUEUED": WorkflowState.QUEUED,
    "DELAYED": WorkflowState.QUEUED,
    "PENDING": WorkflowState.RUNNING,
    "SUCCESS": WorkflowState.SUCCEEDED,
    "ERROR": WorkflowState.FAILED,
    "CANCELLED": WorkflowState.CANCELLED,
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": WorkflowState.GIVEN_UP,
}
ENDED = frozenset(
    {
        WorkflowState.SUCCEEDED,
        WorkflowState.FAILED,
        WorkflowState.CANCELLED,
        WorkflowState.GIVEN_UP,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What is known of a run: its state, and its answer or its error once it has ended."""

    workflow_id: str
    name: str
    state: WorkflowState
    answer: Json = None
    error: IronError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A queue and its bounds.

    Attributes:
        name: `[a-z0-9-]{1,63}`.
        total: Runs at the same time, over all processes on the same database; 0: any number.
        per_partition: Runs at the same time of one partition, for example of one tenant; 0: any
            number, and runs are begun in the order they were submitted.
        per_process: Runs at the same time in one process; 0: any number.
    """

    name: str
    total: int = 0
    per_partition: int = 0
    per_process: int = 0


class _ForwardLog(logging.Handler):
    """Hands on what DBOS logs, but for runs that ended in our errors: their outcome says it."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        expected = record.exc_info and isinstance(record.exc_info[1], IronError)
        # Said of every run that is under way when the engine stops; the next start goes on with it.
        if expected or message.startswith("Asyncio task cancelled"):
            return
        _log.log(record.levelno, "workflow_engine", detail=message)


class Run:
    """One run of a workflow: what its function gets to do effects with."""

    def __init__(self, workflow_id: str, request_id: str, engine: Workflows) -> None:
        self.workflow_id = workflow_id
        self.request_id = request_id
        """Of the request that submitted it; its steps' calls and log lines carry it on."""
        self._engine = engine

    async def step(self, name: str, effect: Callable[[], Awaitable[_T]]) -> _T:
        """Do an effect once, as far as that can be had: recorded answers are not done again.

        Args:
            name: Names the step in the record; the sequence of names is part of the workflow.
            effect: Runs on the service's loop. What it returns must be JSON.

        Raises:
            IronError: what the effect raised, now or in an earlier life. Anything else that it
                raises becomes Internal, in both lives alike, and is logged.
        """
        return await self._engine.run_step(self, name, effect)


class Workflows:
    """The workflow engine of one service; a process can have one at a time."""

    _running: ClassVar[Workflows | None] = None

    def __init__(
        self,
        *,
        name: str,
        database_url: str,
        queues: Sequence[Queue],
        executor_id: str = "local",
        poll_seconds: float = 0.2,
        lease_seconds: float = 0,
    ) -> None:
        """Nothing happens before `start`.

        Args:
            name: The service; also names the schema in PostgreSQL.
            database_url: `sqlite:////absolute/file` or `postgresql://…`. The file belongs to DBOS
                alone: not the service's own database.
            queues: All queues of the service.
            executor_id: Names this process in the database, the same in its next life: recovery
                takes up what it had begun. `local` where the database is a file.
            poll_seconds: How often queues look for work; 0.2 costs 1.7% of a core, 0.1 costs 3.4%.
            lease_seconds: After this long without a sign of life a process is taken for dead, and
                others take over its runs; 0: no other process uses the database.
        """
        self._name = name
        self._url = database_url
        self._queues = tuple(queues)
        self._executor_id = executor_id
        self._poll_seconds = poll_seconds
        self._lease_seconds = lease_seconds
        self._heartbeat: Heartbeat | None = None
        self._functions: dict[str, WorkflowFunction] = {}
        self._wrapped: dict[str, Callable[[dict[str, Json]], Any]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._bodies: set[asyncio.Task[Any]] = set()
        self._stop_queues: list[threading.Event] = []

    def register(self, name: str, function: WorkflowFunction) -> None:
        """Make `function` a workflow. All must be registered before `start`, which recovers runs.

        Raises:
            FailedPrecondition: the engine has started, or the name is taken.
        """
        if self._loop is not None or name in self._functions:
            raise FailedPrecondition(f"The workflow {name} cannot be registered now.")
        self._functions[name] = function

    async def start(self) -> None:
        """Open the database, take up what an earlier life left, begin to serve the queues.

        Raises:
            FailedPrecondition: an engine runs in this process already.
        """
        if Workflows._running is not None:
            raise FailedPrecondition("This process has a workflow engine already.")
        Workflows._running = self
        self._loop = asyncio.get_running_loop()
        try:
            await asyncio.to_thread(self._launch)
        except BaseException:
            Workflows._running, self._loop = None, None
            raise

    async def stop(self) -> None:
        """Cancel runs where they are and close the database; the next start goes on with them."""
        if Workflows._running is not self:
            return
        await asyncio.to_thread(self._destroy)
        for body in tuple(self._bodies):
            body.cancel()
        await asyncio.gather(*self._bodies, return_exceptions=True)
        if self._heartbeat is not None:
            # Last: what was under way has been given up, and others may begin it again.
            await asyncio.to_thread(self._heartbeat.end)
            self._heartbeat = None
        Workflows._running, self._loop = None, None

    async def submit(
        self, name: str, workflow_id: str, argument: Json, *, queue: str, partition: str
    ) -> None:
        """Make sure that a run with this id exists. A second call with the id changes nothing.

        Args:
            name: A registered workflow.
            workflow_id: Chosen by the caller, for example the job's id.
            argument: What the function gets.
            queue: A queue of this engine.
            partition: Whose limit it counts against, for example the tenant's id; not empty.

        Raises:
            NotFound: there is no such workflow or queue.
            InvalidRequest: `partition` or `workflow_id` is empty.
        """
        if name not in self._wrapped or queue not in {known.name for known in self._queues}:
            raise NotFound(f"There is no workflow {name} or no queue {queue} in {self._name}.")
        if not partition or not workflow_id:
            raise InvalidRequest("A run needs an id and a partition.")
        await asyncio.to_thread(
            self._enqueue, name, workflow_id, argument, queue, partition, current_request_id()
        )

    async def cancel(self, workflow_id: str) -> None:
        """End a run: queued, it never starts; running, it ends before its next step.

        The step under way is not interrupted, and a cancelled run does nothing any more: a workflow
        that has to undo things is asked to stop by its own means instead. An unknown or ended run
        stays as it is.
        """
        from dbos import DBOS  # noqa: PLC0415 - see "Cost"

        await asyncio.to_thread(DBOS.cancel_workflow, workflow_id)

    async def outcome(self, workflow_id: str) -> Outcome:
        """What is known of a run.

        Raises:
            NotFound: there is none with this id.
        """
        from dbos import DBOS  # noqa: PLC0415 - see "Cost"

        status = await asyncio.to_thread(DBOS.get_workflow_status, workflow_id)
        if status is None:
            raise NotFound(f"There is no run {workflow_id}.")
        return _outcome(status)

    async def unfinished(self) -> list[str]:
        """Ids of all runs that have not ended, oldest first."""
        from dbos import DBOS  # noqa: PLC0415 - see "Cost"

        def read() -> list[str]:
            found = DBOS.list_workflows(
                status=["ENQUEUED", "DELAYED", "PENDING"], load_input=False, load_output=False
            )
            return [status.workflow_id for status in found]

        return await asyncio.to_thread(read)

    async def forget(self, workflow_ids: Iterable[str]) -> None:
        """Remove the records of ended runs; their ids may then be used again."""
        from dbos import DBOS  # noqa: PLC0415 - see "Cost"

        await asyncio.to_thread(DBOS.delete_workflows, list(workflow_ids))

    async def run_step(self, run: Run, name: str, effect: Callable[[], Awaitable[_T]]) -> _T:
        """`Run.step`: on DBOS's loop, its body on the service's."""
        from dbos import DBOS, StepOptions  # noqa: PLC0415 - see "Cost"

        async def cross() -> _T:
            if self._loop is None:
                raise asyncio.CancelledError
            body = self._body(run, name, effect)
            future = asyncio.run_coroutine_threadsafe(body, self._loop)
            return await asyncio.wrap_future(future)

        return await DBOS.run_step_async(StepOptions(name=name), cross)

    async def _body(self, run: Run, name: str, effect: Callable[[], Awaitable[_T]]) -> _T:
        task = asyncio.current_task()
        if task is not None:
            self._bodies.add(task)
            task.add_done_callback(self._bodies.discard)
        # A task of its own: what is set here ends with it.
        request_id_var.set(run.request_id)
        with structlog.contextvars.bound_contextvars(
            workflow_id=run.workflow_id, step=name, request_id=run.request_id
        ):
            try:
                return await effect()
            except IronError:
                raise
            except Exception as error:
                _log.exception("workflow_step_failed")
                raise Internal(
                    f"The step {name} failed unexpectedly.", hint="See the service's log."
                ) from error

    def _enqueue(
        self,
        name: str,
        workflow_id: str,
        argument: Json,
        queue: str,
        partition: str,
        request_id: str,
    ) -> None:
        from dbos import DBOS, SetEnqueueOptions, SetWorkflowID  # noqa: PLC0415 - see "Cost"

        by_partition = any(one.name == queue and one.per_partition for one in self._queues)
        options = SetEnqueueOptions(queue_partition_key=partition if by_partition else None)
        with SetWorkflowID(workflow_id), options:
            record = {_REQUEST_ID: request_id, _ARGUMENT: argument}
            DBOS.enqueue_workflow(queue, self._wrapped[name], record)

    def _launch(self) -> None:
        from dbos import DBOS  # noqa: PLC0415 - see "Cost"

        engine_log = logging.getLogger("dbos")
        engine_log.handlers = [_ForwardLog()]
        engine_log.propagate = False
        if self._url.startswith("sqlite:"):
            _prepare_file(Path(self._url.removeprefix("sqlite:///")))
        self._stop_queues = DBOS(config=self._config()).background_thread_stop_events
        for name, function in self._functions.items():
            self._wrapped[name] = self._wrap(name, function)
        DBOS.launch()
        for queue in self._queues:
            per_partition = queue.per_partition
            DBOS.register_queue(
                queue.name,
                global_concurrency=queue.total or None,
                worker_concurrency=queue.per_process or None,
                partition_concurrency=min(per_partition, queue.total or per_partition) or None,
                polling_interval_sec=self._poll_seconds,
                on_conflict="always_update",
            )
        if self._lease_seconds:
            self._begin_lease()

    def _begin_lease(self) -> None:
        from dbos import DBOS  # noqa: PLC0415 - see "Cost"

        def recover(executor_id: str) -> int:
            # What DBOS's own conductor asks for when a process has died.
            return len(DBOS._recover_pending_workflows([executor_id]))  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]

        executors = Executors(self._url, self._schema, self._executor_id, self._lease_seconds)
        self._heartbeat = Heartbeat(
            executors, self._lease_seconds / 4, lost=self._drop_bodies, recover=recover
        )
        self._heartbeat.start()

    def _drop_bodies(self) -> None:
        """Give up every step under way here: others may have taken the runs over."""
        loop, bodies = self._loop, tuple(self._bodies)
        if loop is None:
            return
        for body in bodies:
            loop.call_soon_threadsafe(body.cancel)
        waiting = asyncio.run_coroutine_threadsafe(_ended(bodies), loop)
        waiting.result(_JOIN_SECONDS)

    @property
    def _schema(self) -> str:
        return f"workflows_{self._name}"

    def _config(self) -> DBOSConfig:
        from dbos import Serializer  # noqa: PLC0415 - see "Cost"

        class Records(JsonRecords, Serializer):
            pass

        return {
            "name": f"ironworks-{self._name}",
            "system_database_url": self._url,
            "dbos_system_schema": self._schema,
            "executor_id": self._executor_id,
            "application_version": _APPLICATION_VERSION,
            "serializer": Records(),
            "log_level": "WARNING",
            "enable_otlp": False,
            "sys_db_pool_size": 5,
            # As in `storage.sql`: what a frozen process has locked is free after that.
            "sys_db_idle_transaction_timeout_sec": 15.0,
            "max_executor_threads": 16,
        }

    def _wrap(self, name: str, function: WorkflowFunction) -> Callable[[dict[str, Json]], Any]:
        from dbos import DBOS  # noqa: PLC0415 - see "Cost"

        async def run(record: dict[str, Json]) -> Json:
            workflow_id = DBOS.workflow_id
            if workflow_id is None:
                raise Internal("A workflow ran without an id.")
            started = Run(workflow_id, str(record[_REQUEST_ID]), self)
            return await function(started, record[_ARGUMENT])

        run.__qualname__ = name
        return DBOS.workflow(name=name, max_recovery_attempts=MAX_RECOVERIES)(run)

    def _destroy(self) -> None:
        from dbos import DBOS  # noqa: PLC0415 - see "Cost"

        if self._heartbeat is not None:
            self._heartbeat.stop()
        # First, and to their end: DBOS closes its event loop before it waits for the threads of its
        # queues, and a run that one of them takes in between would be started on a closed loop.
        for event in self._stop_queues:
            event.set()
        for thread in threading.enumerate():
            if thread.name.startswith(_QUEUE_THREAD):
                thread.join(_JOIN_SECONDS)
        DBOS.destroy(destroy_registry=True)


async def _ended(tasks: Iterable[asyncio.Task[Any]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)


def _prepare_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with sqlite3.connect(path) as connection:
        # Kept in the file. With it a commit is one fsync, and readers do not wait for the writer.
        connection.execute("PRAGMA journal_mode=WAL")
    connection.close()
    path.chmod(0o600)


def _outcome(status: WorkflowStatus) -> Outcome:
    error: object = status.error
    if error is not None and not isinstance(error, IronError):
        error = Internal(f"A workflow failed: {error}")
    return Outcome(
        workflow_id=status.workflow_id,
        name=status.name,
        state=_STATES.get(status.status, WorkflowState.RUNNING),
        answer=cast("Json", status.output),
        error=error,
    )
