from __future__ import annotations

from ironworks.aggregatord.types import CUMULATIVE, DAY_NS, Interval, UsageFilter, VmCompleteness
from ironworks.gen.ironworks.aggregatord.v1 import batch_pb
from ironworks.gen.ironworks.billaged.v1.samples_pb import GapReason
from ironworks.testkit.aggregator import Aggregator
from ironworks.testkit.metering import EPOCH_AT_NS, TICK_NS, window

MINE = UsageFilter(tenant_id="tnt_a")
DAY = Interval(
    from_ns=EPOCH_AT_NS // DAY_NS * DAY_NS, to_ns=EPOCH_AT_NS // DAY_NS * DAY_NS + DAY_NS
)
START = ("", 0, 0)
LATE, DOWN, OVERFLOW = (
    GapReason.SAMPLER_LATE,
    GapReason.AGENT_DOWN,
    GapReason.STREAM_OVERFLOW,
)
UNREADABLE, QUARANTINED, UNKNOWN = (
    GapReason.UNREADABLE,
    GapReason.QUARANTINED,
    GapReason.UNEXPLAINED,
)


async def answers(
    made: Aggregator, vm_id: str = "vm_1"
) -> tuple[VmCompleteness, list[tuple[int, int, int]]]:
    """How complete a VM is, and the list of what is missing, which must agree."""
    [vm] = [one for one in await made.usage.completeness(MINE, DAY) if one.vm_id == vm_id]
    listed = [one for one in await made.usage.gaps(MINE, DAY, 1000, START) if one.key[0] == vm_id]
    counts: dict[int, int] = {}
    for one in listed:
        counts[one.reason] = counts.get(one.reason, 0) + one.last_seq - one.first_seq + 1
        assert one.end_at_ns - one.start_at_ns == (one.last_seq - one.first_seq) * TICK_NS
        assert one.start_at_ns == EPOCH_AT_NS + one.first_seq * TICK_NS
    assert counts == vm.gaps
    assert sum(counts.values()) == vm.expected - vm.received
    return vm, [(one.first_seq, one.last_seq, one.reason) for one in listed]


def at_ns(seq: int) -> int:
    return EPOCH_AT_NS + seq * TICK_NS


async def test_each_kind_of_gap_has_its_reason(made: Aggregator) -> None:
    down = window([20, 21], gaps=[(10, 14, DOWN), (15, 19, OVERFLOW)])
    unread = window([30, 32], gaps=[(22, 25, UNREADABLE), (31, 31, LATE)])
    await made.submit([window(range(10)), down, unread])
    vm, gaps = await answers(made)
    assert gaps == [
        (10, 14, DOWN), (15, 19, OVERFLOW), (22, 25, UNREADABLE), (26, 29, UNKNOWN), (31, 31, LATE),
    ]  # fmt: skip
    assert vm.watermark_ns == at_ns(25)


async def test_what_no_window_has_is_missing_even_if_nobody_says_so(made: Aggregator) -> None:
    await made.submit([window([3, 4, 7], attached_seq=1), window([12], attached_seq=1)])
    vm, gaps = await answers(made)
    assert gaps == [(1, 2, UNKNOWN), (5, 6, UNKNOWN), (8, 11, UNKNOWN)]
    assert (vm.expected, vm.received, vm.watermark_ns) == (12, 4, at_ns(0))


async def test_what_was_lost_and_came_late_is_not_missing(made: Aggregator) -> None:
    idle = {name: [10**9] * 2 for name in CUMULATIVE}
    holed = window([10, 14], gaps=[(1, 9, DOWN), (11, 13, LATE)], values=idle)
    await made.submit([window([0]), holed])
    # One in the hole between windows, with a hole of its own; and one in the hole of a window.
    inside = window([12], values={name: [10**9] for name in CUMULATIVE})
    await made.submit([window([2, 3, 5], gaps=[(4, 4, LATE)]), inside])
    vm, gaps = await answers(made)
    assert gaps == [
        (1, 1, DOWN), (4, 4, LATE), (6, 9, DOWN), (11, 11, LATE), (13, 13, LATE),
    ]  # fmt: skip
    assert vm.watermark_ns == at_ns(14)


async def test_a_window_in_quarantine_is_missing_until_it_is_released(made: Aggregator) -> None:
    bad = window(range(10, 20), values={"cpu_ns": list(range(100, 0, -10))})
    await made.submit([window(range(10)), bad, window(range(20, 30), gaps=[(10, 19, DOWN)])])
    vm, gaps = await answers(made)
    assert gaps == [(10, 19, QUARANTINED)]
    assert (vm.quarantined, vm.watermark_ns) == (10, at_ns(9))


async def test_a_vm_of_which_all_is_in_quarantine_is_missing_whole(made: Aggregator) -> None:
    await made.submit([window([1, 2], values={"cpu_ns": [9, 1]})])
    vm, gaps = await answers(made)
    assert gaps == [(0, 0, UNKNOWN), (1, 2, QUARANTINED)]
    assert (vm.expected, vm.received, vm.watermark_ns) == (3, 0, at_ns(-1))


async def test_absurd_numbers_in_quarantine_say_nothing_of_what_was_expected(
    made: Aggregator,
) -> None:
    await made.submit([window(range(10)), window([5, 1 << 35], vm_id="vm_1", boot_epoch=1)])
    vm, gaps = await answers(made)
    assert (vm.expected, gaps) == (10, [])


async def test_after_the_grace_period_nothing_is_waited_for(made: Aggregator) -> None:
    await made.submit([window([0, 1]), window([5])])
    assert (await answers(made))[0].watermark_ns == at_ns(1)
    await made.clock.advance(4 * 86_400)
    assert (await answers(made))[0].watermark_ns == at_ns(5)


async def test_epochs_and_vms_are_apart_and_pages_go_on(made: Aggregator) -> None:
    windows: list[batch_pb.Window] = []
    for vm_id in ("vm_1", "vm_2"):
        for epoch in (1, 2):
            windows += [
                window([0, 2], vm_id=vm_id, boot_epoch=epoch),
                window([5], vm_id=vm_id, boot_epoch=epoch),
            ]
    await made.submit(windows)
    whole = await made.usage.gaps(MINE, DAY, 100, START)
    expected = [
        (vm, epoch, first) for vm in ("vm_1", "vm_2") for epoch in (1, 2) for first in (1, 3)
    ]
    assert [(*one.key, one.first_seq) for one in whole] == expected
    after = ("vm_1", 2, 1)
    rest = await made.usage.gaps(MINE, DAY, 3, after)
    assert [(*one.key, one.first_seq) for one in rest] == expected[3:7]
    alone = UsageFilter(tenant_id="tnt_a", vm_ids=("vm_2",))
    assert {one.key.vm_id for one in await made.usage.gaps(alone, DAY, 100, START)} == {"vm_2"}
    assert await made.usage.gaps(UsageFilter(tenant_id="tnt_b"), DAY, 100, START) == []
