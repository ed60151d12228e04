from __future__ import annotations

import pytest

from ironworks.aggregatord.app import MINUTE_NS
from ironworks.aggregatord.types import DAY_NS, HOUR_NS, Interval, UsageFilter, UsageRow
from ironworks.gen.ironworks.aggregatord.v1.usage_pb import Meter
from ironworks.gen.ironworks.billaged.v1.samples_pb import GapReason
from ironworks.model.errors import FailedPrecondition, InvalidRequest
from ironworks.model.units import NS_PER_SECOND
from ironworks.testkit.aggregator import Aggregator
from ironworks.testkit.metering import EPOCH_AT_NS, window

MINE = UsageFilter(tenant_id="tnt_a")


def around(step_ns: int) -> Interval:
    start = EPOCH_AT_NS // step_ns * step_ns
    return Interval(from_ns=start, to_ns=start + step_ns)


RAGGED = Interval(from_ns=EPOCH_AT_NS - 1, to_ns=EPOCH_AT_NS + HOUR_NS)


def sums(rows: list[UsageRow]) -> dict[Meter, int]:
    found: dict[Meter, int] = {}
    for row in rows:
        found[row.meter] = found.get(row.meter, 0) + row.quantity
    return found


async def filled(made: Aggregator) -> None:
    """Two VMs over two minutes, and another tenant's."""
    for vm_id in ("vm_1", "vm_2"):
        await made.submit([window(range(600), vm_id=vm_id)])
        await made.submit([window(range(600, 1200), vm_id=vm_id)])
    await made.submit([window(range(600), vm_id="vm_9", tenant_id="tnt_b")])


async def test_every_way_to_ask_adds_up_to_the_same(made: Aggregator) -> None:
    await filled(made)
    whole = sums(await made.usage.usage(MINE, RAGGED))
    assert whole[Meter.VCPU_PROVISIONED] == 2 * 2 * 1199 * 100_000_000
    for interval, step_ns in (
        (around(HOUR_NS), 0),
        (around(HOUR_NS), HOUR_NS),
        (around(HOUR_NS), MINUTE_NS),
        (around(DAY_NS), 0),
        (around(DAY_NS), DAY_NS),
        (around(DAY_NS), HOUR_NS),
    ):
        for by_vm in (False, True):
            rows = await made.usage.usage(MINE, interval, step_ns=step_ns, by_vm=by_vm)
            assert sums(rows) == whole, (interval, step_ns, by_vm)
            assert {row.vm_id for row in rows} == ({"vm_1", "vm_2"} if by_vm else {""})


async def test_steps_tell_when(made: Aggregator) -> None:
    await filled(made)
    rows = await made.usage.usage(
        MINE, around(HOUR_NS), step_ns=MINUTE_NS, meters=[Meter.VCPU_USED]
    )
    assert [(row.from_ns, row.to_ns, row.quantity) for row in rows] == [
        (EPOCH_AT_NS, EPOCH_AT_NS + MINUTE_NS, 2 * 599 * 50_000_000),
        (EPOCH_AT_NS + MINUTE_NS, EPOCH_AT_NS + 2 * MINUTE_NS, 2 * 600 * 50_000_000),
    ]


async def test_a_filter_selects(made: Aggregator) -> None:
    await filled(made)
    one = UsageFilter(tenant_id="tnt_a", vm_ids=("vm_1",))
    assert (
        2 * sums(await made.usage.usage(one, RAGGED))[Meter.VCPU_USED]
        == (sums(await made.usage.usage(MINE, RAGGED))[Meter.VCPU_USED])
    )
    foreign = UsageFilter(tenant_id="tnt_a", vm_ids=("vm_9",))
    for interval in (RAGGED, around(HOUR_NS)):
        assert await made.usage.usage(foreign, interval) == []
    nowhere = UsageFilter(tenant_id="tnt_a", deployment_id="dep_x")
    assert await made.usage.usage(nowhere, RAGGED) == []


async def test_what_comes_late_changes_hours_and_days(made: Aggregator) -> None:
    await made.submit([window(range(10))])
    before = sums(await made.usage.usage(MINE, around(DAY_NS)))
    await made.submit([window(range(20, 30))])
    assert await made.rollup.catch_up() == 1
    await made.submit([window(range(10, 20))])
    assert await made.rollup.catch_up() == 1
    assert await made.rollup.catch_up() == 0
    after = sums(await made.usage.usage(MINE, around(DAY_NS)))
    assert after == sums(await made.usage.usage(MINE, RAGGED))
    assert after[Meter.VCPU_USED] == 29 * 50_000_000 > before[Meter.VCPU_USED]
    versions = await made.engine.rows("SELECT count(DISTINCT version) FROM hourly_usage")
    assert versions != [[0]]


async def test_growth_across_the_hour_is_counted_where_it_is_seen(made: Aggregator) -> None:
    to_next_hour = (HOUR_NS - EPOCH_AT_NS % HOUR_NS) // 100_000_000
    await made.clock.advance(3700)
    seq = to_next_hour
    await made.submit([window(range(seq, seq + 10))])
    await made.submit([window(range(seq - 10, seq))])
    first, second = around(HOUR_NS), around(HOUR_NS)
    second = Interval(from_ns=first.to_ns, to_ns=first.to_ns + HOUR_NS)
    early = sums(await made.usage.usage(MINE, first))[Meter.VCPU_USED]
    later = sums(await made.usage.usage(MINE, second))[Meter.VCPU_USED]
    assert (early, later) == (9 * 50_000_000, 10 * 50_000_000)


async def test_bad_questions_are_refused(made: Aggregator) -> None:
    ask = made.usage.usage
    with pytest.raises(InvalidRequest):
        await ask(MINE, Interval(from_ns=5, to_ns=5))
    with pytest.raises(InvalidRequest):
        await ask(MINE, RAGGED, step_ns=HOUR_NS)
    with pytest.raises(InvalidRequest):
        await ask(MINE, RAGGED, meters=[Meter.UNSPECIFIED])
    with pytest.raises(InvalidRequest):
        await ask(UsageFilter(tenant_id="tnt_a", vm_ids=("x",) * 1001), RAGGED)
    with pytest.raises(FailedPrecondition):
        await ask(MINE, Interval(from_ns=1, to_ns=EPOCH_AT_NS))


async def test_completeness_counts_from_the_attachment(made: Aggregator) -> None:
    late, down = GapReason.SAMPLER_LATE, GapReason.AGENT_DOWN
    await made.submit(
        [window([5, 6, 9], attached_seq=4, gaps=[(4, 4, down), (7, 8, late)])], "bat_1"
    )
    await made.submit([window([12], attached_seq=4, gaps=[(10, 10, late)])], "bat_2")
    [vm] = await made.usage.completeness(MINE, RAGGED)
    assert (vm.expected, vm.received) == (9, 4)
    assert vm.gaps == {late: 3, down: 1, GapReason.UNEXPLAINED: 1}
    # Nobody knows of 11 whether it may still come.
    assert vm.watermark_ns == EPOCH_AT_NS + 10 * 100_000_000
    gaps = await made.usage.gaps(MINE, RAGGED, 10, ("", 0, 0))
    assert [(one.first_seq, one.last_seq) for one in gaps] == [(4, 4), (7, 8), (10, 10), (11, 11)]
    rest = await made.usage.gaps(MINE, RAGGED, 10, ("vm_1", 1, 4))
    assert [one.first_seq for one in rest] == [7, 10, 11]


async def test_a_later_interval_counts_from_the_window_before_it(made: Aggregator) -> None:
    await made.submit([window(range(600))])
    await made.submit([window(range(605, 700))])
    later = Interval(from_ns=EPOCH_AT_NS + 60 * NS_PER_SECOND, to_ns=RAGGED.to_ns)
    [vm] = await made.usage.completeness(MINE, later)
    assert (vm.expected, vm.received) == (100, 95)


async def test_an_invoice_shows_what_it_charges_and_how_complete_that_is(
    made: Aggregator,
) -> None:
    await filled(made)
    draft = await made.usage.preview(MINE, RAGGED, by_vm=False)
    assert draft.total_nanos == sum(line.amount_nanos for line in draft.lines)
    by_meter = {line.charge.price.meter: line for line in draft.lines}
    vcpu = by_meter[Meter.VCPU_PROVISIONED]
    assert vcpu.charge.quantity == 2 * 2 * 1199 * 100_000_000
    assert vcpu.amount_nanos in {2_797_666, 2_797_667}
    assert by_meter[Meter.NETWORK_IN].amount_nanos == 0
    assert Meter.VCPU_USED not in by_meter
    assert {line.charge.version.version for line in draft.lines} == {1}
    assert (draft.currency, draft.plan_name) == ("USD", "default")
    assert sum(one.received for one in draft.completeness) == 2400
    split = await made.usage.preview(MINE, RAGGED, by_vm=True)
    assert split.total_nanos == draft.total_nanos
    assert {line.charge.vm_id for line in split.lines} == {"vm_1", "vm_2"}


async def test_billing_records_are_kept_for_each_day_with_their_prices(made: Aggregator) -> None:
    await filled(made)
    await made.rollup.catch_up()
    rows = await made.engine.rows(
        "SELECT meter, sum(quantity), any(price_nanos), any(currency), any(price_version_id) != ''"
        " FROM billing_records FINAL WHERE tenant_id = 'tnt_a' GROUP BY meter ORDER BY meter"
    )
    [vcpu] = [row for row in rows if row[0] == Meter.VCPU_PROVISIONED]
    assert vcpu[1:] == [2 * 2 * 1199 * 100_000_000, 21_000_000, "USD", 1]


async def test_a_tenant_without_usage_owes_nothing(made: Aggregator) -> None:
    draft = await made.usage.preview(UsageFilter(tenant_id="tnt_new"), RAGGED, by_vm=False)
    assert (draft.lines, draft.total_nanos, draft.completeness) == ((), 0, ())
