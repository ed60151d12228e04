"""Hours, five-minute rates, days and billing records, computed anew when something has arrived.

Which hours are dirty stands in the ledger, in the transaction that accepted the window; an hour is
clean only when its rows are stored. A crash at any line repeats work, and its rows are a newer
version of the same.

A day is settled when its grace period has ended. What changes it later is an adjustment: the ledger
remembers the day as it was settled, before its rows are replaced.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ironworks.aggregatord import adjustment_store, decide, price_store, rating, store
from ironworks.aggregatord.store import DirtyHour
from ironworks.aggregatord.types import (
    DAY_NS,
    UNITS,
    AggregatordSettings,
    BillingRecord,
    Charge,
    Interval,
    PriceVersion,
    UsageRecord,
    VmEpoch,
)
from ironworks.aggregatord.warehouse import Warehouse
from ironworks.model.errors import FailedPrecondition, InvalidRequest
from ironworks.runtime.clock import Clock
from ironworks.storage.sql import Database

HOURS_AT_ONCE = 5_000
DAYS_AT_ONCE = 31
"""ClickHouse takes rows of at most 100 partitions at once."""


class Rollup:
    """Computes what is dirty."""

    def __init__(
        self,
        *,
        database: Database,
        warehouse: Warehouse,
        clock: Clock,
        settings: AggregatordSettings,
    ) -> None:
        self._database = database
        self._warehouse = warehouse
        self._clock = clock
        self._settings = settings
        self._turn = asyncio.Lock()

    async def catch_up(self) -> int:
        """Compute every hour that is dirty now; answers how many.

        Goes once over the hours in order: one that becomes dirty again behind it waits for the next
        time, so that it ends however fast batches come.
        """
        done = 0
        after: DirtyHour | None = None
        while computed := await self.step(after):
            done += len(computed)
            after = computed[-1]
        return done

    async def recompute(self, tenant_id: str, interval: Interval) -> int:
        """Compute all of these days anew from their windows; answers how many hours.

        Args:
            tenant_id: Of this tenant only; empty: of all.
            interval: Whole UTC days.

        Raises:
            InvalidRequest: it is empty or not made of whole days.
            FailedPrecondition: windows of the first day may be gone.
        """
        if not 0 <= interval.from_ns < interval.to_ns or not interval.aligned_to(DAY_NS):
            raise InvalidRequest("The interval is not made of whole UTC days.")
        kept_days = self._settings.usage_hourly_days
        if interval.from_ns < self._clock.now_ns() - (kept_days - 1) * DAY_NS:
            raise FailedPrecondition(
                f"Windows are kept for {kept_days} days; a day without all of them would shrink.",
                hint="Ask for a later interval.",
            )
        hours = await self._database.write(lambda c: store.mark_dirty(c, tenant_id, interval))
        await self.catch_up()
        return hours

    async def step(self, after: DirtyHour | None = None) -> list[DirtyHour]:
        """Compute some dirty hours, those behind `after`; answers which, in order."""
        async with self._turn:
            dirty = await self._database.read(lambda c: store.dirty_hours(c, HOURS_AT_ONCE, after))
            if not dirty:
                return []
            first_days = sorted({decide.day_of(one.hour_ns) for one in dirty})[:DAYS_AT_ONCE]
            dirty = [one for one in dirty if decide.day_of(one.hour_ns) in first_days]
            version = await self._database.write(lambda c: store.next_number(c, "rollup"))
            vm_ids = sorted({one.key.vm_id for one in dirty})
            # All hours of all these VMs: one that was clean gets the same rows again.
            hours_ns = sorted({one.hour_ns for one in dirty})
            settled = await self._settle(dirty, first_days)
            await self._warehouse.roll_hours(vm_ids, hours_ns, version)
            await self._warehouse.roll_days(vm_ids, first_days, version)
            days = await self._warehouse.days(vm_ids, first_days)
            await self._put_billing(days, version)
            if settled:
                changed = [one for one in days if (one.key, one.start_ns) in settled]
                now_ns = self._clock.now_ns()
                await self._database.write(lambda c: adjustment_store.adjust(c, changed, now_ns))
            await self._database.write(lambda c: store.clean_hours(c, dirty))
            return dirty

    async def _settle(
        self, dirty: Sequence[DirtyHour], days_ns: Sequence[int]
    ) -> set[tuple[VmEpoch, int]]:
        """Remember settled days that are about to change as they are now; answers which."""
        now_ns, hours = self._clock.now_ns(), self._settings.usage_grace_hours
        over = [day_ns for day_ns in days_ns if decide.is_settled(day_ns, now_ns, hours)]
        tenants = {
            (one.key, day_ns): one.tenant_id
            for one in dirty
            if (day_ns := decide.day_of(one.hour_ns)) in over
        }
        if not tenants:
            return set()
        vm_ids = sorted({key.vm_id for key, _ in tenants})
        known = {(one.key, one.start_ns): one for one in await self._warehouse.days(vm_ids, over)}
        days = [
            known.get(
                (key, day_ns),
                UsageRecord(
                    tenant_id=tenant_id,
                    deployment_id="",
                    key=key,
                    start_ns=day_ns,
                    quantities=dict.fromkeys(UNITS, 0),
                ),
            )
            for (key, day_ns), tenant_id in tenants.items()
        ]
        await self._database.write(lambda c: adjustment_store.settle(c, days))
        return set(tenants)

    async def _put_billing(self, days: Sequence[UsageRecord], version: int) -> None:
        prices: dict[tuple[str, int], PriceVersion | None] = {}
        records: list[BillingRecord] = []
        for day in days:
            at = (day.tenant_id, day.start_ns)
            if at not in prices:
                prices[at] = await self._database.read(
                    lambda c, at=at: price_store.version_at(c, *at)
                )
            found = prices[at]
            if found is not None:
                records += _billing(day, found)
        await self._warehouse.put_billing(records, version)


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
