"""Retries with back-off and the circuit breaker, as the system description draws them.

Both are pure: they decide, the callers wait and call. `call` puts them together.

```
           failures in the window              open_seconds have passed
  CLOSED ─────────────────────────▶ OPEN ─────────────────────────────▶ HALF_OPEN
     ▲                               ▲                                    │   │
     │                               └────────── a probe fails ───────────┘   │
     └─────────────────────────── a probe succeeds ───────────────────────────┘
```
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

from ironworks.model.errors import DeadlineExceeded, IronError, Unavailable
from ironworks.model.units import NS_PER_SECOND
from ironworks.runtime.clock import Clock

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Waits between attempts; one attempt more than there are waits."""

    waits_seconds: tuple[float, ...] = (0.1, 0.2, 0.4)


class BreakerState(Enum):
    """Closed lets everything through, open nothing, half-open a few probes."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Verdict(Enum):
    """What the end of a call says of the callee."""

    WORKS = "works"
    FAILS = "fails"
    UNKNOWN = "unknown"
    """It was given up before it ended: that says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Leave to make one call.

    Attributes:
        era: Which opening or closing of the breaker it belongs to: what a call that began before
            the breaker opened says must neither close nor re-open it.
        probe: Whether it takes one of the places of probes.
    """

    era: int
    probe: bool


@dataclass(slots=True, kw_only=True)
class Breaker:
    """A circuit breaker for one callee; times are of the monotonic clock.

    Opens at `failures` failures within `window_seconds`, lets at most `probes` calls through at
    once after `open_seconds`, closes at the first success of a probe. A success while closed
    does not clear the failures: a callee that fails every other call is failing.
    """

    failures: int = 5
    window_seconds: float = 30.0
    open_seconds: float = 10.0
    probes: int = 2
    _failed_at_ns: list[int] = field(default_factory=list[int])
    _opened_at_ns: int | None = None
    _probing: int = 0
    _era: int = 0

    def state(self, now_ns: int) -> BreakerState:
        """The state at this moment."""
        if self._opened_at_ns is None:
            return BreakerState.CLOSED
        if now_ns - self._opened_at_ns < self.open_seconds * NS_PER_SECOND:
            return BreakerState.OPEN
        return BreakerState.HALF_OPEN

    def admit(self, now_ns: int) -> Admission | None:
        """Leave to make a call now, or None. How it ended must be `record`ed."""
        state = self.state(now_ns)
        if state is BreakerState.CLOSED:
            return Admission(era=self._era, probe=False)
        if state is BreakerState.HALF_OPEN and self._probing < self.probes:
            self._probing += 1
            return Admission(era=self._era, probe=True)
        return None

    def record(self, admission: Admission, verdict: Verdict, now_ns: int) -> None:
        """Say how an admitted call ended."""
        if admission.probe:
            self._probing -= 1
        if admission.era != self._era or verdict is Verdict.UNKNOWN:
            return
        if admission.probe:
            self._turn(opened_at_ns=now_ns if verdict is Verdict.FAILS else None)
        elif verdict is Verdict.FAILS:
            horizon_ns = now_ns - int(self.window_seconds * NS_PER_SECOND)
            recent = [at for at in self._failed_at_ns if at > horizon_ns]
            self._failed_at_ns = [*recent, now_ns]
            if len(self._failed_at_ns) >= self.failures:
                self._turn(opened_at_ns=now_ns)

    def _turn(self, *, opened_at_ns: int | None) -> None:
        self._opened_at_ns = opened_at_ns
        self._failed_at_ns = []
        self._era += 1


async def call(
    attempt: Callable[[], Awaitable[_T]],
    *,
    clock: Clock,
    breaker: Breaker | None = None,
    policy: RetryPolicy | None = None,
    callee: str = "the service behind this call",
) -> _T:
    """Call with retries of what is retryable, through the breaker if there is one.

    Args:
        attempt: Makes the call once.
        clock: Waits between attempts.
        breaker: Of the callee.
        policy: Of the retries.
        callee: For the sentence that says that its breaker is open.

    Raises:
        Unavailable: the breaker is open.
        IronError: the last attempt's error, or the first that is not retryable.
    """
    waits_seconds = (policy or RetryPolicy()).waits_seconds
    for wait_seconds in waits_seconds:
        try:
            return await _attempt(attempt, clock, breaker, callee)
        except _Paused:
            raise
        except IronError as error:
            if not error.retryable:
                raise
        await clock.sleep(wait_seconds)
    return await _attempt(attempt, clock, breaker, callee)


class _Paused(Unavailable):
    """The breaker is open: to wait a little and ask again helps nobody."""


async def _attempt(
    attempt: Callable[[], Awaitable[_T]], clock: Clock, breaker: Breaker | None, callee: str
) -> _T:
    if breaker is None:
        return await attempt()
    admission = breaker.admit(clock.monotonic_ns())
    if admission is None:
        raise _Paused(
            f"Too many calls to {callee} have failed: they are paused for some seconds.",
            hint="Try again shortly.",
        )
    verdict = Verdict.FAILS
    try:
        result = await attempt()
        verdict = Verdict.WORKS
    except IronError as error:
        # Only a callee that is down counts against it; a refusal proves that it works.
        down = isinstance(error, Unavailable | DeadlineExceeded)
        verdict = Verdict.FAILS if down else Verdict.WORKS
        raise
    except asyncio.CancelledError:
        verdict = Verdict.UNKNOWN
        raise
    finally:
        breaker.record(admission, verdict, clock.monotonic_ns())
    return result
