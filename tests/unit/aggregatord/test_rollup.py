from __future__ import annotations

from pathlib import Path

import pytest

from ironworks.aggregatord import rollup, store
from ironworks.aggregatord.types import DAY_NS, HOUR_NS, Interval, UsageFilter
from ironworks.gen.ironworks.aggregatord.v1.usage_pb import Meter
from ironworks.model.errors import FailedPrecondition, InvalidRequest, Unavailable
from ironworks.testkit.aggregator import Aggregator, aggregator
from ironworks.testkit.metering import EPOCH_AT_NS, TICK_NS, window

MINE = UsageFilter(tenant_id="tnt_a")
START_NS = EPOCH_AT_NS // DAY_NS * DAY_NS
DAY = Interval(from_ns=START_NS, to_ns=START_NS + DAY_NS)


async def cpu(made: Aggregator, table: str) -> int:
    rows = await made.warehouse.usage(table, MINE, DAY, by_vm=False, step_ns=0)
    return sum(row.quantity for row in rows if row.meter == Meter.VCPU_USED)


async def test_a_clean_ledger_is_left_alone(made: Aggregator) -> None:
    assert await made.rollup.step() == []
    await made.submit([window(range(5))])
    assert len(await made.rollup.step()) == 1
    assert await made.rollup.step() == []


async def test_hours_days_and_records_say_the_same(made: Aggregator) -> None:
    await made.submit([window(range(10)), window(range(10, 20)), window(range(10), vm_id="vm_2")])
    await made.rollup.catch_up()
    expected = (19 + 9) * 50_000_000
    assert await cpu(made, "hourly_usage") == expected
    assert await cpu(made, "daily_usage") == expected
    rows = await made.engine.rows(
        "SELECT sum(quantity), sum(amount_nanos) > 0 FROM billing_records FINAL"
        " WHERE meter = {meter:UInt8}",
        {"meter": int(Meter.VCPU_PROVISIONED)},
    )
    assert rows == [[(19 + 9) * 2 * 100_000_000, 1]]


async def test_a_death_in_the_middle_is_made_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with aggregator(tmp_path) as first:
        await first.clock.advance(60)
        await first.submit([window(range(5))])

        async def dies(*_: object) -> None:
            raise Unavailable("killed between hours and days")

        monkeypatch.setattr(first.warehouse, "roll_days", dies)
        with pytest.raises(Unavailable):
            await first.rollup.step()
    async with aggregator(tmp_path) as second:
        await second.clock.advance(60)
        assert await cpu(second, "daily_usage") == 0
        assert await second.rollup.catch_up() == 1
        assert await cpu(second, "daily_usage") == 4 * 50_000_000
        assert await cpu(second, "hourly_usage") == 4 * 50_000_000


async def test_a_window_that_arrives_meanwhile_is_not_forgotten(
    made: Aggregator, monkeypatch: pytest.MonkeyPatch
) -> None:
    await made.submit([window(range(5))])
    real = made.warehouse.put_billing

    async def slow(*arguments: object) -> None:
        monkeypatch.undo()
        await made.submit([window(range(5, 10))])
        await real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(made.warehouse, "put_billing", slow)
    assert len(await made.rollup.step()) == 1
    left = await made.database.read(lambda c: store.dirty_hours(c, 10))
    assert len(left) == 1
    await made.rollup.catch_up()
    assert await cpu(made, "daily_usage") == 9 * 50_000_000


async def test_it_ends_however_fast_batches_come(
    made: Aggregator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollup, "HOURS_AT_ONCE", 2)
    vm_ids = [f"vm_{number}" for number in range(5)]
    await made.submit([window(range(5), vm_id=one) for one in vm_ids])
    real, firsts = made.warehouse.put_billing, iter(range(10, 1_000, 10))

    async def busy(*arguments: object) -> None:
        first = next(firsts)
        await made.submit([window(range(first, first + 5), vm_id="vm_0")])
        await real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(made.warehouse, "put_billing", busy)
    assert await made.rollup.catch_up() == 5
    left = await made.database.read(lambda c: store.dirty_hours(c, 10))
    assert [one.key.vm_id for one in left] == ["vm_0"], "what came meanwhile waits"


async def rolled(made: Aggregator) -> list[object]:
    """All rollups, without their versions."""
    return [
        await made.engine.rows(f"SELECT * EXCEPT version FROM {table} FINAL ORDER BY ALL")  # noqa: S608
        for table in ("five_minute_rates", "hourly_usage", "daily_usage", "billing_records")
    ]


async def test_rollups_computed_anew_are_the_same_whatever_was_there(made: Aggregator) -> None:
    await made.clock.advance(2 * 3600)
    later = HOUR_NS // TICK_NS
    other = window(range(5), vm_id="vm_2", tenant_id="tnt_b")
    await made.submit([window(range(10)), window([later, later + 9]), other])
    await made.rollup.catch_up()
    before = await rolled(made)
    assert await made.rollup.recompute("", DAY) == 3
    assert await rolled(made) == before
    for table in ("five_minute_rates", "hourly_usage", "daily_usage", "billing_records"):
        await made.engine.execute(f"TRUNCATE TABLE {table}")
    assert await made.rollup.recompute("tnt_a", DAY) == 2
    assert await made.rollup.recompute("tnt_b", DAY) == 1
    assert await rolled(made) == before


async def test_a_settled_day_that_is_computed_anew_has_no_adjustment(made: Aggregator) -> None:
    await made.submit([window(range(10))])
    await made.rollup.catch_up()
    await made.clock.advance(4 * 86_400)
    await made.rollup.recompute("", DAY)
    assert await made.usage.adjustments(MINE, DAY, 10, (-1, "", 0, 0)) == []


async def test_what_cannot_be_computed_whole_is_not_computed(made: Aggregator) -> None:
    with pytest.raises(InvalidRequest):
        await made.rollup.recompute("", Interval(from_ns=DAY.from_ns, to_ns=DAY.to_ns - 1))
    with pytest.raises(InvalidRequest):
        await made.rollup.recompute("", Interval(from_ns=DAY.to_ns, to_ns=DAY.from_ns))
    await made.clock.advance(90 * 86_400)
    with pytest.raises(FailedPrecondition, match="shrink"):
        await made.rollup.recompute("", DAY)
