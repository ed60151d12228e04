"""Use cases of usage, completeness and invoices: read, add up, rate."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Sequence
from importlib import resources

from ironworks.aggregatord import adjustment_store, decide, price_store, rating
from ironworks.aggregatord.gaps import Gaps
from ironworks.aggregatord.rollup import Rollup
from ironworks.aggregatord.types import (
    DAY_NS,
    FIVE_MINUTES_NS,
    HOUR_NS,
    UNITS,
    Adjustment,
    AggregatordSettings,
    Charge,
    Interval,
    InvoiceDraft,
    PriceVersion,
    StoredGap,
    UsageFilter,
    UsageRow,
    VmCompleteness,
)
from ironworks.aggregatord.warehouse import Warehouse
from ironworks.gen.ironworks.aggregatord.v1.usage_pb import Meter
from ironworks.model.errors import FailedPrecondition, InvalidRequest
from ironworks.model.ids import derived_id
from ironworks.model.units import NS_PER_DAY, NS_PER_SECOND
from ironworks.runtime.clock import Clock
from ironworks.storage.sql import Database

MAX_ROWS = 10_000
MAX_EXPORT_ROWS = 1_000_000
MAX_VMS = 1_000
MINUTE_NS = 60 * NS_PER_SECOND


def default_plan() -> tuple[PriceVersion, str]:
    """The price plan that a new platform begins with, and its description."""
    text = resources.files("ironworks.aggregatord").joinpath("plans/default-v1.toml").read_text()
    plan = tomllib.loads(text)
    plan_id = derived_id("pln", "default")
    version = PriceVersion(
        price_version_id=derived_id("pln", "default", "1"),
        price_plan_id=plan_id,
        plan_name=plan["name"],
        currency=plan["currency"],
        version=1,
        effective_at_ns=0,
        prices=price_store.prices_from(plan["prices"]),
    )
    return version, plan["description"]


class Usage:
    """Answers what was used and what it costs."""

    def __init__(
        self,
        *,
        database: Database,
        warehouse: Warehouse,
        rollup: Rollup,
        clock: Clock,
        settings: AggregatordSettings,
    ) -> None:
        self._database = database
        self._warehouse = warehouse
        self._rollup = rollup
        self._clock = clock
        self._settings = settings
        self._gaps = Gaps(
            database=database,
            warehouse=warehouse,
            clock=clock,
            grace_hours=settings.usage_grace_hours,
        )

    async def begin(self) -> None:
        """Make the default price plan if there is none."""
        version, description = default_plan()
        now_ns = self._clock.now_ns()
        await self._database.write(lambda c: price_store.put_plan(c, version, description, now_ns))

    # ── usage ──────────────────────────────────────────────────────────────────────────────────

    async def usage(
        self,
        chosen: UsageFilter,
        interval: Interval,
        *,
        step_ns: int = 0,
        by_vm: bool = False,
        meters: Collection[Meter] = (),
        limit: int = MAX_ROWS,
    ) -> list[UsageRow]:
        """Quantities in an interval, in steps of `step_ns` (0: in one piece); zeros left out.

        Raises:
            InvalidRequest: the interval is empty or not made of whole steps, or too many rows.
            FailedPrecondition: it reaches behind what is kept at this resolution.
        """
        _check(chosen, interval, step_ns)
        if not set(meters) <= {*UNITS, Meter.NETWORK_OUT_P95}:
            raise InvalidRequest("One of the meters is not counted by this version.")
        table, days = self._resolution(interval, step_ns)
        if interval.from_ns < self._clock.now_ns() - (days + 1) * NS_PER_DAY:
            raise FailedPrecondition(
                f"At this resolution usage is kept for {days} days.",
                hint="Ask for whole UTC days, or for a later interval.",
            )
        rows: list[UsageRow] = []
        if not meters or set(meters) - {Meter.NETWORK_OUT_P95}:
            rows = await self._counted(chosen, interval, table, step_ns, by_vm=by_vm)
        rows = [row for row in rows if row.quantity and (not meters or row.meter in meters)]
        if Meter.NETWORK_OUT_P95 in meters:
            rows += await self._bursts(chosen, interval, step_ns, by_vm=by_vm)
        if len(rows) > limit:
            raise InvalidRequest(
                f"The answer would have more than {limit:,} rows.",
                hint="Ask for a shorter interval, longer steps, or without VMs.",
            )
        return sorted(rows, key=lambda row: (row.from_ns, row.vm_id, row.meter))

    def _resolution(self, interval: Interval, step_ns: int) -> tuple[str, int]:
        """The table that answers, none for windows themselves, and for how many days it is kept."""
        if interval.aligned_to(DAY_NS) and step_ns in {0, DAY_NS}:
            return "daily_usage", self._settings.usage_daily_days
        if interval.aligned_to(HOUR_NS) and step_ns in {0, HOUR_NS}:
            return "hourly_usage", self._settings.usage_hourly_days
        return "", self._settings.usage_hourly_days

    async def _counted(
        self, chosen: UsageFilter, interval: Interval, table: str, step_ns: int, *, by_vm: bool
    ) -> list[UsageRow]:
        if not table:
            # Exact to the window, for intervals that are not of whole hours.
            return await self._warehouse.usage_of_windows(
                chosen, interval, by_vm=by_vm, step_ns=step_ns
            )
        await self._rollup.catch_up()
        return await self._warehouse.usage(table, chosen, interval, by_vm=by_vm, step_ns=step_ns)

    async def _bursts(
        self, chosen: UsageFilter, interval: Interval, step_ns: int, *, by_vm: bool
    ) -> list[UsageRow]:
        """95th percentiles of the five-minute rates, of the whole or of each day."""
        if step_ns not in {0, DAY_NS}:
            raise InvalidRequest("A 95th percentile is of a whole interval, or of days.")
        oldest_ns = self._clock.now_ns() - (self._settings.usage_hourly_days + 1) * NS_PER_DAY
        if interval.from_ns < oldest_ns:
            raise FailedPrecondition(
                f"Five-minute rates are kept for {self._settings.usage_hourly_days} days."
            )
        await self._rollup.catch_up()
        rates = await self._warehouse.rates(chosen, interval, by_vm=by_vm)
        length_ns = step_ns or interval.to_ns - interval.from_ns
        found: list[UsageRow] = []
        for from_ns in range(interval.from_ns, interval.to_ns, length_ns):
            past_ns = min(from_ns + length_ns, self._clock.now_ns())
            count = max(0, _fives(past_ns) - _fives(from_ns))
            for vm_id, sent in rates.items():
                inside = [n for at, n in sent.items() if from_ns <= at < from_ns + length_ns]
                burst = decide.percentile_95(inside, max(count, len(inside)))
                if burst:
                    found.append(
                        UsageRow(
                            from_ns=from_ns,
                            to_ns=from_ns + length_ns,
                            tenant_id=chosen.tenant_id,
                            vm_id=vm_id,
                            meter=Meter.NETWORK_OUT_P95,
                            quantity=burst * 8 * NS_PER_SECOND // FIVE_MINUTES_NS,
                        )
                    )
        return found

    async def recompute(self, tenant_id: str, interval: Interval) -> int:
        """Compute the rollups of whole days anew; answers how many hours. See `Rollup`."""
        return await self._rollup.recompute(tenant_id, interval)

    # ── completeness ───────────────────────────────────────────────────────────────────────────

    async def completeness(self, chosen: UsageFilter, interval: Interval) -> list[VmCompleteness]:
        """Samples expected, received and missing of each VM that has any, ordered by id."""
        _check(chosen, interval, 0)
        return await self._gaps.completeness(chosen, interval)

    async def gaps(
        self, chosen: UsageFilter, interval: Interval, limit: int, after: tuple[str, int, int]
    ) -> list[StoredGap]:
        """One page of gaps and one more, by VM, epoch and number."""
        _check(chosen, interval, 0)
        return (await self._gaps.listed(chosen, interval, after))[: limit + 1]

    async def adjustments(
        self,
        chosen: UsageFilter,
        interval: Interval,
        limit: int,
        after: tuple[int, str, int, int],
    ) -> list[Adjustment]:
        """One page of adjustments and one more, by day, VM, epoch and meter."""
        _check(chosen, interval, 0)
        await self._rollup.catch_up()
        return await self._database.read(
            lambda c: adjustment_store.adjustments(c, chosen, interval, limit + 1, after)
        )

    # ── invoices ───────────────────────────────────────────────────────────────────────────────

    async def preview(
        self, chosen: UsageFilter, interval: Interval, *, by_vm: bool
    ) -> InvoiceDraft:
        """What a tenant would be charged for an interval.

        Raises:
            InvalidRequest, FailedPrecondition: as `usage`.
        """
        _check(chosen, interval, 0)
        timeline = await self._database.read(
            lambda c: price_store.timeline(c, chosen.tenant_id, interval)
        )
        charges: list[Charge] = []
        for piece, version in timeline:
            rows = await self.usage(chosen, piece, by_vm=by_vm)
            charges += _charges(rows, version, piece)
        lines, total_nanos = rating.rate(charges)
        newest = timeline[-1][1] if timeline else default_plan()[0]
        return InvoiceDraft(
            tenant_id=chosen.tenant_id,
            interval=interval,
            currency=newest.currency,
            plan_name=newest.plan_name,
            lines=lines,
            total_nanos=total_nanos,
            completeness=tuple(await self.completeness(chosen, interval)),
            computed_at_ns=self._clock.now_ns(),
        )


def _fives(at_ns: int) -> int:
    """How many five minutes have begun before a time."""
    return -(-at_ns // FIVE_MINUTES_NS)


def _check(chosen: UsageFilter, interval: Interval, step_ns: int) -> None:
    if not 0 <= interval.from_ns < interval.to_ns:
        raise InvalidRequest("The interval must begin before it ends.")
    if step_ns and not interval.aligned_to(step_ns):
        raise InvalidRequest("The interval is not made of whole UTC steps.")
    if len(chosen.vm_ids) > MAX_VMS:
        raise InvalidRequest(f"At most {MAX_VMS} VMs can be asked for at once.")


def _charges(rows: Sequence[UsageRow], version: PriceVersion, interval: Interval) -> list[Charge]:
    """What has a price, ordered by meter and VM."""
    prices = {price.meter: price for price in version.prices}
    return [
        Charge(
            price=prices[row.meter],
            version=version,
            vm_id=row.vm_id,
            interval=interval,
            quantity=row.quantity,
        )
        for row in sorted(rows, key=lambda row: (row.meter, row.vm_id))
        if row.meter in prices
    ]
