from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from ironworks.model.errors import (
    Aborted,
    DeadlineExceeded,
    Internal,
    InvalidRequest,
    IronError,
    NotFound,
    Unavailable,
)
from ironworks.runtime.resilience import (
    Admission,
    Breaker,
    BreakerState,
    RetryPolicy,
    Verdict,
    call,
)
from ironworks.runtime.tasks import Tasks
from ironworks.testkit.clock import FakeClock

SECOND_NS = 1_000_000_000


def admitted(breaker: Breaker, now_ns: int) -> Admission:
    admission = breaker.admit(now_ns)
    assert admission is not None
    return admission


def opened(now_ns: int = 0) -> Breaker:
    breaker = Breaker()
    for _ in range(breaker.failures):
        breaker.record(admitted(breaker, now_ns), Verdict.FAILS, now_ns)
    assert breaker.state(now_ns) is BreakerState.OPEN
    return breaker


def test_the_defaults_are_those_of_the_architecture() -> None:
    breaker = Breaker()
    assert (breaker.failures, breaker.window_seconds) == (5, 30.0)
    assert (breaker.open_seconds, breaker.probes) == (10.0, 2)
    assert RetryPolicy().waits_seconds == (0.1, 0.2, 0.4)


def test_closed_lets_everything_through() -> None:
    breaker = Breaker()
    assert breaker.state(0) is BreakerState.CLOSED
    assert all(breaker.admit(0) for _ in range(100))


def test_failures_below_the_threshold_leave_it_closed() -> None:
    breaker = Breaker()
    for _ in range(4):
        breaker.record(admitted(breaker, 0), Verdict.FAILS, 0)
    assert breaker.state(0) is BreakerState.CLOSED


def test_successes_between_failures_do_not_hide_them() -> None:
    breaker = Breaker()
    for number in range(10):
        verdict = Verdict.FAILS if number % 2 else Verdict.WORKS
        breaker.record(admitted(breaker, number), verdict, number)
    assert breaker.state(10) is BreakerState.OPEN


def test_failures_older_than_the_window_do_not_count() -> None:
    breaker = Breaker()
    for number in range(20):
        now_ns = number * 8 * SECOND_NS
        breaker.record(admitted(breaker, now_ns), Verdict.FAILS, now_ns)
        assert breaker.state(now_ns) is BreakerState.CLOSED


def test_open_fails_fast_until_its_time_is_over() -> None:
    breaker = opened()
    assert breaker.admit(10 * SECOND_NS - 1) is None
    assert breaker.state(10 * SECOND_NS - 1) is BreakerState.OPEN
    assert breaker.state(10 * SECOND_NS) is BreakerState.HALF_OPEN


def test_half_open_lets_two_probes_through_at_once() -> None:
    breaker, now_ns = opened(), 10 * SECOND_NS
    first, _ = admitted(breaker, now_ns), admitted(breaker, now_ns)
    assert breaker.admit(now_ns) is None
    breaker.record(first, Verdict.UNKNOWN, now_ns)
    assert breaker.admit(now_ns) is not None
    assert breaker.admit(now_ns) is None


def test_the_first_probe_that_succeeds_closes_it() -> None:
    breaker, now_ns = opened(), 10 * SECOND_NS
    breaker.record(admitted(breaker, now_ns), Verdict.WORKS, now_ns)
    assert breaker.state(now_ns) is BreakerState.CLOSED


def test_a_probe_that_fails_opens_it_for_the_whole_time_again() -> None:
    breaker, now_ns = opened(), 12 * SECOND_NS
    breaker.record(admitted(breaker, now_ns), Verdict.FAILS, now_ns)
    assert breaker.state(now_ns + 10 * SECOND_NS - 1) is BreakerState.OPEN
    assert breaker.state(now_ns + 10 * SECOND_NS) is BreakerState.HALF_OPEN


def test_a_probe_that_hangs_keeps_its_place_even_when_the_other_reopened_the_breaker() -> None:
    breaker, now_ns = opened(), 10 * SECOND_NS
    hanging, failing = admitted(breaker, now_ns), admitted(breaker, now_ns)
    breaker.record(failing, Verdict.FAILS, now_ns)
    later_ns = now_ns + 10 * SECOND_NS
    assert breaker.admit(later_ns) is not None
    assert breaker.admit(later_ns) is None
    breaker.record(hanging, Verdict.WORKS, later_ns)
    assert breaker.state(later_ns) is BreakerState.HALF_OPEN


@pytest.mark.parametrize("verdict", Verdict)
def test_a_call_from_before_the_opening_changes_nothing(verdict: Verdict) -> None:
    breaker = Breaker()
    slow = admitted(breaker, 0)
    for _ in range(5):
        breaker.record(admitted(breaker, 0), Verdict.FAILS, 0)
    breaker.record(slow, verdict, 5 * SECOND_NS)
    assert breaker.state(10 * SECOND_NS - 1) is BreakerState.OPEN
    assert breaker.state(10 * SECOND_NS) is BreakerState.HALF_OPEN


def test_what_was_counted_before_it_opened_is_forgotten_when_it_closes() -> None:
    breaker, now_ns = opened(), 10 * SECOND_NS
    breaker.record(admitted(breaker, now_ns), Verdict.WORKS, now_ns)
    for _ in range(4):
        breaker.record(admitted(breaker, now_ns), Verdict.FAILS, now_ns)
    assert breaker.state(now_ns) is BreakerState.CLOSED


class Callee:
    """Answers with what the test laid out, and notes when it was asked."""

    def __init__(self, clock: FakeClock, *outcomes: str | BaseException) -> None:
        self._clock = clock
        self._outcomes = list(outcomes)
        self.asked_at_ms: list[int] = []

    async def __call__(self) -> str:
        self.asked_at_ms.append(self._clock.monotonic_ns() // 1_000_000)
        outcome = self._outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


async def ended(
    clock: FakeClock, attempt: Callable[[], Awaitable[str]], breaker: Breaker | None = None
) -> str:
    async with Tasks() as tasks:
        task = tasks.start(call(attempt, clock=clock, breaker=breaker), name="call")
        await asyncio.sleep(0)
        for _ in range(20):
            await clock.advance(0.1)
        return await task


async def test_retries_wait_100_200_and_400_ms() -> None:
    clock = FakeClock()
    callee = Callee(clock, *(Unavailable("down") for _ in range(3)), "answer")
    assert await ended(clock, callee) == "answer"
    assert callee.asked_at_ms == [0, 100, 300, 700]


async def test_after_the_fourth_attempt_the_error_is_the_callers() -> None:
    clock = FakeClock()
    callee = Callee(clock, *(Unavailable(f"down {number}") for number in range(5)))
    with pytest.raises(Unavailable, match="down 3"):
        await ended(clock, callee)
    assert len(callee.asked_at_ms) == 4


@pytest.mark.parametrize("error", [NotFound("no"), InvalidRequest("no"), Internal("no")])
async def test_what_repetition_cannot_help_is_not_repeated(error: IronError) -> None:
    clock = FakeClock()
    callee = Callee(clock, error)
    with pytest.raises(type(error)):
        await ended(clock, callee)
    assert callee.asked_at_ms == [0]


async def test_an_open_breaker_asks_nobody_and_does_not_wait() -> None:
    clock, breaker = FakeClock(), opened()
    callee = Callee(clock, "answer")
    with pytest.raises(Unavailable, match="paused"):
        await call(callee, clock=clock, breaker=breaker)
    assert callee.asked_at_ms == []


async def test_retries_stop_when_they_open_the_breaker() -> None:
    clock, breaker = FakeClock(), Breaker(failures=2)
    callee = Callee(clock, *(DeadlineExceeded("slow") for _ in range(4)))
    with pytest.raises(Unavailable, match="paused"):
        await ended(clock, callee, breaker=breaker)
    assert len(callee.asked_at_ms) == 2


@pytest.mark.parametrize("error", [NotFound("no"), Aborted("lost a race")])
async def test_a_refusal_proves_that_the_callee_works(error: IronError) -> None:
    clock, breaker = FakeClock(), opened()
    await clock.advance(10)
    with pytest.raises(type(error)):
        await call(
            Callee(clock, error),
            clock=clock,
            breaker=breaker,
            policy=RetryPolicy(waits_seconds=()),
        )
    assert breaker.state(clock.monotonic_ns()) is BreakerState.CLOSED


async def test_a_call_that_is_given_up_says_nothing_of_the_callee_and_frees_its_place() -> None:
    clock, breaker = FakeClock(), opened()
    await clock.advance(10)

    async def hang() -> str:
        await clock.sleep(1000)
        return "never"

    async with Tasks() as tasks:
        for _ in range(breaker.probes):
            tasks.start(call(hang, clock=clock, breaker=breaker), name="probe")
        await asyncio.sleep(0)
        assert breaker.admit(clock.monotonic_ns()) is None
    assert breaker.state(clock.monotonic_ns()) is BreakerState.HALF_OPEN
    assert await call(Callee(clock, "answer"), clock=clock, breaker=breaker) == "answer"
    assert breaker.state(clock.monotonic_ns()) is BreakerState.CLOSED
