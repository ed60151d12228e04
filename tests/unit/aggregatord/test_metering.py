from __future__ import annotations

from ironworks.aggregatord import decode, metering
from ironworks.aggregatord.types import UNITS, Baseline, Quantities, Summary, Window
from ironworks.gen.ironworks.aggregatord.v1 import batch_pb
from ironworks.gen.ironworks.aggregatord.v1.usage_pb import Meter
from ironworks.model.units import GIB, MIB, NS_PER_SECOND, NS_PER_US
from ironworks.testkit.metering import window

TICK_NS = 100_000_000


def summary(raw: batch_pb.Window) -> Summary:
    made = decode.window_of(raw)
    assert isinstance(made, Window)
    return metering.summarise(made)


def usage(*raws: batch_pb.Window, before: Baseline | None = None) -> Quantities:
    total: Quantities = {}
    for _, quantities in metering.usage_of([summary(raw) for raw in raws], before or Baseline()):
        metering.add(total, quantities)
    return total


def test_a_second_of_a_vm() -> None:
    used = usage(window(range(11)))
    assert used[Meter.VCPU_PROVISIONED] == 2 * NS_PER_SECOND
    assert used[Meter.VCPU_USED] == NS_PER_SECOND // 2
    assert used[Meter.MEMORY_PROVISIONED] == 256 * MIB * NS_PER_SECOND
    assert used[Meter.DISK_PROVISIONED] == GIB * NS_PER_SECOND
    assert used[Meter.DISK_READ] == 10 * 4096
    assert used[Meter.DISK_WRITE] == 10 * 8192
    assert used[Meter.NETWORK_IN] == 10 * 1500
    assert used[Meter.NETWORK_OUT] == 10 * 700
    assert set(used) == set(UNITS)


def test_memory_is_weighted_by_time_from_each_reading_to_the_next() -> None:
    raw = window([0, 1, 3], values={"memory_bytes": [10, 20, 30]}, offset_us=[0, 0, 0])
    assert usage(raw)[Meter.MEMORY_USED] == 10 * TICK_NS + 20 * 2 * TICK_NS


def test_a_memory_reading_holds_for_a_second_at_most() -> None:
    raw = window([0, 100], values={"memory_bytes": [10, 10]}, offset_us=[0, 0])
    assert usage(raw)[Meter.MEMORY_USED] == 10 * NS_PER_SECOND
    assert usage(raw)[Meter.MEMORY_PROVISIONED] == 256 * MIB * 10 * NS_PER_SECOND


def test_windows_in_a_row_are_as_one() -> None:
    whole = usage(window(range(30)))
    assert usage(window(range(10)), window(range(10, 17)), window(range(17, 30))) == whole
    assert usage(window(range(17, 30)), window(range(10)), window(range(10, 17))) == whole


def test_a_window_that_is_lost_takes_only_what_nobody_saw() -> None:
    whole, holed = usage(window(range(90))), usage(window(range(10)), window(range(80, 90)))
    assert {meter for meter in UNITS if whole[meter] != holed[meter]} == {Meter.MEMORY_USED}
    assert holed[Meter.MEMORY_USED] < whole[Meter.MEMORY_USED]


def test_an_absent_reading_is_not_zero() -> None:
    blind = window([1, 2, 3], values={"cpu_ns": [50, 0, 70]}, absent_mask=[0, 1, 0])
    assert usage(blind)[Meter.VCPU_USED] == 20
    never = window([1, 2], absent_mask=[1, 1])
    assert usage(never)[Meter.VCPU_USED] == 0
    assert summary(never).first["cpu_ns"] is None


def test_a_window_without_a_reading_does_not_break_the_sum() -> None:
    blind = window([2, 3], absent_mask=[1, 1])
    first = window([0, 1], values={"cpu_ns": [0, 10]})
    last = window([4, 5], values={"cpu_ns": [60, 70]})
    assert usage(first, blind, last)[Meter.VCPU_USED] == 70


def test_the_first_sample_of_an_epoch_is_its_origin() -> None:
    assert usage(window([5], values={"cpu_ns": [NS_PER_SECOND]}))[Meter.VCPU_USED] == 0


def test_usage_goes_on_from_the_baseline() -> None:
    before = Baseline(
        last_us=0,
        memory_last_us=0,
        memory_last_bytes=7,
        last={"cpu_ns": 5, "disk_read_bytes": None},
    )
    raw = window([1], values={"cpu_ns": [25], "memory_bytes": [100]}, offset_us=[0])
    used = usage(raw, before=before)
    assert used[Meter.VCPU_USED] == 20
    assert used[Meter.VCPU_PROVISIONED] == 2 * TICK_NS
    assert used[Meter.MEMORY_USED] == 7 * 100_000 * NS_PER_US
