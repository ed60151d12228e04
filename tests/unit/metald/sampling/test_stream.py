from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from ironworks.gen.ironworks.billaged.v1 import meter_pb, samples_pb
from ironworks.gen.ironworks.billaged.v1.samples_pb import GapReason
from ironworks.metald.sampling import stream as stream_module
from ironworks.metald.sampling.stream import MetricsStream, Origin
from ironworks.model.errors import Unavailable
from ironworks.runtime.tasks import Tasks
from ironworks.testkit.clock import FakeClock, FakeEntropy
from ironworks.testkit.metering import attachment, tick

ORIGIN = Origin(host_id="hst", host_boot_id="boot", run_id="run")


class Impatient(FakeClock):
    """Sleeps are remembered and take no time."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)


@dataclass
class Billaged:
    """The other end: takes messages, and breaks the stream after `lives[0]` of them, and so on."""

    lives: list[int] = field(default_factory=list[int])
    acknowledges: bool = True
    hellos: list[meter_pb.StreamHello] = field(default_factory=list[meter_pb.StreamHello])
    ticks: list[tuple[int, samples_pb.Tick]] = field(
        default_factory=list[tuple[int, samples_pb.Tick]]
    )
    durable: int = 0
    error: Exception = field(default_factory=lambda: Unavailable("killed"))

    async def stream_metrics(
        self, request: AsyncIterator[meter_pb.StreamMetricsRequest], /
    ) -> AsyncIterator[meter_pb.StreamMetricsResponse]:
        life = self.lives.pop(0) if self.lives else 1_000_000
        async for message in request:
            said = message.message
            assert said is not None
            if said.field == "hello":
                self.hellos.append(said.value)
                yield meter_pb.StreamMetricsResponse(durable_ordinal=self.durable)
                continue
            if life == 0:
                raise self.error
            life -= 1
            self.ticks.append((message.ordinal, said.value))
            if self.acknowledges:
                self.durable = message.ordinal
                yield meter_pb.StreamMetricsResponse(durable_ordinal=self.durable)


def made(other: Billaged, *, ring_ticks: int = 100) -> MetricsStream:
    return MetricsStream(
        origin=ORIGIN,
        connect=lambda: other,
        clock=Impatient(),
        entropy=FakeEntropy(),
        ring_ticks=ring_ticks,
    )


async def running(one: MetricsStream, work: Callable[[], Awaitable[None]]) -> None:
    async with Tasks() as tasks:
        tasks.start(one.run(), name="stream")
        await work()


async def test_ticks_are_delivered_in_order_and_forgotten_when_acknowledged() -> None:
    other = Billaged()
    one = made(other)
    one.offer(tick(0, [1], attached=[attachment(1, "vm_1", 0)]))

    async def work() -> None:
        for seq in range(1, 5):
            one.offer(tick(seq, [1]))
        assert await one.wait_acknowledged(5)

    await running(one, work)
    assert [ordinal for ordinal, _ in other.ticks] == [1, 2, 3, 4, 5]
    assert one.waiting_ticks == 0
    assert one.acknowledged_ordinal == 5
    assert [vm.vm_id for vm in other.hellos[0].attached] == ["vm_1"]
    assert (other.hellos[0].host_id, other.hellos[0].run_id) == ("hst", "run")


@pytest.mark.parametrize(
    "error", [Unavailable("killed"), OSError("gone"), RuntimeError("a library's own")]
)
async def test_after_a_break_it_goes_on_with_the_first_that_is_not_durable(
    error: Exception,
) -> None:
    other = Billaged(lives=[3, 0, 2], error=error)
    one = made(other)
    for seq in range(8):
        one.offer(tick(seq, []))

    async def work() -> None:
        assert await one.wait_acknowledged(5)

    await running(one, work)
    assert [ordinal for ordinal, _ in other.ticks] == list(range(1, 9))
    assert len(other.hellos) == 4


async def test_what_was_sent_and_not_acknowledged_is_sent_again() -> None:
    other = Billaged(lives=[3], acknowledges=False)
    one = made(other)
    for seq in range(3):
        one.offer(tick(seq, []))

    async def work() -> None:
        while len(other.ticks) < 3:  # noqa: ASYNC110 - the fake has no event to wait for
            await asyncio.sleep(0)
        other.acknowledges = True
        one.offer(tick(3, []))
        assert await one.wait_acknowledged(5)

    await running(one, work)
    assert [ordinal for ordinal, _ in other.ticks] == [1, 2, 3, 1, 2, 3, 4]


async def test_what_billaged_has_from_before_is_not_sent_again() -> None:
    other = Billaged(durable=2)
    one = made(other)
    for seq in range(4):
        one.offer(tick(seq, []))

    async def work() -> None:
        assert await one.wait_acknowledged(5)

    await running(one, work)
    assert [ordinal for ordinal, _ in other.ticks] == [3, 4]


async def test_a_full_ring_drops_the_oldest_and_says_so() -> None:
    other = Billaged()
    one = made(other, ring_ticks=3)
    one.offer(tick(0, [1], attached=[attachment(1, "vm_1", 0)]))
    late = samples_pb.TickLoss(first_seq=2, last_seq=3, reason=GapReason.SAMPLER_LATE)
    one.offer(tick(1, [1]))
    one.offer(tick(4, [1], losses=[late]))
    one.offer(tick(5, [1], detached=[1]))
    one.offer(tick(6, []))
    one.offer(tick(7, []))

    async def work() -> None:
        assert await one.wait_acknowledged(5)

    await running(one, work)
    assert one.ticks_overflowed == 3
    ordinal, heir = other.ticks[0]
    assert (ordinal, heir.seq) == (4, 5)
    assert [vm.vm_id for vm in heir.attached] == ["vm_1"]
    assert heir.detached == [1]
    told = [(loss.first_seq, loss.last_seq, loss.reason.name) for loss in heir.losses]
    assert told == [
        (0, 1, "STREAM_OVERFLOW"),
        (2, 3, "SAMPLER_LATE"),
        (4, 4, "STREAM_OVERFLOW"),
    ]


async def test_a_vm_that_ended_is_announced_until_its_last_sample_is_acknowledged() -> None:
    other = Billaged(lives=[1, 2])
    one = made(other)
    one.offer(tick(0, [1], attached=[attachment(1, "vm_1", 0)]))
    one.offer(tick(1, [1], detached=[1]))

    async def work() -> None:
        assert await one.wait_acknowledged(5)
        one.offer(tick(2, []))
        one.offer(tick(3, []))
        assert await one.wait_acknowledged(5)

    await running(one, work)
    assert [len(hello.attached) for hello in other.hellos] == [1, 1, 0]


async def test_waits_between_connections_grow_and_begin_anew_after_progress() -> None:
    other = Billaged(lives=[0, 0, 0, 1, 0])
    one = made(other)
    for seq in range(2):
        one.offer(tick(seq, []))

    async def work() -> None:
        assert await one.wait_acknowledged(5)

    await running(one, work)
    clock = one._clock  # pyright: ignore[reportPrivateUsage]
    assert isinstance(clock, Impatient)
    bases = stream_module.BACKOFF_SECONDS
    expected = [bases[1], bases[2], bases[3], bases[0], bases[1]]
    for slept, base in zip(clock.slept, expected, strict=True):
        assert base <= slept <= base * 1.5


async def test_a_peer_that_is_silent_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "ACK_TIMEOUT_SECONDS", 0.02)
    other = Billaged(acknowledges=False)
    one = made(other)
    one.offer(tick(0, []))

    async def work() -> None:
        while len(other.hellos) < 2:  # noqa: ASYNC110 - the fake has no event to wait for
            await asyncio.sleep(0.01)
        assert not await one.wait_acknowledged(0.01)

    await running(one, work)
    assert one.waiting_ticks == 1
