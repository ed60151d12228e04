"""Whatever breaks, billaged gets every tick once in order, or a declaration that it is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from ironworks.gen.ironworks.billaged.v1 import meter_pb
from ironworks.metald.sampling.stream import MetricsStream, Origin
from ironworks.model.errors import Unavailable
from ironworks.runtime.tasks import Tasks
from ironworks.testkit.clock import FakeClock, FakeEntropy
from ironworks.testkit.metering import tick


class NoWait(FakeClock):
    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


@dataclass
class Billaged:
    """Breaks after some messages, each time; acknowledges only some of what it has."""

    lives: list[int]
    acknowledge: list[bool]
    last_ordinal: int
    durable: int = 0
    taken: dict[int, int] = field(default_factory=dict[int, int])
    lost: set[int] = field(default_factory=set[int])

    async def stream_metrics(
        self, request: AsyncIterator[meter_pb.StreamMetricsRequest], /
    ) -> AsyncIterator[meter_pb.StreamMetricsResponse]:
        life = self.lives.pop() if self.lives else 1 << 30
        last = self.durable
        async for message in request:
            said = message.message
            assert said is not None
            if said.field == "hello":
                yield meter_pb.StreamMetricsResponse(durable_ordinal=self.durable)
                continue
            if life == 0:
                raise Unavailable("broken")
            life -= 1
            assert message.ordinal > last, "never backwards within a stream"
            last = message.ordinal
            self.taken[message.ordinal] = said.value.seq
            for loss in said.value.losses:
                self.lost.update(range(loss.first_seq, loss.last_seq + 1))
            spoken = bool(self.acknowledge) and self.acknowledge.pop()
            if spoken or message.ordinal == self.last_ordinal:
                self.durable = message.ordinal
                yield meter_pb.StreamMetricsResponse(durable_ordinal=self.durable)


@given(
    st.integers(1, 40),
    st.integers(1, 50),
    st.lists(st.integers(0, 10), max_size=6),
    st.lists(st.booleans(), max_size=30),
    st.lists(st.integers(1, 10), max_size=10),
)
def test_every_tick_arrives_or_is_declared_lost(
    ticks: int, ring: int, lives: list[int], acknowledge: list[bool], pauses: list[int]
) -> None:
    other = Billaged(lives=lives, acknowledge=acknowledge, last_ordinal=ticks)
    stream = MetricsStream(
        origin=Origin(host_id="h", host_boot_id="b", run_id="r"),
        connect=lambda: other,
        clock=NoWait(),
        entropy=FakeEntropy(),
        ring_ticks=ring,
    )

    async def scenario() -> None:
        async with Tasks() as tasks:
            tasks.start(stream.run(), name="stream")
            for seq in range(ticks):
                stream.offer(tick(seq, []))
                for _ in range(pauses[seq % len(pauses)] if pauses else 0):
                    await asyncio.sleep(0)
            assert await stream.wait_acknowledged(10)

    asyncio.run(scenario())
    arrived = set(other.taken.values())
    assert arrived | other.lost == set(range(ticks))
    assert {ordinal: seq + 1 for ordinal, seq in other.taken.items()} == {
        ordinal: ordinal for ordinal in other.taken
    }
    assert stream.waiting_ticks == 0
    if ring >= ticks:
        assert other.lost == set()
