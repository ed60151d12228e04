"""The tables of ClickHouse: codecs, daily partitions, expiry; one schema for all engines.

All tables replace rows of one sorting key, so any insert may be repeated; queries read them with
FINAL. Nothing is a materialized view: rollups are rows with a version, written by statements of
ours, and may be computed again from what is kept.

Expiry is by whole daily partitions. Where nothing depends on it, it is the engine's TTL, late by
nature: queries bound time themselves. Raw samples and windows are dropped by `retention` instead,
since a sample must not go before its hour is reconciled.

On a cluster each table is two: `NAME_local`, replicated, on every shard, and `NAME`, which spreads
rows over the shards by VM. So all rows of a key are on one shard, and FINAL is as true as on one
machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ironworks.aggregatord.columns import EDGES, GROWTH_NUMBERS, SUMMARY_NUMBERS
from ironworks.aggregatord.types import CUMULATIVE, AggregatordSettings

_DURABLE = "fsync_after_insert = 1, fsync_part_directory = 1"
_CUMULATIVE = [f"{name} UInt64 CODEC(Delta, ZSTD(1))" for name in CUMULATIVE]
_EDGES = [f"{name} Nullable(UInt64) CODEC(ZSTD(1))" for name in EDGES]
_GROWTH = [f"{name} Int64 CODEC(ZSTD(1))" for name in GROWTH_NUMBERS]
_NAMES = "tenant_id LowCardinality(String), vm_id LowCardinality(String)"
_USAGE = f"""{_NAMES}, deployment_id LowCardinality(String), boot_epoch Int64,
    start_ns Int64 CODEC(Delta, ZSTD(1)), meter UInt8, quantity Int128 CODEC(ZSTD(1)),
    version UInt64 CODEC(Delta, ZSTD(1))"""
_USAGE_ORDER = "tenant_id, vm_id, boot_epoch, start_ns, meter"
_SAMPLES = f"""{_NAMES}, boot_epoch Int64 CODEC(Delta, ZSTD(1)),
    seq Int64 CODEC(DoubleDelta, ZSTD(1)),
    tick_at_ns Int64 CODEC(DoubleDelta, ZSTD(1)),
    offset_us Int32 CODEC(T64, ZSTD(1)),
    memory_bytes UInt64 CODEC(Delta, ZSTD(1)), {", ".join(_CUMULATIVE)},
    absent_mask UInt8 CODEC(ZSTD(1)), vcpus UInt16 CODEC(ZSTD(1)),
    memory_limit_bytes UInt64 CODEC(Delta, ZSTD(1)),
    disk_limit_bytes UInt64 CODEC(Delta, ZSTD(1))"""
_WINDOWS = f"""{_NAMES}, deployment_id LowCardinality(String), window_id String,
    {", ".join(f"{name} Int64 CODEC(Delta, ZSTD(1))" for name in SUMMARY_NUMBERS)},
    memory_first_us Nullable(Int64), memory_last_us Nullable(Int64),
    memory_last_bytes Nullable(Int64), {", ".join(_EDGES)}, {", ".join(_GROWTH)},
    version UInt64"""
_RATES = f"""{_NAMES}, deployment_id LowCardinality(String), boot_epoch Int64,
    start_ns Int64 CODEC(Delta, ZSTD(1)), receive_bytes Int64 CODEC(ZSTD(1)),
    transmit_bytes Int64 CODEC(ZSTD(1)), version UInt64 CODEC(Delta, ZSTD(1))"""
_BILLING = f"""{_USAGE}, price_version_id LowCardinality(String), price_nanos Int64,
    per_quantity Int128, currency LowCardinality(String), amount_nanos Int64"""
_GAPS = f"""{_NAMES}, deployment_id LowCardinality(String), boot_epoch Int64,
    first_seq Int64, last_seq Int64, reason UInt8, start_at_ns Int64, end_at_ns Int64,
    window_at_ns Int64, window_id String"""
_EVENTS = f"""{_NAMES}, boot_epoch Int64, type UInt8, at_ns Int64, vcpus Int64,
    memory_bytes Int64, disk_bytes Int64, reason String"""
_QUARANTINE = f"""{_NAMES}, window_id String, content_sha256 String, batch_id String,
    reason UInt8, detail String, received_at_ns Int64, payload_base64 String CODEC(ZSTD(3))"""
_LEDGER = """batch_id String, host_id LowCardinality(String), content_sha256 String,
    accepted_at_ns Int64, windows_accepted UInt32, windows_quarantined UInt32,
    windows_late UInt32, samples_accepted UInt64"""

RECONCILED = ("raw_samples", "windows")
"""Tables whose partitions go only when `retention` has seen that nothing needs them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSpec:
    """One table.

    Attributes:
        name: Its name, where a service reads and writes it.
        columns: Names, types and codecs.
        order: Its sorting key: rows that agree in it replace each other.
        time_ns: The column that its partitions and expiry go by, UTC nanoseconds.
        days: For how long the engine keeps a partition; 0: until somebody drops it.
        version: The column of which the highest row counts; empty: all rows of a key are equal.
        shard: What spreads its rows over the shards of a cluster.
        added: Columns that the table did not have from the first version on.
    """

    name: str
    columns: str
    order: str
    time_ns: str
    days: int = 0
    version: str = ""
    shard: str = "cityHash64(vm_id)"
    added: Sequence[str] = ()

    def _body(self, engine: str) -> str:
        at = f"toDateTime(intDiv({self.time_ns}, 1000000000), 'UTC')"
        expiry = f"TTL {at} + INTERVAL {self.days} DAY" if self.days else ""
        return f"""({self.columns})
            ENGINE = {engine}
            PARTITION BY toYYYYMMDD({at})
            ORDER BY ({self.order})
            {expiry}
            SETTINGS ttl_only_drop_parts = 1, {_DURABLE}
        """

    def on_one_server(self) -> list[str]:
        """What makes the table in chDB or on a server."""
        engine = f"ReplacingMergeTree({self.version})"
        made = f"CREATE TABLE IF NOT EXISTS {self.name} {self._body(engine)}"
        return [made, *self._additions(self.name)]

    def _additions(self, table: str) -> list[str]:
        return [f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {column}" for column in self.added]

    def on_cluster(self, cluster: str) -> list[str]:
        """What makes the table on a cluster, replicated and distributed.

        The servers' macros `shard` and `replica` say which is which.
        """
        path = f"/clickhouse/tables/{{shard}}/ironworks/{self.name}"
        version = f", {self.version}" if self.version else ""
        engine = f"ReplicatedReplacingMergeTree('{path}', '{{replica}}'{version})"
        local = f"{self.name}_local"
        spread = f" ENGINE = Distributed('{cluster}', currentDatabase(), '{local}', {self.shard})"
        return [
            f"CREATE TABLE IF NOT EXISTS {local} ON CLUSTER '{cluster}' {self._body(engine)}",
            *self._additions(f"{local} ON CLUSTER '{cluster}'"),
            f"CREATE TABLE IF NOT EXISTS {self.name} ON CLUSTER '{cluster}' AS {local}{spread}",
            *self._additions(f"{self.name} ON CLUSTER '{cluster}'"),
        ]


_WINDOW_ORDER = "vm_id, boot_epoch, first_seq"
_RAW = TableSpec(
    name="raw_samples",
    columns=_SAMPLES,
    order="vm_id, boot_epoch, seq",
    time_ns="tick_at_ns",
    added=_CUMULATIVE[-1:],
)
_SUMMARIES = TableSpec(
    name="windows",
    columns=_WINDOWS,
    order=_WINDOW_ORDER,
    time_ns="start_at_ns",
    version="version",
    added=(*_EDGES[-2:], _GROWTH[-1]),
)


def tables(settings: AggregatordSettings) -> list[TableSpec]:
    """All tables."""
    hourly_days = settings.usage_hourly_days

    def usage(name: str, columns: str, days: int) -> TableSpec:
        return TableSpec(
            name=name,
            columns=columns,
            order=_USAGE_ORDER,
            time_ns="start_ns",
            days=days,
            version="version",
        )

    return [
        _RAW,
        _SUMMARIES,
        TableSpec(
            name="five_minute_rates",
            columns=_RATES,
            order="tenant_id, vm_id, boot_epoch, start_ns",
            time_ns="start_ns",
            days=hourly_days,
            version="version",
        ),
        usage("hourly_usage", _USAGE, hourly_days),
        usage("daily_usage", _USAGE, settings.usage_daily_days),
        usage("billing_records", _BILLING, 0),
        TableSpec(name="gaps", columns=_GAPS, order=_WINDOW_ORDER, time_ns="window_at_ns"),
        TableSpec(
            name="lifecycle_events",
            columns=_EVENTS,
            order="vm_id, boot_epoch, at_ns, type",
            time_ns="at_ns",
        ),
        TableSpec(
            name="quarantine",
            columns=_QUARANTINE,
            order="window_id, content_sha256",
            time_ns="received_at_ns",
        ),
        TableSpec(
            name="ledger",
            columns=_LEDGER,
            order="batch_id",
            time_ns="accepted_at_ns",
            shard="cityHash64(batch_id)",
        ),
    ]


def schema(settings: AggregatordSettings) -> list[str]:
    """Statements that make the tables that are absent."""
    cluster = settings.clickhouse_cluster
    return [
        statement
        for table in tables(settings)
        for statement in (table.on_cluster(cluster) if cluster else table.on_one_server())
    ]


def partitions(table: str, cluster: str) -> str:
    """The query for a table's partitions, as `yyyymmdd`."""
    if not cluster:
        return (
            "SELECT DISTINCT partition FROM system.parts WHERE active"  # noqa: S608 - our names
            f" AND database = currentDatabase() AND table = '{table}' ORDER BY partition"
        )
    return (
        "SELECT DISTINCT partition FROM"  # noqa: S608 - our names
        f" clusterAllReplicas('{cluster}', system.parts) WHERE active"
        f" AND database = currentDatabase() AND table = '{table}_local' ORDER BY partition"
    )


def drop_partition(table: str, day: int, cluster: str) -> str:
    """The statement that drops a day (`yyyymmdd`) of a table."""
    if not cluster:
        return f"ALTER TABLE {table} DROP PARTITION {day}"
    return f"ALTER TABLE {table}_local ON CLUSTER '{cluster}' DROP PARTITION {day}"
