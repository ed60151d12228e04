from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from ironworks.model.errors import Unavailable
from ironworks.runtime.reconcile import Reconciler, Report
from ironworks.runtime.tasks import Tasks
from ironworks.testkit.clock import FakeClock


def reconciler(
    activate: Callable[[], Awaitable[Report]], *, timeout_seconds: float = 60.0
) -> Reconciler:
    return Reconciler("sweeper", 10.0, activate, timeout_seconds=timeout_seconds)


class Counting:
    def __init__(self) -> None:
        self.activations = 0

    async def __call__(self) -> Report:
        self.activations += 1
        return Report(counts={"swept": self.activations})


@asynccontextmanager
async def running(one: Reconciler, clock: FakeClock) -> AsyncGenerator[asyncio.Task[None]]:
    async with Tasks() as tasks:
        task = tasks.start(one.run(clock), name="loop")
        await settle()
        yield task


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_an_activation_reports_what_it_did_and_when() -> None:
    clock = FakeClock()

    async def activate() -> Report:
        clock.jump(100)  # the wall clock is set meanwhile: durations must not notice
        return Report(counts={"swept": 3})

    began_ns = clock.now_ns()
    status = await reconciler(activate).activate_once(clock)
    assert (status.activations, status.report.counts, status.error) == (1, {"swept": 3}, "")
    assert (status.last_started_at_ns, status.last_duration_ns) == (began_ns, 0)


async def test_our_errors_become_a_status_and_their_context_stays_in_the_log() -> None:
    async def activate() -> Report:
        # Keys that the log line itself has.
        raise Unavailable("The store is down.", context={"error": "E", "reconciler": "R"})

    with capture_logs() as lines:
        status = await reconciler(activate).activate_once(FakeClock())
    assert status.error == "The store is down."
    assert (lines[0]["reconciler"], lines[0]["ctx_error"]) == ("sweeper", "E")


async def test_a_crash_becomes_a_status_too() -> None:
    async def activate() -> Report:
        raise KeyError("oops")

    status = await reconciler(activate).activate_once(FakeClock())
    assert status.error == "KeyError: 'oops'"


async def test_an_activation_that_hangs_is_ended() -> None:
    async def activate() -> Report:
        await asyncio.sleep(1000)
        return Report()

    status = await reconciler(activate, timeout_seconds=0.01).activate_once(FakeClock())
    assert status.error.startswith("TimeoutError")


async def test_success_clears_the_error_of_the_time_before() -> None:
    outcomes = [Unavailable("down"), None]

    async def activate() -> Report:
        if error := outcomes.pop(0):
            raise error
        return Report()

    one, clock = reconciler(activate), FakeClock()
    assert (await one.activate_once(clock)).error
    assert not (await one.activate_once(clock)).error
    assert one.status.activations == 2


async def test_it_activates_at_once_and_then_every_period() -> None:
    clock, activate = FakeClock(), Counting()
    async with running(reconciler(activate), clock):
        assert activate.activations == 1
        await clock.advance(9.9)
        assert activate.activations == 1
        await clock.advance(0.1)
        assert activate.activations == 2
        await clock.advance(30)
        assert activate.activations == 5


async def test_waking_it_does_not_wait_for_the_period() -> None:
    clock, activate = FakeClock(), Counting()
    one = reconciler(activate)
    async with running(one, clock):
        one.wake()
        one.wake()
        await settle()
        assert activate.activations == 2


async def test_being_woken_during_an_activation_makes_it_activate_again() -> None:
    clock = FakeClock()
    activations: list[int] = []

    async def activate() -> Report:
        activations.append(1)
        if len(activations) == 1:
            one.wake()
        return Report()

    one = reconciler(activate)
    async with running(one, clock):
        assert len(activations) == 2


async def test_the_loop_outlives_failures() -> None:
    async def activate() -> Report:
        raise ValueError

    one, clock = reconciler(activate), FakeClock()
    async with running(one, clock):
        await clock.advance(20)
        assert one.status.activations == 3


async def test_only_cancellation_ends_the_loop() -> None:
    async with running(reconciler(Counting()), FakeClock()) as task:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
