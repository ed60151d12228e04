"""Jobs: what everyone sees of them, and how the work on them is recorded."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

import structlog

from ironworks.gatewayd import decide
from ironworks.gatewayd.app.changes import Changes
from ironworks.gatewayd.store import jobs as store
from ironworks.gatewayd.types import (
    JOB_ENDED,
    Job,
    JobKind,
    JobResult,
    JobState,
    StageKind,
    StageState,
)
from ironworks.model.errors import Aborted, IronError, NotFound
from ironworks.model.pages import PageSpec
from ironworks.runtime.clock import Clock
from ironworks.runtime.identity import Caller, current_tenant_id
from ironworks.runtime.workflows import Workflows
from ironworks.storage.sql import Database

_log = structlog.stdlib.get_logger()
QUEUES = {JobKind.CREATE_DEPLOYMENT: "deployments", JobKind.DELETE_DEPLOYMENT: "removals"}
"""Deletions have a queue of their own: one waits for the job that it cancelled, and that job must
not have to wait for its place."""
PLATFORM_PARTITION = "platform"


def scope_of(caller: Caller) -> str | None:
    """The tenant whose things a caller sees; None: an operator sees all."""
    return None if caller.is_operator else current_tenant_id()


class JobApp:
    """Use cases of jobs."""

    def __init__(
        self, *, database: Database, workflows: Workflows, changes: Changes, clock: Clock
    ) -> None:
        self._database = database
        self._workflows = workflows
        self._changes = changes
        self._clock = clock

    # --- for callers ----------------------------------------------------------------------------

    async def get(self, caller: Caller, job_id: str) -> Job:
        """One job."""
        scope = scope_of(caller)
        return await self._get(job_id, scope)

    async def _get(self, job_id: str, scope: str | None) -> Job:
        job = await self._database.read(lambda c: store.find_job(c, job_id, scope))
        if job is None:
            raise NotFound("There is no such job.", hint="List jobs to see those that are kept.")
        return job

    async def list(
        self, caller: Caller, page: PageSpec, states: Sequence[JobState], resource_id: str
    ) -> list[Job]:
        """One more than a page."""
        scope = scope_of(caller)
        return await self._database.read(
            lambda c: store.list_jobs(
                c, page, tenant_id=scope, states=states, resource_id=resource_id
            )
        )

    async def watch(self, caller: Caller, job_id: str) -> AsyncIterator[Job]:
        """The job now, and after every change until it has ended."""
        scope = scope_of(caller)
        with self._changes.listen(job_id) as listener:
            sent = -1
            while True:
                job = await self._get(job_id, scope)
                if job.version > sent:
                    sent = job.version
                    yield job
                if job.state in JOB_ENDED:
                    return
                await listener.wait()

    async def cancel(self, caller: Caller, job_id: str) -> Job:
        """Ask a job to stop."""
        await self.get(caller, job_id)
        return await self.change(job_id, decide.cancel_job)

    # --- for the work itself --------------------------------------------------------------------

    async def submit(self, job: Job) -> None:
        """Make sure that the job's workflow exists. Repeatable."""
        await self._workflows.submit(
            job.kind.value,
            job.job_id,
            {"job_id": job.job_id},
            queue=QUEUES[job.kind],
            partition=job.tenant_id or PLATFORM_PARTITION,
        )

    async def submit_unfinished(self) -> list[Job]:
        """Submit every job that has not ended; answers them."""
        found = await self._database.read(store.unfinished_jobs)
        jobs = [job for job in found if job.kind in QUEUES]
        for job in jobs:
            await self.submit(job)
        return jobs

    async def load(self, job_id: str) -> Job:
        """The job, whoever owns it."""
        return await self._get(job_id, None)

    async def change(self, job_id: str, decision: Callable[[Job, int], Job]) -> Job:
        """Decide on the job as it is, write it, wake those who watch it."""
        now_ns = self._clock.now_ns()
        job = await self._database.write(
            lambda c: store.change_job(c, job_id, lambda old: decision(old, now_ns))
        )
        self._changes.notify(job_id)
        return job

    async def begin(self, job_id: str) -> Job:
        """Say that the job is at work."""
        return await self.change(job_id, decide.begin_job)

    async def stage(
        self,
        job_id: str,
        kind: StageKind,
        state: StageState,
        *,
        detail: str | None = None,
        total: int | None = None,
        done: int | None = None,
    ) -> Job:
        """Say where a stage stands."""
        return await self.change(
            job_id,
            lambda job, now_ns: decide.set_stage(
                job, kind, state, now_ns, detail=detail, total=total, done=done
            ),
        )

    async def complete(self, job_id: str, result: JobResult) -> Job:
        """Say that the job ended well."""
        return await self.change(
            job_id, lambda job, now_ns: decide.complete_job(job, result, now_ns)
        )

    async def fail(self, job_id: str, error: IronError, stage: StageKind | None) -> Job:
        """Say that the job ended badly, or was cancelled if that was asked for."""
        job = await self.change(
            job_id, lambda old, now_ns: decide.end_job_badly(old, error, stage, now_ns)
        )
        _log.warning("job_ended_badly", job_id=job_id, state=job.state.value, error=str(error))
        return job

    async def check_wanted(self, job_id: str) -> None:
        """Return if nobody has asked the job to stop.

        Raises:
            Aborted: somebody has.
        """
        job = await self.load(job_id)
        if job.state is JobState.CANCELLING:
            raise Aborted("The job was cancelled.")
