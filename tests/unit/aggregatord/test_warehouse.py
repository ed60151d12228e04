from __future__ import annotations

from ironworks.aggregatord import decode, metering
from ironworks.aggregatord.types import (
    CUMULATIVE,
    DAY_NS,
    HOUR_NS,
    UNITS,
    Baseline,
    Growth,
    Interval,
    StoredWindow,
    UsageFilter,
    VmEpoch,
    Window,
)
from ironworks.gen.ironworks.aggregatord.v1 import batch_pb
from ironworks.gen.ironworks.aggregatord.v1.usage_pb import Meter
from ironworks.testkit.aggregator import Aggregator
from ironworks.testkit.metering import EPOCH_AT_NS, reading, window

DAY = EPOCH_AT_NS // DAY_NS * DAY_NS
HOUR = EPOCH_AT_NS // HOUR_NS * HOUR_NS
KEY, OTHER, UNKNOWN = VmEpoch("vm_1", 1), VmEpoch("vm_1", 2), VmEpoch("vm_x", 1)


async def put(made: Aggregator, *raws: batch_pb.Window) -> None:
    windows: list[Window] = []
    for raw in raws:
        one = decode.window_of(raw)
        assert isinstance(one, Window)
        windows.append(one)
    summaries = [metering.summarise(one) for one in windows]
    await made.warehouse.put_windows(
        windows,
        [StoredWindow(summary=one, growth=metering.growth(one, Baseline())) for one in summaries],
    )


async def test_what_is_before_and_behind_a_number(made: Aggregator) -> None:
    await put(
        made,
        window(range(5)),
        window(range(5, 10), absent_mask=[0b000001] * 5),
        window(range(20, 30)),
        window([40]),
        window(range(3), boot_epoch=2),
    )
    before = (await made.warehouse.before({KEY: 10}))[KEY]
    assert before.last_us == 9 * 100_000 + 100
    assert (before.last_seq, before.end_at_ns) == (9, EPOCH_AT_NS + 900_000_000)
    assert before.last["cpu_ns"] == reading("cpu_ns", 4), "the last one that was read"
    assert before.last["disk_read_bytes"] == reading("disk_read_bytes", 9)
    assert before.memory_last_bytes == reading("memory_bytes", 9)
    assert (await made.warehouse.before({OTHER: 100}))[OTHER].last["cpu_ns"] == reading("cpu_ns", 2)
    behind = (await made.warehouse.following({KEY: 9}, 10))[KEY]
    assert [one.summary.first_seq for one in behind] == [20, 40]
    assert len((await made.warehouse.following({KEY: -1}, 2))[KEY]) == 2


async def test_before_everything_nothing_is_known(made: Aggregator) -> None:
    await put(made, window(range(20, 30)))
    found = await made.warehouse.before({UNKNOWN: 5, KEY: 20})
    assert found == {UNKNOWN: Baseline(), KEY: Baseline()}, "a window is not before itself"


async def test_each_epoch_is_asked_for_at_its_own_place(made: Aggregator) -> None:
    await put(made, window([1]), window([5]), window([3], boot_epoch=2), window([7], boot_epoch=2))
    before = await made.warehouse.before({KEY: 5, OTHER: 7})
    assert (before[KEY].last_seq, before[OTHER].last_seq) == (1, 3)
    behind = await made.warehouse.following({KEY: 1, OTHER: 0}, 1)
    firsts = {key: [one.summary.first_seq for one in some] for key, some in behind.items()}
    assert firsts == {KEY: [5], OTHER: [3]}


async def test_rows_that_come_again_are_the_same_rows(made: Aggregator) -> None:
    for _ in range(3):
        await put(made, window(range(5)))
    assert await made.count("raw_samples") == 5
    assert await made.count("windows") == 1


async def test_the_growth_that_was_computed_last_counts(made: Aggregator) -> None:
    one = decode.window_of(window(range(5)))
    assert isinstance(one, Window)
    summary = metering.summarise(one)
    for version, elapsed_us in ((2, 7), (3, 9), (1, 5)):
        growth = Growth(elapsed_us=elapsed_us, held_byte_us=0, grown=dict.fromkeys(CUMULATIVE, 0))
        stored = StoredWindow(summary=summary, growth=growth, version=version)
        await made.warehouse.put_windows([], [stored])
    [found] = (await made.warehouse.following({KEY: -1}, 10))[KEY]
    assert (found.growth.elapsed_us, found.version) == (9, 3)


async def test_the_highest_version_of_a_rollup_counts(made: Aggregator) -> None:
    for version, last in ((1, 5), (2, 9)):
        await put(made, window(range(last)))
        await made.warehouse.roll_hours(["vm_1"], [HOUR], version)
        await made.warehouse.roll_days(["vm_1"], [DAY], version)
    rows = await made.warehouse.usage(
        "daily_usage",
        UsageFilter(tenant_id="tnt_a"),
        Interval(from_ns=DAY, to_ns=DAY + DAY_NS),
        by_vm=True,
        step_ns=DAY_NS,
    )
    read = {row.meter: row.quantity for row in rows}
    assert read[Meter.DISK_READ] == reading("disk_read_bytes", 8)
    assert await made.count("hourly_usage") == len(UNITS)


async def test_samples_that_are_not_what_windows_say_do_not_reconcile(made: Aggregator) -> None:
    await put(made, window(range(5)), window(range(5), vm_id="vm_2", absent_mask=[0b000100] * 5))
    assert await made.warehouse.unreconciled(DAY) == []
    await made.engine.execute("ALTER TABLE raw_samples DELETE WHERE vm_id = 'vm_2' AND seq = 3")
    for _ in range(200):
        if await made.warehouse.unreconciled(DAY):
            break
    assert await made.warehouse.unreconciled(DAY) == [VmEpoch("vm_2", 1)]


async def test_names_that_look_like_statements_are_only_names(made: Aggregator) -> None:
    evil = "x'); DROP TABLE raw_samples; --\\"
    chosen = UsageFilter(tenant_id=evil, vm_ids=(evil,), deployment_id=evil)
    day = Interval(from_ns=0, to_ns=DAY_NS)
    assert await made.warehouse.gap_counts(chosen, day) == {}
    assert await made.warehouse.usage_of_windows(chosen, day, by_vm=True, step_ns=0) == []
    assert await made.warehouse.declared(chosen, day, evil, 10) == []
    assert await made.count("raw_samples") == 0
