"""Every ClickHouse statement of aggregatord: samples, summaries, hours, days, billing records."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ironworks.aggregatord.columns import (
    WINDOW_NAMES,
    gap_columns,
    numbers,
    sample_columns,
    texts,
    usage_columns,
    window_columns,
    window_of,
)
from ironworks.aggregatord.quarantine_store import RefusedWindow
from ironworks.aggregatord.schema import drop_partition, partitions, schema
from ironworks.aggregatord.statements import QUANTITIES, ROLL_DAYS, ROLL_HOURS, ROLL_RATES
from ironworks.aggregatord.store import LedgerBatch
from ironworks.aggregatord.types import (
    CUMULATIVE,
    DAY_NS,
    HOUR_NS,
    READINGS,
    AggregatordSettings,
    Baseline,
    BillingRecord,
    Interval,
    StoredGap,
    StoredWindow,
    UsageFilter,
    UsageRecord,
    UsageRow,
    VmEpoch,
    Window,
)
from ironworks.gen.ironworks.aggregatord.v1.usage_pb import Meter
from ironworks.gen.ironworks.billaged.v1.samples_pb import LifecycleEvent
from ironworks.storage.clickhouse import ClickHouse
from ironworks.storage.native import Column


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
        await self._engine.prepare(schema(self._settings))

    # ── writing ────────────────────────────────────────────────────────────────────────────────

    async def put_windows(self, windows: Sequence[Window], stored: Sequence[StoredWindow]) -> None:
        """Store windows: raw samples, then what is missing, then what they add to usage.

        Args:
            windows: New windows.
            stored: What they add, and windows after them that now add something else.
        """
        if windows:
            # In the order of the table: sorting windows is cheap, sorting samples is not.
            windows = sorted(windows, key=lambda one: (one.key, one.first_seq))
            await self._engine.insert("raw_samples", sample_columns(windows))
            await self._engine.insert("gaps", gap_columns(windows))
        if stored:
            await self._engine.insert("windows", window_columns(stored))

    async def put_ledger(self, batch: LedgerBatch) -> None:
        """A copy of a ledger's entry beside the data, for whoever looks at them with SQL."""
        columns = [
            texts("batch_id", [batch.batch_id]),
            texts("host_id", [batch.host_id]),
            texts("content_sha256", [batch.content_sha256.hex()]),
            numbers("Int64", "accepted_at_ns", [batch.accepted_at_ns]),
            numbers("UInt32", "windows_accepted", [batch.windows_accepted]),
            numbers("UInt32", "windows_quarantined", [batch.windows_quarantined]),
            numbers("UInt32", "windows_late", [batch.windows_late]),
            numbers("UInt64", "samples_accepted", [batch.samples_accepted]),
        ]
        await self._engine.insert("ledger", columns)

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

    # ── rolling up ─────────────────────────────────────────────────────────────────────────────

    async def roll_hours(
        self, vm_ids: Sequence[str], hours_ns: Sequence[int], version: int
    ) -> None:
        """Compute hours and five-minute rates of these VMs anew, as rows of a higher version."""
        given = {"vms": list(vm_ids), "hours": list(hours_ns), "version": version}
        given |= {"from": min(hours_ns), "to": max(hours_ns) + HOUR_NS}
        await self._engine.execute(ROLL_HOURS, given)
        await self._engine.execute(ROLL_RATES, given)

    async def roll_days(self, vm_ids: Sequence[str], days_ns: Sequence[int], version: int) -> None:
        """Add hours up to days anew, as rows of a higher version."""
        given = {"vms": list(vm_ids), "days": list(days_ns), "version": version}
        given |= {"from": min(days_ns), "to": max(days_ns) + DAY_NS}
        await self._engine.execute(ROLL_DAYS, given)

    # ── reading ────────────────────────────────────────────────────────────────────────────────

    async def following(
        self, places: Mapping[VmEpoch, int], limit: int
    ) -> dict[VmEpoch, list[StoredWindow]]:
        """The next windows of epochs that begin after a number, in order, so many of each."""
        rows = await self._engine.rows(
            f"SELECT {', '.join(WINDOW_NAMES)} FROM windows FINAL {_PLACES}"  # noqa: S608
            " WHERE vm_id IN {vms:Array(String)} AND first_seq > place"
            f" ORDER BY vm_id, boot_epoch, first_seq LIMIT {limit} BY vm_id, boot_epoch",
            _places(places),
        )
        found: dict[VmEpoch, list[StoredWindow]] = {key: [] for key in places}
        for row in rows:
            stored = window_of(row)
            found[stored.summary.key].append(stored)
        return found

    async def payload_of(self, window_id: str, content_sha256: bytes) -> bytes | None:
        """What a window in quarantine was sent as."""
        rows = await self._engine.rows(
            "SELECT payload_base64 FROM quarantine FINAL WHERE window_id = {window:String}"
            " AND content_sha256 = {content:String}",
            {"window": window_id, "content": content_sha256.hex()},
        )
        return base64.b64decode(rows[0][0]) if rows else None

    async def before(self, places: Mapping[VmEpoch, int]) -> dict[VmEpoch, Baseline]:
        """Where epochs' counters stood after all windows that begin before a number."""
        lasts = ", ".join(f"max(last_{name})" for name in CUMULATIVE)
        rows = await self._engine.rows(
            "SELECT vm_id, boot_epoch, max(last_seq), argMax(end_at_ns, last_seq),"  # noqa: S608
            " max(last_us), max(memory_last_us), argMax(memory_last_bytes, memory_last_us),"
            f" {lasts} FROM windows {_PLACES}"
            " WHERE vm_id IN {vms:Array(String)} AND first_seq < place"
            " GROUP BY vm_id, boot_epoch",
            _places(places),
        )
        found = {key: Baseline() for key in places}
        for vm_id, epoch, last_seq, end_at_ns, last_us, memory_us, memory_bytes, *last in rows:
            found[VmEpoch(vm_id, epoch)] = Baseline(
                last_seq=last_seq,
                end_at_ns=end_at_ns,
                last_us=last_us,
                memory_last_us=memory_us,
                memory_last_bytes=memory_bytes,
                last=dict(zip(CUMULATIVE, last, strict=True)),
            )
        return found

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
        return _usage_rows(rows, chosen, interval, step_ns)

    async def usage_of_windows(
        self, chosen: UsageFilter, interval: Interval, *, by_vm: bool, step_ns: int
    ) -> list[UsageRow]:
        """Windows that begin in an interval, added up; by step where `step_ns` is not 0."""
        where, parameters = _selected(chosen, interval, "start_at_ns")
        vm = "vm_id" if by_vm else "''"
        start = f"intDiv(start_at_ns, {step_ns}) * {step_ns}" if step_ns else str(interval.from_ns)
        rows = await self._engine.rows(
            "SELECT at, vm, pair.1, pair.2 FROM"  # noqa: S608
            f" (SELECT {start} AS at, {vm} AS vm, {QUANTITIES} AS pairs FROM windows FINAL"
            f" WHERE {where} GROUP BY at, vm) ARRAY JOIN pairs AS pair ORDER BY at, vm, pair.1",
            parameters,
        )
        return _usage_rows(rows, chosen, interval, step_ns)

    async def rates(
        self, chosen: UsageFilter, interval: Interval, *, by_vm: bool
    ) -> dict[str, dict[int, int]]:
        """VM (empty: all together) → five minutes' begin → bytes sent; idle ones are left out."""
        where, parameters = _selected(chosen, interval, "start_ns")
        vm = "vm_id" if by_vm else "''"
        rows = await self._engine.rows(
            f"SELECT {vm} AS vm, start_ns, sum(toInt128(transmit_bytes)) AS sent"  # noqa: S608
            f" FROM five_minute_rates FINAL WHERE {where} GROUP BY vm, start_ns HAVING sent > 0",
            parameters,
        )
        found: dict[str, dict[int, int]] = {}
        for name, start_ns, sent in rows:
            found.setdefault(name, {})[start_ns] = int(sent)
        return found

    async def days(self, vm_ids: Sequence[str], days_ns: Sequence[int]) -> list[UsageRecord]:
        """Days as they are stored."""
        rows = await self._engine.rows(
            "SELECT tenant_id, vm_id, boot_epoch, deployment_id, start_ns, meter, quantity"
            " FROM daily_usage FINAL WHERE vm_id IN {vms:Array(String)}"
            " AND has({days:Array(Int64)}, start_ns) AND start_ns >= {from:Int64}"
            " AND start_ns < {to:Int64} ORDER BY vm_id, boot_epoch, start_ns, meter",
            {
                "vms": list(vm_ids),
                "days": list(days_ns),
                "from": min(days_ns),
                "to": max(days_ns) + DAY_NS,
            },
        )
        found: dict[tuple[VmEpoch, int], UsageRecord] = {}
        for tenant_id, vm_id, epoch, deployment_id, start_ns, meter, quantity in rows:
            record = UsageRecord(
                tenant_id=tenant_id,
                deployment_id=deployment_id,
                key=VmEpoch(vm_id, epoch),
                start_ns=start_ns,
                quantities={},
            )
            kept = found.setdefault((record.key, start_ns), record)
            kept.quantities[Meter(meter)] = int(quantity)
        return list(found.values())

    async def unreconciled(self, day_ns: int) -> list[VmEpoch]:
        """Epochs of which a day's raw samples do not say what its windows say; none if all is well.

        Compared are how many samples there are and where each counter began and ended.
        """
        # Rows of before a counter was there have it as 0: of its beginning they say nothing.
        always = CUMULATIVE[:-1]
        bits = {name: 1 << READINGS.index(name) for name in CUMULATIVE}
        edges = ", ".join(
            [f"min(first_{name})" for name in always]
            + [f"ifNull(max(last_{name}), 0)" for name in CUMULATIVE]
        )
        seen = ", ".join(
            [f"minOrNullIf({name}, bitAnd(absent_mask, {bits[name]}) = 0)" for name in always]
            + [
                f"ifNull(maxOrNullIf({name}, bitAnd(absent_mask, {bits[name]}) = 0), 0)"
                for name in CUMULATIVE
            ]
        )
        span = {"from": day_ns, "to": day_ns + DAY_NS}
        windows = await self._engine.rows(
            f"SELECT vm_id, boot_epoch, sum(sample_count), {edges} FROM windows FINAL"  # noqa: S608
            " WHERE start_at_ns >= {from:Int64} AND start_at_ns < {to:Int64}"
            " GROUP BY vm_id, boot_epoch ORDER BY vm_id, boot_epoch",
            span,
        )
        # A window's samples may end a little after midnight; they are of the day it begins on.
        samples = await self._engine.rows(
            f"SELECT vm_id, boot_epoch, count(), {seen} FROM raw_samples AS raw FINAL"  # noqa: S608
            " GLOBAL INNER JOIN"
            " (SELECT vm_id, boot_epoch, min(first_seq) AS low, max(last_seq) AS high"
            " FROM windows FINAL WHERE start_at_ns >= {from:Int64} AND start_at_ns < {to:Int64}"
            " GROUP BY vm_id, boot_epoch) AS span USING (vm_id, boot_epoch)"
            " WHERE tick_at_ns >= {from:Int64} AND tick_at_ns < {to:Int64} + 120000000000"
            " AND seq >= low AND seq <= high"
            " GROUP BY vm_id, boot_epoch ORDER BY vm_id, boot_epoch",
            span,
        )
        told = {VmEpoch(row[0], row[1]): row[2:] for row in samples}
        return [key for row in windows if told.get(key := VmEpoch(row[0], row[1])) != row[2:]]

    async def partitions(self, table: str) -> list[int]:
        """Days of a table, `yyyymmdd`."""
        rows = await self._engine.rows(partitions(table, self._settings.clickhouse_cluster))
        return [int(row[0]) for row in rows]

    async def drop(self, table: str, day: int) -> None:
        """Drop a day of a table."""
        await self._engine.execute(drop_partition(table, day, self._settings.clickhouse_cluster))

    async def declared(
        self, chosen: UsageFilter, interval: Interval, from_vm: str, limit: int
    ) -> list[tuple[StoredGap, str]]:
        """What windows of an interval say is missing, with the window's id, in order."""
        where, parameters = _selected(chosen, interval, "window_at_ns")
        rows = await self._engine.rows(
            "SELECT vm_id, boot_epoch, first_seq, last_seq, reason, start_at_ns, end_at_ns,"  # noqa: S608
            f" window_id FROM gaps FINAL WHERE {where} AND vm_id >= {{from_vm:String}}"
            f" ORDER BY vm_id, boot_epoch, first_seq LIMIT {limit}",
            {**parameters, "from_vm": from_vm},
        )
        return [
            (
                StoredGap(
                    key=VmEpoch(row[0], row[1]),
                    first_seq=row[2],
                    last_seq=row[3],
                    reason=row[4],
                    start_at_ns=row[5],
                    end_at_ns=row[6],
                ),
                row[7],
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


_PLACES = """GLOBAL INNER JOIN (SELECT at.1 AS vm_id, at.2 AS boot_epoch, at.3 AS place FROM
    (SELECT arrayJoin(arrayZip({vms:Array(String)}, {epochs:Array(Int64)},
    {places:Array(Int64)})) AS at)) AS late USING (vm_id, boot_epoch)"""
"""Joins a number to each of some epochs."""


def _places(places: Mapping[VmEpoch, int]) -> dict[str, object]:
    return {
        "vms": [key.vm_id for key in places],
        "epochs": [key.boot_epoch for key in places],
        "places": list(places.values()),
    }


def _usage_rows(
    rows: Sequence[Sequence[Any]], chosen: UsageFilter, interval: Interval, step_ns: int
) -> list[UsageRow]:
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
