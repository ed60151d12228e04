"""Records of builds while a worker has them: every step is written down before the next begins.

A write names the revision it follows, so a worker that has lost its build (it was slow, and another
took over; or the build was cancelled) is told `Aborted` at its next write, and does no more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sqlalchemy import Connection

from ironworks.builderd import store
from ironworks.builderd.changes import Changes
from ironworks.builderd.decide import fail, move
from ironworks.builderd.types import Build, BuildState, PolicyReport, Progress
from ironworks.model.errors import IronError
from ironworks.model.units import NS_PER_SECOND
from ironworks.runtime.clock import Clock
from ironworks.storage.sql import Database


class Journal:
    """Writes what becomes of builds."""

    def __init__(self, database: Database, changes: Changes, clock: Clock) -> None:
        self.database = database
        self._changes = changes
        self._clock = clock
        self._noted_at_ns: dict[str, int] = {}

    def now_ns(self) -> int:
        """The time."""
        return self._clock.now_ns()

    async def find(self, build_id: str) -> Build | None:
        """The record; None if it has been deleted meanwhile."""
        return await self.database.read(lambda connection: store.read_build(connection, build_id))

    async def write(
        self,
        before: Build,
        change: Callable[[int], Build],
        text: str,
        also: Callable[[Connection], None] | None = None,
    ) -> Build:
        """Change a record and say so in its log; `also` is done in the same transaction.

        Raises:
            Aborted: it is no longer `before`.
        """
        now_ns = self.now_ns()

        def work(connection: Connection) -> Build:
            after = store.change_build(connection, before, change(now_ns), now_ns)
            if after.state is not before.state:
                store.write_progress(connection, before.build_id, Progress())
            if also is not None:
                also(connection)
            store.append_log(connection, before.build_id, after.state, text, now_ns)
            return after

        after = await self.database.write(work)
        self._noted_at_ns.pop(before.build_id, None)
        self._changes.forget(before.build_id)
        return after

    async def enter(self, build: Build, state: BuildState, text: str) -> Build:
        """`build` in its next state."""
        return await self.write(build, lambda now: move(build, state, now), text)

    async def fail(self, build: Build, error: IronError, report: PolicyReport | None) -> Build:
        """`build` failed, with the reason."""
        return await self.write(
            build,
            lambda now: replace(
                fail(build, error, now), policy_report=report or build.policy_report
            ),
            f"Failed: {error}",
        )

    async def say(self, build: Build, text: str) -> None:
        """A line in the log of a build that has not changed."""
        now_ns = self.now_ns()
        await self.database.write(
            lambda connection: store.append_log(
                connection, build.build_id, build.state, text, now_ns
            )
        )
        self._changes.announce(build.build_id)

    def report(self, build_id: str, progress: Progress) -> bool:
        """Tell watchers here how far it is; whether it is time to `note` it for those elsewhere."""
        self._changes.report(build_id, progress)
        now_ns = self.now_ns()
        if now_ns - self._noted_at_ns.get(build_id, 0) < NS_PER_SECOND:
            return False
        self._noted_at_ns[build_id] = now_ns
        return True

    async def note(self, build_id: str) -> None:
        """Store how far a build is."""
        progress = self._changes.progress(build_id)
        await self.database.write(
            lambda connection: store.write_progress(connection, build_id, progress)
        )

    def close(self, build_id: str) -> None:
        """The build is in other hands, or has ended."""
        self._noted_at_ns.pop(build_id, None)
        self._changes.forget(build_id)
