from __future__ import annotations

from ironworks.aggregatord import gap_store
from ironworks.aggregatord.types import CUMULATIVE, DAY_NS, Interval, UsageFilter, VmEpoch
from ironworks.testkit.aggregator import Aggregator
from ironworks.testkit.metering import EPOCH_AT_NS, window

MINE = UsageFilter(tenant_id="tnt_a")
DAY = Interval(
    from_ns=EPOCH_AT_NS // DAY_NS * DAY_NS, to_ns=EPOCH_AT_NS // DAY_NS * DAY_NS + DAY_NS
)
ONE = VmEpoch("vm_1", 1)


def idle(count: int) -> dict[str, list[int]]:
    """Readings of a VM that does nothing: only its samples may stand between others."""
    return {name: [10**9] * count for name in CUMULATIVE}


async def test_edges_are_where_windows_do_not_follow_each_other(made: Aggregator) -> None:
    await made.submit([window(range(3)), window(range(3, 6)), window([9, 19], values=idle(2))])
    await made.submit([window([12], values=idle(1))])
    found = await made.database.read(lambda c: gap_store.edges(c, MINE, DAY, ""))
    assert [(one.first_seq, one.last_seq, one.before_seq) for one in found] == [
        (0, 2, None),
        (9, 19, 5),
        (12, 12, 19),
    ]
    assert await made.database.read(lambda c: gap_store.edges(c, MINE, DAY, "vm_2")) == []


async def test_counts_and_what_was_before(made: Aggregator) -> None:
    bad = window([7, 8], values={"cpu_ns": [9, 1]})
    huge = window([5, 1 << 35])
    await made.submit([window([1, 2]), window([5]), bad, huge])
    [some] = await made.database.read(lambda c: gap_store.accepted_counts(c, MINE, DAY))
    assert (some.key, some.samples, some.first_seq, some.last_seq) == (ONE, 3, 1, 5)
    [kept] = await made.database.read(lambda c: gap_store.quarantined_counts(c, MINE, DAY))
    assert (kept.samples, kept.first_seq, kept.last_seq) == (2, 7, 8)
    [refused] = await made.database.read(lambda c: gap_store.refusals(c, MINE, DAY, ""))
    assert (refused.first_seq, refused.last_seq) == (7, 8)
    before = await made.database.read(lambda c: gap_store.last_seq_before(c, ONE, 5))
    assert before == 2
    assert await made.database.read(lambda c: gap_store.last_seq_before(c, ONE, 1)) is None
    ids = ["win_vm_1_1_5", "win_other"]
    assert await made.database.read(lambda c: gap_store.firsts(c, ids)) == {"win_vm_1_1_5": 5}
