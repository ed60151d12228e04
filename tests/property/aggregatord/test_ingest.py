"""Windows in any order, split over any batches, repeated: the same rows, usage and gaps."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ironworks.aggregatord.types import DAY_NS, HOUR_NS, Interval, UsageFilter
from ironworks.gen.ironworks.aggregatord.v1 import batch_pb
from ironworks.gen.ironworks.billaged.v1.samples_pb import GapReason
from ironworks.testkit.aggregator import Aggregator, aggregator
from ironworks.testkit.metering import EPOCH_AT_NS, window

MINE = UsageFilter(tenant_id="tnt_a")
START_NS = EPOCH_AT_NS // DAY_NS * DAY_NS
DAY = Interval(from_ns=START_NS, to_ns=START_NS + DAY_NS)
LATE = GapReason.SAMPLER_LATE


def all_windows() -> list[batch_pb.Window]:
    """Two VMs, one of which boots again; holes; windows in two hours."""
    next_hour = (HOUR_NS - EPOCH_AT_NS % HOUR_NS) // 100_000_000
    return [
        window(range(10)),
        window([10, 11, 15], gaps=[(12, 14, LATE)]),
        window(range(20, 25), gaps=[(16, 19, LATE)]),
        window(range(next_hour, next_hour + 5)),
        window(range(100, 105), boot_epoch=2, attached_seq=100),
        window(range(7), vm_id="vm_2"),
        window(range(7, 9), vm_id="vm_2"),
    ]


async def seen(made: Aggregator) -> list[Any]:
    """Everything that an answer can be made of."""
    ragged = Interval(from_ns=DAY.from_ns, to_ns=DAY.to_ns - 1)
    return [
        await made.engine.rows(
            "SELECT vm_id, boot_epoch, seq, cpu_ns FROM raw_samples FINAL"
            " ORDER BY vm_id, boot_epoch, seq"
        ),
        [await made.usage.usage(MINE, DAY, by_vm=True, step_ns=step) for step in (0, HOUR_NS)],
        [
            (row.vm_id, row.meter, row.quantity)
            for row in await made.usage.usage(MINE, ragged, by_vm=True)
        ],
        await made.usage.completeness(MINE, DAY),
        await made.usage.gaps(MINE, DAY, 100, ("", 0, 0)),
        (await made.usage.preview(MINE, DAY, by_vm=True)).lines,
    ]


async def after(deliveries: list[list[int]]) -> list[Any]:
    windows = all_windows()
    with tempfile.TemporaryDirectory() as directory:
        async with aggregator(Path(directory)) as made:
            await made.clock.advance(2 * 3600)
            for number, delivery in enumerate(deliveries):
                chosen = [windows[index] for index in delivery]
                outcome = await made.submit(chosen, f"bat_{number}")
                assert not outcome.refused
                if number % 2:
                    await made.rollup.catch_up()
            return await seen(made)


EXPECTED: list[Any] = []


@settings(max_examples=8)
@given(st.permutations(range(7)), st.data())
def test_any_delivery_ends_in_the_same_state(order: list[int], data: st.DataObject) -> None:
    if not EXPECTED:
        EXPECTED.extend(asyncio.run(after([[index] for index in range(7)])))
    deliveries: list[list[int]] = []
    rest = list(order)
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        deliveries.append(rest[:size])
        rest = rest[size:]
    repeats = data.draw(st.lists(st.sampled_from(order), max_size=4))
    deliveries.append(sorted(set(repeats)))
    assert asyncio.run(after(deliveries)) == EXPECTED
