from __future__ import annotations

from ironworks.aggregatord import statements
from ironworks.aggregatord.types import DAY_NS, HOUR_NS, UNITS, Interval, UsageFilter
from ironworks.testkit.aggregator import Aggregator
from ironworks.testkit.metering import EPOCH_AT_NS, reading, window

MINE = UsageFilter(tenant_id="tnt_a")
DAY = EPOCH_AT_NS // DAY_NS * DAY_NS
NEXT_HOUR = (HOUR_NS - EPOCH_AT_NS % HOUR_NS) // 100_000_000


def test_every_meter_that_is_counted_is_computed() -> None:
    assert statements.QUANTITIES.count("sum(") == len(UNITS)


async def test_only_the_hours_that_were_asked_for_are_computed(made: Aggregator) -> None:
    await made.clock.advance(7200)
    await made.submit([window(range(5)), window(range(NEXT_HOUR, NEXT_HOUR + 5))])
    hour = EPOCH_AT_NS // HOUR_NS * HOUR_NS
    await made.warehouse.roll_hours(["vm_1"], [hour + HOUR_NS], 1)
    rows = await made.engine.rows("SELECT DISTINCT start_ns FROM hourly_usage")
    assert rows == [[hour + HOUR_NS]]


async def test_rates_are_bytes_of_five_minutes(made: Aggregator) -> None:
    await made.clock.advance(7200)
    await made.submit([window(range(600)), window(range(6000, 6600))])
    await made.rollup.catch_up()
    rates = await made.warehouse.rates(MINE, Interval(from_ns=DAY, to_ns=DAY + DAY_NS), by_vm=True)
    sent = [bytes_sent for _, bytes_sent in sorted(rates["vm_1"].items())]
    first, last = reading("network_transmit_bytes", 599), reading("network_transmit_bytes", 6599)
    assert sent == [first, last - first]
