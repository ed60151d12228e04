from __future__ import annotations

import asyncio

from ironworks.runtime.clock import SystemClock, SystemEntropy
from ironworks.runtime.tasks import Tasks
from ironworks.testkit.clock import FakeClock, FakeEntropy


async def test_the_systems_clock_moves_forward_while_one_sleeps() -> None:
    clock = SystemClock()
    before_ns = clock.monotonic_ns()
    await clock.sleep(0.001)
    assert clock.monotonic_ns() - before_ns >= 1_000_000
    # 2025 to 2100: nanoseconds since 1970, not seconds or milliseconds.
    assert 1_735_689_600 * 10**9 < clock.now_ns() < 4_102_444_800 * 10**9


def test_the_systems_entropy_does_not_repeat_and_stays_in_its_bounds() -> None:
    entropy = SystemEntropy()
    assert len(entropy.token_bytes(16)) == 16
    assert len({entropy.token_bytes(16) for _ in range(100)}) == 100
    assert all(2 <= entropy.uniform(2, 3) <= 3 for _ in range(100))


async def test_a_fake_clock_wakes_sleepers_at_their_times_and_in_their_order() -> None:
    clock = FakeClock()
    woken: list[tuple[str, int]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((name, clock.monotonic_ns() // 1_000_000_000))

    async with Tasks() as tasks:
        for name, seconds in (("late", 5), ("early", 2), ("never", 50)):
            tasks.start(sleeper(name, seconds), name=name)
        await asyncio.sleep(0)
        await clock.advance(10)
        assert woken == [("early", 2), ("late", 5)]


async def test_setting_a_fake_clock_moves_the_wall_and_not_the_monotonic_time() -> None:
    clock = FakeClock(now_ns=1_000_000_000_000)
    clock.jump(-10)
    assert (clock.now_ns(), clock.monotonic_ns()) == (990_000_000_000, 0)


def test_a_fake_entropy_repeats_itself_only_from_its_seed() -> None:
    first, second = FakeEntropy(1), FakeEntropy(1)
    one = first.token_bytes(8)
    assert one == second.token_bytes(8)
    assert one != first.token_bytes(8)
    assert one != FakeEntropy(2).token_bytes(8)
