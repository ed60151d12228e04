"""The one kind of background loop.

A reconciler has a name and a period. Its activation takes no input, is idempotent and bounded,
and reports what it did; it derives all it needs from the store and from what is really there. It
may raise: the loop turns that into a status and goes on. Source of the idea: Oxide omicron's
background tasks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from ironworks.model.errors import IronError
from ironworks.runtime.clock import Clock
from ironworks.runtime.log import private
from ironworks.runtime.tasks import Tasks

_log = structlog.stdlib.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one activation found: counts by name, for example `{"renewed": 3}`."""

    counts: dict[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """State of a reconciler after its last activation; `error` is empty when it went well."""

    activations: int = 0
    last_started_at_ns: int = 0
    last_duration_ns: int = 0
    report: Report = field(default_factory=Report)
    error: str = ""


class Reconciler:
    """Runs `activate` every `period_seconds`, and at once after `wake()`."""

    def __init__(
        self,
        name: str,
        period_seconds: float,
        activate: Callable[[], Awaitable[Report]],
        *,
        timeout_seconds: float = 60.0,
    ) -> None:
        self.name = name
        self.period_seconds = period_seconds
        self.status = Status()
        self._activate = activate
        self._timeout_seconds = timeout_seconds
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Activate as soon as possible."""
        self._wake.set()

    async def activate_once(self, clock: Clock) -> Status:
        """One activation; never raises, whatever the activation does."""
        started_ns, began_ns = clock.now_ns(), clock.monotonic_ns()
        report, error = Report(), ""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                report = await self._activate()
        except IronError as problem:
            error = problem.message
            _log.warning("reconciler_failed", reconciler=self.name, error=error, **private(problem))
        except Exception as problem:  # noqa: BLE001 - the loop must outlive every fault
            error = f"{type(problem).__name__}: {problem}"
            _log.exception("reconciler_failed", reconciler=self.name)
        self.status = Status(
            activations=self.status.activations + 1,
            last_started_at_ns=started_ns,
            last_duration_ns=clock.monotonic_ns() - began_ns,
            report=report,
            error=error,
        )
        return self.status

    async def run(self, clock: Clock) -> None:
        """Activate for ever; ends only by cancellation."""
        async with Tasks() as tasks:
            while True:
                self._wake.clear()
                await self.activate_once(clock)
                waits = (
                    tasks.start(clock.sleep(self.period_seconds), name=f"{self.name} period"),
                    tasks.start(self._wake.wait(), name=f"{self.name} wake"),
                )
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for wait in waits:
                    wait.cancel()
