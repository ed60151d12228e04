"""The one supervisor: keeps a set of processes alive, ends them in order, bounds their logs.

Every child is told by the kernel when the supervisor dies (PR_SET_PDEATHSIG through setpriv(1)), so
a killed supervisor leaves no service behind. VMs are no children of it: they survive on purpose.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from ironworks.model.errors import Unavailable
from ironworks.model.units import MIB, NS_PER_SECOND
from ironworks.runtime.clock import Clock
from ironworks.runtime.reconcile import Reconciler, Report
from ironworks.runtime.settings import BadSettings
from ironworks.runtime.tasks import Tasks

_log = structlog.stdlib.get_logger()
FIRST_WAIT_SECONDS = 0.2
LONGEST_WAIT_SECONDS = 5.0
STABLE_SECONDS = 10.0
STOP_SECONDS = 10.0
READY_SECONDS = 90.0
MAX_LOG_BYTES = 64 * MIB
_POLL_SECONDS = 0.05
_TAIL_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A process to keep alive.

    Attributes:
        name: Names its log file, too.
        argv: Program and arguments.
        env: Added to the supervisor's environment.
        needs_file: The child is started only once this file exists.
        ready: Whether it is ready; answers False while it is not.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    needs_file: Path | None = None
    ready: Callable[[], Awaitable[bool]] | None = None


def restart_wait_seconds(failures: int) -> float:
    """How long to wait before start number `failures` + 1 of a child that keeps ending."""
    return min(FIRST_WAIT_SECONDS * 2 ** min(failures, 16), LONGEST_WAIT_SECONDS)


def bound_log(path: Path, max_bytes: int = MAX_LOG_BYTES) -> bool:
    """Move a log that has grown too long to `<name>.1`; its writer appends and goes on.

    Copied and truncated, since the writer holds the descriptor. Answers whether it was too long.
    """
    try:
        if path.stat().st_size <= max_bytes:
            return False
        shutil.copyfile(path, path.with_name(path.name + ".1"))
        os.truncate(path, 0)
    except FileNotFoundError:
        return False
    return True


class Supervisor:
    """Runs children until `stop`; one task owns each of them."""

    def __init__(self, children: Sequence[Child], *, log_dir: Path, clock: Clock) -> None:
        self._children = tuple(children)
        self._log_dir = log_dir
        self._clock = clock
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()
        self._restarts: dict[str, int] = {}
        self._refused = ""

    @property
    def pids(self) -> dict[str, int]:
        """Pid of each child that runs now."""
        return {name: process.pid for name, process in self._running.items()}

    async def run(self, stop: asyncio.Event, on_ready: Callable[[], None]) -> None:
        """Start all children, call `on_ready` when all are, keep them alive until `stop` is set.

        Raises:
            Unavailable: some are not ready in time; all are ended again.
            BadSettings: one says so of its own; all are ended again.
        """
        self._log_dir.mkdir(parents=True, exist_ok=True)
        logs = Reconciler("bound-logs", 10.0, self._bound_logs)
        async with Tasks() as tasks:
            keepers = [
                tasks.start(self._keep(child), name=f"keep {child.name}")
                for child in self._children
            ]
            tasks.start(logs.run(self._clock), name="bound-logs")
            try:
                await self._wait_ready(stop)
                if not stop.is_set():
                    on_ready()
                await stop.wait()
            finally:
                self._stopping.set()
                await asyncio.shield(self._stop_all())
                await asyncio.gather(*keepers, return_exceptions=True)

    async def _wait_ready(self, stop: asyncio.Event) -> None:
        """Return when every child is ready, or when `stop` is set.

        Raises:
            Unavailable: a child is not ready in time; names all that are not.
            BadSettings: a child ended because of its settings, which no second start mends.
        """
        deadline_ns = self._clock.monotonic_ns() + int(READY_SECONDS * NS_PER_SECOND)
        waiting = {child.name: child for child in self._children}
        while waiting and not stop.is_set():
            for child in list(waiting.values()):
                if await self._is_ready(child):
                    del waiting[child.name]
            if self._refused in waiting:
                raise BadSettings(self._last_line(self._refused))
            if waiting and self._clock.monotonic_ns() > deadline_ns:
                raise Unavailable(
                    f"Not ready after {READY_SECONDS:g} seconds: {', '.join(sorted(waiting))}.",
                    hint=f"Their logs, in {self._log_dir}, say why.",
                )
            await self._clock.sleep(_POLL_SECONDS)

    def _last_line(self, name: str) -> str:
        with (self._log_dir / f"{name}.log").open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return log.read().decode(errors="replace").rstrip().rpartition("\n")[2]

    async def _is_ready(self, child: Child) -> bool:
        if child.name not in self._running:
            return False
        return child.ready is None or await child.ready()

    async def _keep(self, child: Child) -> None:
        failures = 0
        while not self._stopping.is_set():
            if child.needs_file is not None and not child.needs_file.exists():
                await self._clock.sleep(_POLL_SECONDS)
                continue
            began_ns = self._clock.monotonic_ns()
            status = await self._run_once(child)
            if self._stopping.is_set():
                return
            if status == BadSettings.exit_status:
                self._refused = child.name
            lived_ns = self._clock.monotonic_ns() - began_ns
            failures = 0 if lived_ns > STABLE_SECONDS * NS_PER_SECOND else failures + 1
            self._restarts[child.name] = self._restarts.get(child.name, 0) + 1
            _log.warning("child_ended", child=child.name, status=status, failures=failures)
            await self._clock.sleep(restart_wait_seconds(failures))

    async def _run_once(self, child: Child) -> int:
        log_path = self._log_dir / f"{child.name}.log"
        with log_path.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                "setpriv",
                "--pdeathsig",
                "TERM",
                "--",
                *child.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **child.env},
                # Ctrl-C reaches only the supervisor, which ends its children in order.
                start_new_session=True,
            )
        self._running[child.name] = process
        try:
            return await process.wait()
        finally:
            self._running.pop(child.name, None)

    async def _stop_all(self) -> None:
        """End the children in reverse order of their start, together where order is free."""
        for process in reversed(list(self._running.values())):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        waiting = [process.wait() for process in list(self._running.values())]
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await asyncio.gather(*waiting)
        except TimeoutError:
            for name, process in list(self._running.items()):
                _log.warning("child_killed", child=name)
                with contextlib.suppress(ProcessLookupError):
                    process.kill()

    async def _bound_logs(self) -> Report:
        moved = sum(bound_log(self._log_dir / f"{child.name}.log") for child in self._children)
        return Report(counts={"moved": moved})
