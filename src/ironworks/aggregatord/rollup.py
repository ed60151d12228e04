"""Hours, days and billing records, computed anew whenever something arrived for their time.

Which hours are dirty stands in the ledger, in the transaction that accepted the window; an hour is
clean only when its rows are stored. A crash at any line repeats work, and its rows are a newer
version of the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ironworks.aggregatord import decide, metering, price_store, rating, store
from ironworks.aggregatord.store import DirtyHour
from ironworks.aggregatord.types import (
    DAY_NS,
    HOUR_NS,
    Baseline,
    BillingRecord,
    Charge,
    Interval,
    PriceVersion,
    Quantities,
    Summary,
    UsageRecord,
    VmEpoch,
)
from ironworks.aggregatord.warehouse import Warehouse
from ironworks.storage.sql import Database

HOURS_AT_ONCE = 2_000


class Rollup:
    """Computes what is dirty."""

    def __init__(self, *, database: Database, warehouse: Warehouse) -> None:
        self._database = database
        self._warehouse = warehouse
        self._turn = asyncio.Lock()

    async def catch_up(self) -> int:
        """Compute every hour that is dirty now; answers how many."""
        done = 0
        while count := await self.step():
            done += count
        return done

    async def step(self) -> int:
        """Compute some dirty hours; answers how many."""
        async with self._turn:
            dirty = await self._database.read(lambda c: store.dirty_hours(c, HOURS_AT_ONCE))
            if not dirty:
                return 0
            version = await self._database.write(lambda c: store.next_number(c, "rollup"))
            await self._hours(dirty, version)
            days = sorted({(one.tenant_id, decide.day_of(one.hour_ns)) for one in dirty})
            for tenant_id, day_ns in days:
                vm_ids = sorted(
                    {
                        one.key.vm_id
                        for one in dirty
                        if one.tenant_id == tenant_id and decide.day_of(one.hour_ns) == day_ns
                    }
                )
                await self._day(tenant_id, vm_ids, day_ns, version)
            await self._database.write(lambda c: store.clean_hours(c, dirty))
            return len(dirty)

    async def _hours(self, dirty: Sequence[DirtyHour], version: int) -> None:
        wanted = {(one.key, one.hour_ns) for one in dirty}
        by_hour: dict[int, dict[VmEpoch, list[Summary]]] = {}
        for summary in await self._warehouse.summaries_of_hours(dirty):
            hour_ns = summary.start_at_ns // HOUR_NS * HOUR_NS
            if (summary.key, hour_ns) in wanted:
                by_hour.setdefault(hour_ns, {}).setdefault(summary.key, []).append(summary)
        records: list[UsageRecord] = []
        for hour_ns, epochs in by_hour.items():
            around = await self._warehouse.around(
                {key: _bounds(summaries) for key, summaries in epochs.items()}
            )
            for key, summaries in epochs.items():
                before, _ = around.get(key, (Baseline(), {}))
                total: Quantities = {}
                for _, quantities in metering.usage_of(summaries, before):
                    metering.add(total, quantities)
                records.append(
                    UsageRecord(
                        tenant_id=summaries[0].tenant_id,
                        deployment_id=summaries[0].deployment_id,
                        key=key,
                        start_ns=hour_ns,
                        quantities=total,
                    )
                )
        await self._warehouse.put_usage("hourly_usage", records, version)

    async def _day(self, tenant_id: str, vm_ids: Sequence[str], day_ns: int, version: int) -> None:
        days = await self._warehouse.hours_of_days(tenant_id, vm_ids, day_ns)
        await self._warehouse.put_usage("daily_usage", days, version)
        prices = await self._database.read(lambda c: price_store.version_at(c, tenant_id, day_ns))
        if prices is not None:
            records = [record for day in days for record in _billing(day, prices)]
            await self._warehouse.put_billing(records, version)


def _bounds(summaries: Sequence[Summary]) -> tuple[int, int]:
    return (
        min(one.first_seq for one in summaries),
        max(one.last_seq for one in summaries),
    )


def _billing(day: UsageRecord, version: PriceVersion) -> list[BillingRecord]:
    """The day's usage with its prices; each amount is rounded by itself, for information.

    Invoices add up quantities and rate the sum: amounts of records never enter them.
    """
    interval = Interval(from_ns=day.start_ns, to_ns=day.start_ns + DAY_NS)
    records: list[BillingRecord] = []
    for price in version.prices:
        quantity = day.quantities.get(price.meter, 0)
        charge = Charge(
            price=price,
            version=version,
            vm_id=day.key.vm_id,
            interval=interval,
            quantity=quantity,
        )
        records.append(
            BillingRecord(
                usage=UsageRecord(
                    tenant_id=day.tenant_id,
                    deployment_id=day.deployment_id,
                    key=day.key,
                    start_ns=day.start_ns,
                    quantities={price.meter: quantity},
                ),
                meter=price.meter,
                price_version_id=version.price_version_id,
                price_nanos=price.nanos,
                per_quantity=price.per_quantity,
                currency=version.currency,
                amount_nanos=round(rating.exact_amount(charge)),
            )
        )
    return records
