"""Every ClickHouse statement of aggregatord: samples, summaries, hours, days, billing records."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ironworks.aggregatord.columns import (
    SUMMARY_NAMES,
    gap_columns,
    numbers,
    sample_columns,
    summary_columns,
    summary_of,
    texts,
    usage_columns,
)
from ironworks.aggregatord.schema import schema
from ironworks.aggregatord.store import DirtyHour, RefusedWindow
from ironworks.aggregatord.types import (
    CUMULATIVE,
    DAY_NS,
    HOUR_NS,
    AggregatordSettings,
    Baseline,
    BillingRecord,
    Interval,
    StoredGap,
    Summary,
    UsageFilter,
    UsageRecord,
    UsageRow,
    VmEpoch,
    Window,
)
from ironworks.gen.ironworks.aggregatord.v1.usage_pb import Meter
from ironworks.gen.ironworks.billaged.v1.samples_pb import LifecycleEvent
from ironworks.storage.clickhouse import ClickHouse, Column


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A window for the quarantine, with what it was sent as."""

    window: RefusedWindow
    batch_id: str
    content: bytes


class Warehouse:
    """The usage tables."""

    def __init__(self, engine: ClickHouse, settings: AggregatordSettings) -> None:
        self._engine = engine
        self._settings = settings

    async def prepare(self) -> None:
        """Make the tables that are absent."""
        for statement in schema(self._settings):
            await self._engine.execute(statement)

    # ── writing ────────────────────────────────────────────────────────────────────────────────

    async def put_windows(self, windows: Sequence[Window], summaries: Sequence[Summary]) -> None:
        """Store windows: raw samples, then what is missing, then summaries."""
        if windows:
            await self._engine.insert("raw_samples", sample_columns(windows))
            await self._engine.insert("gaps", gap_columns(windows))
            await self._engine.insert("window_usage", summary_columns(summaries))

    async def put_events(self, events: Sequence[LifecycleEvent]) -> None:
        """Store lifecycle events."""
        columns = [
            texts("tenant_id", [one.tenant_id for one in events]),
            texts("vm_id", [one.vm_id for one in events]),
            texts("reason", [one.reason[:256] for one in events]),
            numbers("Int64", "boot_epoch", [one.boot_epoch for one in events]),
            numbers("UInt8", "type", [int(one.type) for one in events]),
            numbers("Int64", "at_ns", [one.at_ns for one in events]),
            numbers("Int64", "vcpus", [one.vcpus for one in events]),
            numbers("Int64", "memory_bytes", [one.memory_bytes for one in events]),
            numbers("Int64", "disk_bytes", [one.disk_bytes for one in events]),
        ]
        await self._engine.insert("lifecycle_events", columns)

    async def put_quarantine(self, refused: Sequence[Refused], now_ns: int) -> None:
        """Store windows that are not billed, whole."""
        windows = [one.window for one in refused]
        columns = [
            texts("tenant_id", [one.tenant_id for one in windows]),
            texts("vm_id", [one.vm_id for one in windows]),
            texts("window_id", [one.window_id for one in windows]),
            texts("content_sha256", [one.content_sha256.hex() for one in windows]),
            texts("detail", [one.finding.detail for one in windows]),
            texts("batch_id", [one.batch_id for one in refused]),
            texts("payload_base64", [base64.b64encode(one.content).decode() for one in refused]),
            numbers("UInt8", "reason", [int(one.finding.reason) for one in windows]),
            numbers("Int64", "received_at_ns", [now_ns for _ in refused]),
        ]
        await self._engine.insert("quarantine", columns)

    async def put_usage(self, table: str, records: Sequence[UsageRecord], version: int) -> None:
        """Store a version of hours (`hourly_usage`) or days (`daily_usage`)."""
        rows = [(one, *item) for one in records for item in sorted(one.quantities.items())]
        await self._engine.insert(table, usage_columns(rows, version))

    async def put_billing(self, records: Sequence[BillingRecord], version: int) -> None:
        """Store a version of billing records."""
        rows = [(one.usage, one.meter, one.usage.quantities[one.meter]) for one in records]
        columns = [
            *usage_columns(rows, version),
            texts("price_version_id", [one.price_version_id for one in records]),
            texts("currency", [one.currency for one in records]),
            numbers("Int64", "price_nanos", [one.price_nanos for one in records]),
            Column(
                name="per_quantity", kind="Int128", values=[one.per_quantity for one in records]
            ),
            numbers("Int64", "amount_nanos", [one.amount_nanos for one in records]),
        ]
        await self._engine.insert("billing_records", columns)

    # ── reading ────────────────────────────────────────────────────────────────────────────────

    async def _summaries(self, where: str, parameters: Mapping[str, object]) -> list[Summary]:
        rows = await self._engine.rows(
            f"SELECT {', '.join(SUMMARY_NAMES)} FROM window_usage FINAL WHERE {where}"  # noqa: S608
            " ORDER BY vm_id, boot_epoch, first_seq",
            parameters,
        )
        return [summary_of(row) for row in rows]

    async def summaries_of_hours(self, hours: Sequence[DirtyHour]) -> list[Summary]:
        """Summaries of windows that begin in the given hours of the given epochs."""
        found: list[Summary] = []
        for hour_ns in sorted({one.hour_ns for one in hours}):
            found += await self._summaries(
                "vm_id IN {vms:Array(String)} AND start_at_ns >= {from:Int64}"
                " AND start_at_ns < {to:Int64}",
                {
                    "vms": sorted({one.key.vm_id for one in hours if one.hour_ns == hour_ns}),
                    "from": hour_ns,
                    "to": hour_ns + HOUR_NS,
                },
            )
        return found

    async def summaries_in(self, chosen: UsageFilter, interval: Interval) -> list[Summary]:
        """Summaries of windows that begin in an interval."""
        where, parameters = _selected(chosen, interval, "start_at_ns")
        return await self._summaries(where, parameters)

    async def around(
        self, bounds: Mapping[VmEpoch, tuple[int, int]]
    ) -> dict[VmEpoch, tuple[Baseline, dict[str, int | None]]]:
        """What epochs' windows say before and after an interval of numbers.

        Args:
            bounds: For each epoch, its interval's first and last number.

        Returns:
            Where the counters stood after all windows that begin before the interval, and the
            smallest first values of windows that begin after it (empty if there is none). Epochs
            without such windows are left out.
        """
        if not bounds:
            return {}
        names = [f"{key.vm_id}/{key.boot_epoch}" for key in bounds]
        lasts = ", ".join(f"maxIf(last_{name}, earlier)" for name in CUMULATIVE)
        firsts = ", ".join(f"minIf(first_{name}, later)" for name in CUMULATIVE)
        rows = await self._engine.rows(
            "WITH concat(toString(vm_id), '/', toString(boot_epoch)) AS name,"  # noqa: S608
            " first_seq < mapFromArrays({names:Array(String)}, {firsts:Array(Int64)})[name]"
            " AS earlier,"
            " first_seq > mapFromArrays({names:Array(String)}, {lasts:Array(Int64)})[name]"
            " AS later"
            " SELECT vm_id, boot_epoch, countIf(earlier), countIf(later), maxIf(last_us, earlier),"
            " maxIf(memory_last_us, earlier),"
            f" argMaxIf(memory_last_bytes, memory_last_us, earlier), {lasts}, {firsts}"
            " FROM window_usage WHERE vm_id IN {vms:Array(String)}"
            " AND has({names:Array(String)}, name) AND (earlier OR later)"
            " GROUP BY vm_id, boot_epoch",
            {
                "vms": sorted({key.vm_id for key in bounds}),
                "names": names,
                "firsts": [first for first, _ in bounds.values()],
                "lasts": [last for _, last in bounds.values()],
            },
        )
        return {VmEpoch(row[0], row[1]): _around(row[2:]) for row in rows}

    async def usage(
        self, table: str, chosen: UsageFilter, interval: Interval, *, by_vm: bool, step_ns: int
    ) -> list[UsageRow]:
        """Stored hours or days, added up; by step where `step_ns` is not 0."""
        where, parameters = _selected(chosen, interval, "start_ns")
        vm = "vm_id" if by_vm else "''"
        start = "start_ns" if step_ns else str(interval.from_ns)
        rows = await self._engine.rows(
            f"SELECT {start} AS at, {vm} AS vm, meter, sum(quantity) FROM {table} FINAL"  # noqa: S608
            f" WHERE {where} GROUP BY at, vm, meter ORDER BY at, vm, meter",
            parameters,
        )
        return [
            UsageRow(
                from_ns=row[0],
                to_ns=row[0] + step_ns if step_ns else interval.to_ns,
                tenant_id=chosen.tenant_id,
                vm_id=row[1],
                meter=Meter(row[2]),
                quantity=int(row[3]),
            )
            for row in rows
        ]

    async def hours_of_days(
        self, tenant_id: str, vm_ids: Sequence[str], day_ns: int
    ) -> list[UsageRecord]:
        """The hours of a day, added up by epoch: what the day's rows are made of."""
        rows = await self._engine.rows(
            "SELECT vm_id, boot_epoch, any(deployment_id), meter, sum(quantity)"
            " FROM hourly_usage FINAL WHERE tenant_id = {tenant:String}"
            " AND vm_id IN {vms:Array(String)}"
            " AND start_ns >= {from:Int64} AND start_ns < {to:Int64}"
            " GROUP BY vm_id, boot_epoch, meter ORDER BY vm_id, boot_epoch, meter",
            {"tenant": tenant_id, "vms": list(vm_ids), "from": day_ns, "to": day_ns + DAY_NS},
        )
        found: dict[VmEpoch, UsageRecord] = {}
        for vm_id, epoch, deployment_id, meter, quantity in rows:
            key = VmEpoch(vm_id, epoch)
            record = found.setdefault(
                key,
                UsageRecord(
                    tenant_id=tenant_id,
                    deployment_id=deployment_id,
                    key=key,
                    start_ns=day_ns,
                    quantities={},
                ),
            )
            record.quantities[Meter(meter)] = int(quantity)
        return list(found.values())

    async def gaps(
        self, chosen: UsageFilter, interval: Interval, limit: int, after: tuple[str, int, int]
    ) -> list[StoredGap]:
        """Gaps in an interval, by VM, epoch and number, after the given ones."""
        where, parameters = _selected(chosen, interval, "window_at_ns")
        rows = await self._engine.rows(
            "SELECT vm_id, boot_epoch, first_seq, last_seq, reason, start_at_ns, end_at_ns"  # noqa: S608
            f" FROM gaps FINAL WHERE {where} AND (vm_id, boot_epoch, first_seq) >"
            " ({after_vm:String}, {after_epoch:Int64}, {after_seq:Int64})"
            f" ORDER BY vm_id, boot_epoch, first_seq LIMIT {limit}",
            {
                **parameters,
                "after_vm": after[0],
                "after_epoch": after[1],
                "after_seq": after[2],
            },
        )
        return [
            StoredGap(
                key=VmEpoch(row[0], row[1]),
                first_seq=row[2],
                last_seq=row[3],
                reason=row[4],
                start_at_ns=row[5],
                end_at_ns=row[6],
            )
            for row in rows
        ]

    async def gap_counts(
        self, chosen: UsageFilter, interval: Interval
    ) -> dict[str, dict[int, int]]:
        """VM → reason → missing samples."""
        where, parameters = _selected(chosen, interval, "window_at_ns")
        rows = await self._engine.rows(
            "SELECT vm_id, reason, sum(last_seq - first_seq + 1) FROM gaps FINAL"  # noqa: S608
            f" WHERE {where} GROUP BY vm_id, reason",
            parameters,
        )
        counts: dict[str, dict[int, int]] = {}
        for vm_id, reason, samples in rows:
            counts.setdefault(vm_id, {})[reason] = int(samples)
        return counts


def _around(row: Sequence[Any]) -> tuple[Baseline, dict[str, int | None]]:
    earlier, later, last_us, memory_last_us, memory_last_bytes, *edges = row
    baseline = Baseline(
        last_us=last_us,
        memory_last_us=memory_last_us,
        memory_last_bytes=memory_last_bytes,
        last=dict(zip(CUMULATIVE, edges[: len(CUMULATIVE)], strict=True)),
    )
    firsts = zip(CUMULATIVE, edges[len(CUMULATIVE) :], strict=True)
    after: dict[str, int | None] = {str(name): value for name, value in firsts}
    return (baseline if earlier else Baseline()), (after if later else {})


def _selected(
    chosen: UsageFilter, interval: Interval, time_ns: str
) -> tuple[str, dict[str, object]]:
    where = [f"tenant_id = {{tenant:String}} AND {time_ns} >= {{from:Int64}}"]
    where.append(f"{time_ns} < {{to:Int64}}")
    parameters: dict[str, object] = {
        "tenant": chosen.tenant_id,
        "from": interval.from_ns,
        "to": interval.to_ns,
    }
    if chosen.vm_ids:
        where.append("vm_id IN {vms:Array(String)}")
        parameters["vms"] = list(chosen.vm_ids)
    if chosen.deployment_id:
        where.append("deployment_id = {deployment:String}")
        parameters["deployment"] = chosen.deployment_id
    return " AND ".join(where), parameters
