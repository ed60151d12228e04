"""The tables of ClickHouse: codecs, daily partitions, expiry.

All tables replace rows of one sorting key, so any insert may be repeated; queries read them with
FINAL. Expiry works on daily partitions and is late by nature: queries bound time themselves.
"""

from __future__ import annotations

from ironworks.aggregatord.columns import EDGES, SUMMARY_NUMBERS
from ironworks.aggregatord.types import CUMULATIVE, AggregatordSettings

_DURABLE = "fsync_after_insert = 1, fsync_part_directory = 1"
_CUMULATIVE_DDL = ",\n".join(f"{name} UInt64 CODEC(Delta, ZSTD(1))" for name in CUMULATIVE)
_EDGES_DDL = ",\n".join(f"{name} Nullable(UInt64) CODEC(ZSTD(1))" for name in EDGES)


def _table(name: str, columns: str, *, order: str, time_ns: str, days: int, version: str) -> str:
    at = f"toDateTime(intDiv({time_ns}, 1000000000), 'UTC')"
    expiry = f"TTL {at} + INTERVAL {days} DAY" if days else ""
    return f"""
        CREATE TABLE IF NOT EXISTS {name} ({columns})
        ENGINE = ReplacingMergeTree({version})
        PARTITION BY toYYYYMMDD({at})
        ORDER BY ({order})
        {expiry}
        SETTINGS ttl_only_drop_parts = 1, {_DURABLE}
    """


def _exceptions(names: str) -> list[str]:
    """Tables of what is not usage: gaps, events of VMs, what was refused."""
    return [
        _table(
            "gaps",
            f"""{names}, deployment_id LowCardinality(String), boot_epoch Int64,
            first_seq Int64, last_seq Int64, reason UInt8, start_at_ns Int64, end_at_ns Int64,
            window_at_ns Int64, window_id String""",
            order="vm_id, boot_epoch, first_seq", time_ns="window_at_ns", days=0, version="",
        ),
        _table(
            "lifecycle_events",
            f"""{names}, boot_epoch Int64, type UInt8, at_ns Int64, vcpus Int64,
            memory_bytes Int64, disk_bytes Int64, reason String""",
            order="vm_id, boot_epoch, at_ns, type", time_ns="at_ns", days=0, version="",
        ),
        _table(
            "quarantine",
            f"""{names}, window_id String, content_sha256 String, batch_id String, reason UInt8,
            detail String, received_at_ns Int64, payload_base64 String CODEC(ZSTD(3))""",
            order="window_id, content_sha256", time_ns="received_at_ns", days=0, version="",
        ),
    ]  # fmt: skip


def schema(settings: AggregatordSettings) -> list[str]:
    """Statements that make the tables that are absent."""
    names = "tenant_id LowCardinality(String), vm_id LowCardinality(String)"
    usage = f"""{names}, deployment_id LowCardinality(String), boot_epoch Int64,
        start_ns Int64 CODEC(Delta, ZSTD(1)), meter UInt8, quantity Int128 CODEC(ZSTD(1)),
        version UInt64 CODEC(Delta, ZSTD(1))"""
    usage_order = "tenant_id, vm_id, boot_epoch, start_ns, meter"
    return [
        _table(
            "raw_samples",
            f"""{names}, boot_epoch Int64 CODEC(Delta, ZSTD(1)),
            seq Int64 CODEC(DoubleDelta, ZSTD(1)),
            tick_at_ns Int64 CODEC(DoubleDelta, ZSTD(1)),
            offset_us Int32 CODEC(T64, ZSTD(1)),
            memory_bytes UInt64 CODEC(Delta, ZSTD(1)), {_CUMULATIVE_DDL},
            absent_mask UInt8 CODEC(ZSTD(1)), vcpus UInt16 CODEC(ZSTD(1)),
            memory_limit_bytes UInt64 CODEC(ZSTD(1)),
            disk_limit_bytes UInt64 CODEC(ZSTD(1))""",
            order="vm_id, boot_epoch, seq",
            time_ns="tick_at_ns",
            days=settings.usage_raw_days,
            version="",
        ),
        _table(
            "window_usage",
            f"""{names}, deployment_id LowCardinality(String), window_id String,
            {", ".join(f"{name} Int64 CODEC(Delta, ZSTD(1))" for name in SUMMARY_NUMBERS)},
            memory_first_us Nullable(Int64), memory_last_us Nullable(Int64),
            memory_last_bytes Nullable(Int64), {_EDGES_DDL}""",
            order="vm_id, boot_epoch, first_seq",
            time_ns="start_at_ns",
            days=settings.usage_hourly_days,
            version="",
        ),
        _table("hourly_usage", usage, order=usage_order, time_ns="start_ns",
               days=settings.usage_hourly_days, version="version"),
        _table("daily_usage", usage, order=usage_order, time_ns="start_ns",
               days=settings.usage_daily_days, version="version"),
        _table(
            "billing_records",
            f"""{usage}, price_version_id LowCardinality(String), price_nanos Int64,
            per_quantity Int128, currency LowCardinality(String), amount_nanos Int64""",
            order=usage_order, time_ns="start_ns", days=0, version="version",
        ),
        *_exceptions(names),
    ]  # fmt: skip
