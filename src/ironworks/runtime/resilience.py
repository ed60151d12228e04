"""Retries with back-off and the circuit breaker, as the system description draws them.

Both are pure: they decide, the callers wait and call. `call` puts them together.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

from ironworks.model.errors import IronError, Unavailable
from ironworks.runtime.clock import Clock

_T = TypeVar("_T")
NS_PER_SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Waits between attempts; one attempt more than there are waits."""

    waits_seconds: tuple[float, ...] = (0.1, 0.2, 0.4)


class BreakerState(Enum):
    """Closed lets everything through, open nothing, half-open a few probes."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(slots=True, kw_only=True)
class Breaker:
    """A circuit breaker for one callee.

    Opens at `failures` failures within `window_seconds`, lets at most `probes` calls through at
    once after `open_seconds`, closes at the first success of a probe.
    """

    failures: int = 5
    window_seconds: float = 30.0
    open_seconds: float = 10.0
    probes: int = 2
    _failed_at_ns: list[int] = field(default_factory=list[int])
    _opened_at_ns: int | None = None
    _probing: int = 0

    def state(self, now_ns: int) -> BreakerState:
        """The state at this moment of the monotonic clock."""
        if self._opened_at_ns is None:
            return BreakerState.CLOSED
        if now_ns - self._opened_at_ns < self.open_seconds * NS_PER_SECOND:
            return BreakerState.OPEN
        return BreakerState.HALF_OPEN

    def admit(self, now_ns: int) -> bool:
        """Whether a call may start now; an admitted call must be `record`ed."""
        state = self.state(now_ns)
        if state is BreakerState.HALF_OPEN and self._probing < self.probes:
            self._probing += 1
            return True
        return state is BreakerState.CLOSED

    def record(self, *, ok: bool, now_ns: int) -> None:
        """Say how an admitted call ended."""
        self._probing = max(0, self._probing - 1)
        if ok:
            self._failed_at_ns.clear()
            self._opened_at_ns = None
            return
        horizon_ns = now_ns - int(self.window_seconds * NS_PER_SECOND)
        self._failed_at_ns = [at for at in self._failed_at_ns if at > horizon_ns]
        self._failed_at_ns = [*self._failed_at_ns, now_ns][-self.failures :]
        if self._opened_at_ns is not None or len(self._failed_at_ns) >= self.failures:
            self._opened_at_ns = now_ns


async def call(
    attempt: Callable[[], Awaitable[_T]],
    *,
    clock: Clock,
    breaker: Breaker | None = None,
    policy: RetryPolicy | None = None,
) -> _T:
    """Call with retries of what is retryable, through the breaker if there is one.

    Raises:
        Unavailable: the breaker is open.
        IronError: the last attempt's error, or the first that is not retryable.
    """
    waits_seconds = (policy or RetryPolicy()).waits_seconds
    for number in range(len(waits_seconds) + 1):
        if breaker is not None and not breaker.admit(clock.monotonic_ns()):
            raise Unavailable("The service behind this call is failing; calls to it are paused.")
        try:
            result = await attempt()
        except IronError as error:
            # Only a callee that is down counts against it; a refusal proves that it works.
            if breaker is not None:
                breaker.record(ok=not error.retryable, now_ns=clock.monotonic_ns())
            if not error.retryable or number == len(waits_seconds):
                raise
            await clock.sleep(waits_seconds[number])
        except BaseException:
            if breaker is not None:
                breaker.record(ok=False, now_ns=clock.monotonic_ns())
            raise
        else:
            if breaker is not None:
                breaker.record(ok=True, now_ns=clock.monotonic_ns())
            return result
    raise Unavailable("No attempt was made.")
