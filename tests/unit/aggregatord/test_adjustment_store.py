from __future__ import annotations

from ironworks.aggregatord import adjustment_store
from ironworks.aggregatord.types import DAY_NS, Interval, UsageFilter, UsageRecord, VmEpoch
from ironworks.gen.ironworks.aggregatord.v1.usage_pb import Meter
from ironworks.testkit.aggregator import Aggregator

ALL = Interval(from_ns=0, to_ns=10 * DAY_NS)


def day(vm_id: str, number: int, quantity: int) -> UsageRecord:
    return UsageRecord(
        tenant_id="tnt_a",
        deployment_id="dep_1",
        key=VmEpoch(vm_id, 1),
        start_ns=number * DAY_NS,
        quantities={Meter.DISK_READ: quantity, Meter.DISK_WRITE: 0},
    )


async def listed(
    made: Aggregator, chosen: UsageFilter, after: tuple[int, str, int, int] = (-1, "", 0, 0)
) -> list[tuple[str, int, int, int]]:
    found = await made.database.read(
        lambda c: adjustment_store.adjustments(c, chosen, ALL, 10, after)
    )
    return [(one.key.vm_id, one.day_ns // DAY_NS, one.settled, one.adjustment) for one in found]


async def test_the_difference_is_to_the_day_as_it_was_settled_first(made: Aggregator) -> None:
    mine = UsageFilter(tenant_id="tnt_a")
    for before, after in ((5, 9), (9, 1 << 100)):
        await made.database.write(
            lambda c, n=before: adjustment_store.settle(c, [day("vm_1", 1, n)])
        )
        await made.database.write(
            lambda c, n=after: adjustment_store.adjust(c, [day("vm_1", 1, n)], 77)
        )
    assert await listed(made, mine) == [("vm_1", 1, 5, (1 << 100) - 5)]


async def test_adjustments_come_in_order_and_nobody_else_s(made: Aggregator) -> None:
    days = [day("vm_1", 1, 1), day("vm_2", 1, 2), day("vm_1", 2, 3)]
    await made.database.write(lambda c: adjustment_store.settle(c, days))
    changed = [day(one.key.vm_id, one.start_ns // DAY_NS, 0) for one in days]
    await made.database.write(lambda c: adjustment_store.adjust(c, changed, 77))
    mine = UsageFilter(tenant_id="tnt_a")
    assert await listed(made, mine) == [
        ("vm_1", 1, 1, -1),
        ("vm_2", 1, 2, -2),
        ("vm_1", 2, 3, -3),
    ]
    after = (DAY_NS, "vm_1", 1, int(Meter.DISK_READ))
    assert [one[:2] for one in await listed(made, mine, after)] == [("vm_2", 1), ("vm_1", 2)]
    assert await listed(made, UsageFilter(tenant_id="tnt_b")) == []
    only = UsageFilter(tenant_id="tnt_a", vm_ids=("vm_2",), deployment_id="dep_1")
    assert [one[0] for one in await listed(made, only)] == ["vm_2"]
    other = UsageFilter(tenant_id="tnt_a", deployment_id="dep_2")
    assert await listed(made, other) == []
