"""A worker: serves turns of the queue, each with one build from its beginning to its end.

A build can be taken up any number of times: it begins again at RESOLVING, in a fresh scratch
directory; blobs that were pulled before are still in the tenant's store. While it runs, the worker
looks once a second whether the build is still its own: it may have been cancelled through another
builderd, or have been taken over when this one was too slow to be thought alive.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import shutil
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import structlog
from sqlalchemy import Connection

from ironworks.builderd import turns
from ironworks.builderd.cgroup import sweep_groups
from ironworks.builderd.decide import seconds_left
from ironworks.builderd.journal import Journal
from ironworks.builderd.making import LOCK_SECONDS, Maker, Refused
from ironworks.builderd.policy import Policy
from ironworks.builderd.types import Build, BuilderSettings, PolicyReport
from ironworks.model.errors import (
    Aborted,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    IronError,
    ResourceExhausted,
)
from ironworks.model.units import NS_PER_SECOND
from ironworks.runtime.clock import Clock
from ironworks.runtime.tasks import Tasks

_log = structlog.stdlib.get_logger()
_T = TypeVar("_T")
_WATCH_SECONDS = 1.0
_TURN_SECONDS = 0.2
TRIALS = "trials"
"""Scratch directories of policies that are tried begin with this."""


class Worker:
    """Runs builds."""

    def __init__(
        self, *, journal: Journal, maker: Maker, settings: BuilderSettings, clock: Clock
    ) -> None:
        self.name = settings.worker_name
        self._journal = journal
        self._maker = maker
        self._settings = settings
        self._clock = clock
        self._turns: dict[str, asyncio.Task[None]] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._trials = asyncio.Semaphore(settings.max_builds)
        self._trial_count = 0
        self._lock_fd = -1

    @property
    def scratch_dir(self) -> Path:
        """Where this worker's builds have their scratch directories."""
        return self._settings.builder_dir / "scratch" / self.name

    @property
    def is_idle(self) -> bool:
        """Whether no build runs here."""
        return not self._turns

    # --- what is left behind ----------------------------------------------------------------------

    def open(self) -> int:
        """Make sure that no other worker here has this name, and `clean`. Blocks.

        Raises:
            FailedPrecondition: another one lives.
        """
        self.scratch_dir.mkdir(parents=True, exist_ok=True)
        # Whoever cleans up after a worker holds its name for that time: it is not another of it.
        with _locked(self.scratch_dir.parent):
            fd = os.open(_lock_path(self.scratch_dir), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                raise FailedPrecondition(
                    f"Another builderd here is called {self.name} too.",
                    hint="Give each its own setting builderd_worker.",
                ) from None
            self._lock_fd = fd
        sweep_groups(self._settings, self._clock, self.name)
        left = list(self.scratch_dir.iterdir())
        for path in left:
            shutil.rmtree(path, ignore_errors=True)
        return len(left) + self.clean()

    def clean(self) -> int:
        """Remove what workers left that live no more; answers how many builds. Blocks."""
        with _locked(self.scratch_dir.parent):
            return self._clean()

    def _clean(self) -> int:
        count = 0
        for scratch in self.scratch_dir.parent.iterdir():
            if not scratch.is_dir() or scratch == self.scratch_dir:
                continue
            with _if_dead(scratch) as dead:
                if not dead:
                    continue
                sweep_groups(self._settings, self._clock, scratch.name)
                left = list(scratch.iterdir())
                for path in left:
                    shutil.rmtree(path, ignore_errors=True)
                count += len(left)
        return count

    def close(self) -> None:
        """Give up the name."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    # --- turns ------------------------------------------------------------------------------------

    def stop(self, build_id: str) -> None:
        """Interrupt a build that runs here; what it had is removed, its record is not changed."""
        task = self._running.get(build_id)
        if task is not None:
            task.cancel()

    async def serve(self, turn: str) -> None:
        """Take up the build whose turn it is, and run it to its end; nothing if none waits.

        A second call with the same turn while it runs waits for the first.
        """
        serving = self._turns.get(turn)
        if serving is not None:
            await asyncio.wait({serving})
            return
        task = asyncio.current_task()
        if task is None:
            raise Internal("A build ran outside of a task.")
        self._turns[turn] = task
        try:
            while True:
                build = await self._begin(turn)
                if isinstance(build, Build):
                    await self._run(build)
                    return
                if not build:
                    return
                await self._clock.sleep(_TURN_SECONDS)  # all who wait have as many as they may
        finally:
            del self._turns[turn]

    async def _begin(self, turn: str) -> Build | bool:
        now_ns = self._journal.now_ns()

        def work(connection: Connection) -> Build | bool:
            return turns.begin(
                connection,
                turn,
                self.name,
                max_per_tenant=self._settings.max_builds_per_tenant,
                max_attempts=self._settings.max_build_attempts,
                now_ns=now_ns,
            )

        build = await self._journal.database.write(work)
        if isinstance(build, Build):
            self._journal.close(build.build_id)
        return build

    async def _run(self, build: Build) -> None:
        build_id, task = build.build_id, asyncio.current_task()
        if task is None:
            raise Internal("A build ran outside of a task.")
        self._running[build_id] = task
        scratch = self.scratch_dir / build_id
        try:
            async with Tasks() as watching:
                watching.start(self._watch(build), name=f"watch {build_id}")
                await self._work(build, scratch)
        except asyncio.CancelledError:
            if await asyncio.shield(self._is_ours(build)):
                raise  # the service stops; another life takes the build up again
            task.uncancel()
        finally:
            del self._running[build_id]
            self._journal.close(build_id)
            await asyncio.to_thread(self._clear, scratch, build)

    async def _is_ours(self, build: Build) -> bool:
        now = await self._journal.find(build.build_id)
        return now is not None and not now.ended and now.attempt_count == build.attempt_count

    async def _watch(self, build: Build) -> None:
        """Renew what the build holds, tell how far it is, and stop it when it is ours no more."""
        while True:
            await self._clock.sleep(_WATCH_SECONDS)
            try:
                if not await self._is_ours(build):
                    self.stop(build.build_id)
                    return
                until_ns = self._journal.now_ns() + LOCK_SECONDS * NS_PER_SECOND
                await self._journal.database.write(
                    lambda connection, until_ns=until_ns: turns.renew(
                        connection, build.build_id, until_ns
                    )
                )
                await self._journal.note(build.build_id)
            except IronError as error:
                _log.warning("build_not_watched", build=build.build_id, error=str(error))

    async def _work(self, build: Build, scratch: Path) -> None:
        build_id = build.build_id
        try:
            await asyncio.to_thread(self._clear, scratch, build)
            await asyncio.to_thread(scratch.mkdir, parents=True, mode=0o700)
            async with asyncio.timeout(max(seconds_left(build, self._journal.now_ns()), 0)):
                await self._maker.make(build, scratch)
        except TimeoutError:
            await self._fail(build_id, scratch, _timed_out(build))
        except Aborted:
            _log.info("build_overtaken", build=build_id)  # cancelled, or taken over
        except Refused as error:
            await self._fail(build_id, scratch, error, error.report)
        except IronError as error:
            await self._fail(build_id, scratch, error)
        except OSError as error:
            await self._fail(build_id, scratch, _of_os(error))
        except Exception:  # noqa: BLE001 - logged, and told as a fault of ours
            # It must not be taken up again for ever.
            _log.exception("build_crashed", build=build_id)
            fault = Internal("The build failed unexpectedly.", hint="See builderd's log.")
            await self._fail(build_id, scratch, fault)

    async def _fail(
        self, build_id: str, scratch: Path, error: IronError, report: PolicyReport | None = None
    ) -> None:
        await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)
        build = await self._journal.find(build_id)
        if build is None or build.ended or build.worker != self.name:
            return
        context = {f"ctx_{key}": value for key, value in error.context.items()}
        _log.info("build_failed", build=build_id, code=error.code, error=str(error), **context)
        await self._journal.fail(build, error, report)

    def _clear(self, scratch: Path, build: Build) -> None:
        """Remove what this or an earlier attempt at the build left on this machine."""
        shutil.rmtree(scratch, ignore_errors=True)
        for attempt in range(1, build.attempt_count + 1):
            staged = self._settings.staging_dir / f"{build.build_id}.{attempt}.rootfs"
            staged.unlink(missing_ok=True)

    # --- trials -----------------------------------------------------------------------------------

    async def evaluate(
        self, tenant_id: str, image: str, policy: Policy | None
    ) -> tuple[PolicyReport, str]:
        """See `Maker.evaluate`; not more at once than builds.

        Raises:
            DeadlineExceeded: it takes longer than a build may.
        """
        async with self._trials:
            self._trial_count += 1
            scratch = self.scratch_dir / f"{TRIALS}-{self._trial_count}"
            await asyncio.to_thread(scratch.mkdir, parents=True, mode=0o700)

            async def trial() -> tuple[PolicyReport, str]:
                return await self._maker.evaluate(tenant_id, image, policy, scratch)

            try:
                return await _within(self._settings.build_timeout_seconds, trial)
            except OSError as error:
                raise _of_os(error) from error
            finally:
                await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)


async def _within(seconds: float, work: Callable[[], Awaitable[_T]]) -> _T:
    try:
        async with asyncio.timeout(seconds):
            return await work()
    except TimeoutError:
        raise DeadlineExceeded(f"The trial did not end within {seconds} seconds.") from None


def _lock_path(scratch: Path) -> Path:
    return scratch.with_name(f"{scratch.name}.lock")


@contextmanager
def _locked(directory: Path) -> Generator[None]:
    """Nobody else in this block, in any process; waits for its turn."""
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextmanager
def _if_dead(scratch: Path) -> Generator[bool]:
    """Whether the worker with this scratch directory lives no more; it cannot start meanwhile."""
    fd = os.open(_lock_path(scratch), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)


def _timed_out(build: Build) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"The build did not end within {build.timeout_seconds} seconds.",
        hint="Make the image smaller, or ask the operator for more time.",
    )


def _of_os(error: OSError) -> IronError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceExhausted(
            "There is no room on the disk to build this image.",
            hint="Free space in the data directory, then deploy again.",
        )
    return Internal("The build failed on this machine.", context={"error": str(error)})
