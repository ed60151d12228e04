from __future__ import annotations

from ironworks.aggregatord import decode, metering
from ironworks.aggregatord.types import (
    CUMULATIVE,
    DAY_NS,
    Interval,
    UsageFilter,
    UsageRecord,
    VmEpoch,
    Window,
)
from ironworks.gen.ironworks.aggregatord.v1 import batch_pb
from ironworks.gen.ironworks.aggregatord.v1.usage_pb import Meter
from ironworks.testkit.aggregator import Aggregator
from ironworks.testkit.metering import EPOCH_AT_NS, reading, window

DAY = EPOCH_AT_NS // DAY_NS * DAY_NS
KEY, OTHER = VmEpoch("vm_1", 1), VmEpoch("vm_1", 2)


async def put(made: Aggregator, *raws: batch_pb.Window) -> None:
    windows: list[Window] = []
    for raw in raws:
        one = decode.window_of(raw)
        assert isinstance(one, Window)
        windows.append(one)
    await made.warehouse.put_windows(windows, [metering.summarise(one) for one in windows])


async def test_what_is_around_an_interval(made: Aggregator) -> None:
    await put(
        made,
        window(range(5)),
        window(range(5, 10), absent_mask=[0b000001] * 5),
        window(range(20, 30)),
        window([40]),
        window(range(3), boot_epoch=2),
    )
    around = await made.warehouse.around({KEY: (10, 19), OTHER: (100, 100)})
    before, after = around[KEY]
    assert before.last_us == 9 * 100_000 + 100
    assert before.last["cpu_ns"] == reading("cpu_ns", 4), "the last one that was read"
    assert before.last["disk_read_bytes"] == reading("disk_read_bytes", 9)
    assert before.memory_last_bytes == reading("memory_bytes", 9)
    assert after == {name: reading(name, 20) for name in CUMULATIVE}
    before, after = around[OTHER]
    assert before.last["cpu_ns"] == reading("cpu_ns", 2)
    assert after == {}


async def test_before_everything_nothing_is_known(made: Aggregator) -> None:
    await put(made, window(range(20, 30)))
    assert await made.warehouse.around({}) == {}
    assert await made.warehouse.around({VmEpoch("vm_x", 1): (0, 1)}) == {}
    before, after = (await made.warehouse.around({KEY: (0, 19)}))[KEY]
    assert before.last_us is None
    assert before.last == {}
    assert after["cpu_ns"] == reading("cpu_ns", 20)
    assert await made.warehouse.around({KEY: (20, 29)}) == {}, "a window is not around itself"


async def test_rows_that_come_again_are_the_same_rows(made: Aggregator) -> None:
    for _ in range(3):
        await put(made, window(range(5)))
    assert await made.count("raw_samples") == 5
    assert await made.count("window_usage") == 1


async def test_the_highest_version_counts(made: Aggregator) -> None:
    def record(quantity: int) -> UsageRecord:
        return UsageRecord(
            tenant_id="tnt_a",
            deployment_id="dep_1",
            key=KEY,
            start_ns=DAY,
            quantities={Meter.DISK_READ: quantity},
        )

    for version, quantity in ((2, 1 << 90), (3, 7), (1, 5)):
        await made.warehouse.put_usage("daily_usage", [record(quantity)], version)
    rows = await made.warehouse.usage(
        "daily_usage",
        UsageFilter(tenant_id="tnt_a", deployment_id="dep_1"),
        Interval(from_ns=DAY, to_ns=DAY + DAY_NS),
        by_vm=True,
        step_ns=DAY_NS,
    )
    assert [(row.vm_id, row.meter, row.quantity) for row in rows] == [("vm_1", Meter.DISK_READ, 7)]


async def test_names_that_look_like_statements_are_only_names(made: Aggregator) -> None:
    evil = "x'); DROP TABLE raw_samples; --\\"
    chosen = UsageFilter(tenant_id=evil, vm_ids=(evil,), deployment_id=evil)
    day = Interval(from_ns=0, to_ns=DAY_NS)
    assert await made.warehouse.gap_counts(chosen, day) == {}
    assert await made.warehouse.summaries_in(chosen, day) == []
    assert await made.warehouse.gaps(chosen, day, 10, (evil, 0, 0)) == []
    assert await made.count("raw_samples") == 0
