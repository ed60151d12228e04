"""One aggregatord on every engine: chDB or a ClickHouse server, SQLite or PostgreSQL.

The same windows must end in the same answers; and an engine that is away for an hour costs nothing
but time: billaged keeps what it has, and what was acknowledged is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ironworks.aggregatord.ingest import Ingest
from ironworks.aggregatord.quarantine_store import Decision
from ironworks.aggregatord.types import DAY_NS, HOUR_NS, Interval, UsageFilter
from ironworks.billaged.app import Collector
from ironworks.billaged.types import BillagedSettings
from ironworks.gen.ironworks.aggregatord.v1 import batch_pb
from ironworks.gen.ironworks.aggregatord.v1.usage_pb import Meter
from ironworks.gen.ironworks.billaged.v1 import meter_pb
from ironworks.model.errors import Unavailable
from ironworks.runtime.tasks import Tasks
from ironworks.storage.clickhouse import ClickHouseEngine
from ironworks.storage.clickhouse_server import ServerEngine
from ironworks.testkit.aggregator import Aggregator, aggregator
from ironworks.testkit.clickhouse_http import clickhouse_server
from ironworks.testkit.clock import FakeClock
from ironworks.testkit.metering import EPOCH_AT_NS, attachment, hello, reading, said, tick, window

MINE = UsageFilter(tenant_id="tnt_a")
START_NS = EPOCH_AT_NS // DAY_NS * DAY_NS
TODAY = Interval(from_ns=START_NS, to_ns=START_NS + DAY_NS)


async def story(made: Aggregator) -> list[Any]:
    """Windows in order, late, false and released; all answers after it."""
    await made.clock.advance(600)
    await made.submit([window(range(600)), window(range(100), vm_id="vm_2")])
    await made.submit([window(range(1200, 1800))])
    await made.submit([window(range(600, 1200))])
    await made.submit([window(range(600, 1200))], "bat_again")
    false = window(range(100, 110), vm_id="vm_2", values={"cpu_ns": [10**13] * 10})
    assert len((await made.submit([false])).refused) == 1
    decision = Decision(
        idempotency_key="k",
        window_id=false.window_id,
        content_sha256=b"",
        state=batch_pb.QuarantineState.RELEASED,
        note="It was so.",
        decided_by="op",
        decided_at_ns=1,
    )
    await made.quarantine.resolve(decision)
    await made.clock.advance(4 * 86_400)
    assert (await made.submit([window(range(1800, 1900))])).windows_late == 1
    meters = [Meter.NETWORK_OUT_P95, Meter.VCPU_USED]
    answers: list[Any] = [
        await made.usage.usage(MINE, TODAY, by_vm=True, step_ns=HOUR_NS),
        await made.usage.usage(MINE, TODAY, by_vm=True, meters=meters),
        await made.usage.usage(MINE, Interval(from_ns=EPOCH_AT_NS, to_ns=TODAY.to_ns)),
        await made.usage.completeness(MINE, TODAY),
        await made.usage.gaps(MINE, TODAY, 100, ("", 0, 0)),
        await made.usage.adjustments(MINE, TODAY, 100, (-1, "", 0, 0)),
        (await made.usage.preview(MINE, TODAY, by_vm=True)).lines,
    ]
    await made.clock.advance(10 * 86_400)
    answers.append(await made.retention.sweep())
    return answers


async def test_every_engine_gives_the_same_answers(tmp_path: Path, postgres_url: str) -> None:
    async with aggregator(tmp_path / "chdb-sqlite") as made:
        expected = await story(made)
    assert all(expected[:4])
    async with aggregator(tmp_path / "chdb-postgresql", database_url=postgres_url) as made:
        assert await story(made) == expected
    with clickhouse_server(tmp_path / "server") as front:
        engine: ClickHouseEngine = ServerEngine(front.url)
        async with aggregator(tmp_path / "server-sqlite", engine=engine) as made:
            assert await story(made) == expected


class Direct:
    """billaged's client, without a network between."""

    def __init__(self, ingest: Ingest) -> None:
        self._ingest = ingest

    async def submit_batch(
        self, request: batch_pb.SubmitBatchRequest, /
    ) -> batch_pb.SubmitBatchResponse:
        """Submit one batch."""
        await self._ingest.submit(request)
        return batch_pb.SubmitBatchResponse(outcome=batch_pb.BatchOutcome.ACCEPTED)


async def feed(collector: Collector, clock: FakeClock, first: int, count: int) -> None:
    """Ticks of one VM; the clock goes with them, and windows are closed."""

    async def ticks() -> AsyncIterator[meter_pb.StreamMetricsRequest]:
        attached = [attachment(0, "vm_1", 0)]
        yield said(0, hello(attached, run_id=f"run{first}"))
        for ordinal, seq in enumerate(range(first, first + count), 1):
            yield said(ordinal, tick(seq, [0]))
            if ordinal % 300 == 0:
                await collector.cut()

    async for _ in collector.stream(ticks()):
        pass
    await clock.advance(count / 10)
    await collector.cut()


async def in_vain(collector: Collector) -> None:
    """Ship while nobody takes anything."""
    with pytest.raises(Unavailable):
        await collector.shipper.ship()


async def test_a_clickhouse_that_is_down_for_an_hour_costs_nothing_but_time(
    tmp_path: Path,
) -> None:
    with clickhouse_server(tmp_path / "server") as front, ExitStack() as stack:
        engine = ServerEngine(front.url)
        async with aggregator(tmp_path, engine=engine) as made:
            clock = made.clock
            collector = Collector(
                directory=tmp_path / "billaged",
                settings=BillagedSettings(data_dir=tmp_path),
                batches=Direct(made.ingest),
                clock=clock,
            )
            collector.open()
            stack.callback(collector.log.close)
            await feed(collector, clock, 0, 1300)
            assert await collector.shipper.ship() == 2
            front.down = True
            for hour_part in range(3):
                await feed(collector, clock, 1300 + 1200 * hour_part, 1200)
                async with Tasks() as tasks:
                    shipping = tasks.start(in_vain(collector), name="ship")
                    while not shipping.done():
                        await clock.advance(0.5)
                        await asyncio.sleep(0.01)
                await clock.advance(1200)
            assert len(collector.outbox.waiting) >= 6
            with pytest.raises(Unavailable):
                await made.usage.usage(MINE, TODAY)
            front.down = False
            while collector.outbox.waiting:
                await collector.shipper.ship()
            whole = Interval(from_ns=EPOCH_AT_NS, to_ns=EPOCH_AT_NS + DAY_NS)
            used = {row.meter: row.quantity for row in await made.usage.usage(MINE, whole)}
            assert used[Meter.VCPU_USED] == reading("cpu_ns", 4899)
            [vm] = await made.usage.completeness(MINE, whole)
            assert (vm.expected, vm.received, vm.gaps) == (4900, 4900, {})
