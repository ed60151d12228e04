from __future__ import annotations

import pytest

from ironworks.aggregatord.retention import day_ns_of
from ironworks.aggregatord.types import DAY_NS, HOUR_NS, Interval, UsageFilter
from ironworks.testkit.aggregator import Aggregator
from ironworks.testkit.metering import EPOCH_AT_NS, window

MINE = UsageFilter(tenant_id="tnt_a")
DAY = EPOCH_AT_NS // DAY_NS * DAY_NS
TODAY = Interval(from_ns=DAY, to_ns=DAY + DAY_NS)
DAY_SECONDS = 86_400


def test_a_partition_is_a_utc_day() -> None:
    assert day_ns_of(20250615) == DAY
    assert day_ns_of(19700101) == 0


async def test_raw_samples_go_when_their_hours_are_there(made: Aggregator) -> None:
    await made.submit([window(range(600)), window(range(9), vm_id="vm_2")])
    before = await made.usage.usage(MINE, TODAY, by_vm=True, step_ns=HOUR_NS)
    await made.clock.advance(7 * DAY_SECONDS)
    assert (await made.retention.sweep())["dropped"] == 0, "the day has not been over for a week"
    await made.clock.advance(DAY_SECONDS)
    assert await made.retention.sweep() == {"dropped": 1, "waiting": 0, "unreconciled": 0}
    assert await made.count("raw_samples") == 0
    assert await made.usage.usage(MINE, TODAY, by_vm=True, step_ns=HOUR_NS) == before


async def test_raw_samples_wait_for_their_hours(made: Aggregator) -> None:
    await made.submit([window(range(600))])
    await made.clock.advance(9 * DAY_SECONDS)
    assert await made.retention.sweep() == {"dropped": 0, "waiting": 1, "unreconciled": 0}
    assert await made.count("raw_samples") == 600
    await made.rollup.catch_up()
    assert (await made.retention.sweep())["dropped"] == 1


async def test_samples_that_do_not_reconcile_stay_and_alarm(
    made: Aggregator, monkeypatch: pytest.MonkeyPatch
) -> None:
    await made.submit([window(range(600))])
    await made.rollup.catch_up()
    real = made.warehouse.unreconciled

    async def one_is_lost(day_ns: int) -> list[object]:
        return [*(await real(day_ns)), ("vm_1", 1)]

    monkeypatch.setattr(made.warehouse, "unreconciled", one_is_lost)
    await made.clock.advance(8 * DAY_SECONDS)
    assert (await made.retention.sweep())["unreconciled"] == 1
    assert made.retention.days_unreconciled == 1
    assert await made.count("raw_samples") == 600


async def test_windows_go_after_as_many_days_as_hours_are_kept(made: Aggregator) -> None:
    await made.submit([window(range(600))])
    await made.rollup.catch_up()
    await made.clock.advance(91 * DAY_SECONDS)
    assert (await made.retention.sweep())["dropped"] == 2
    assert await made.count("windows") == 0
    assert await made.count("daily_usage") > 0
