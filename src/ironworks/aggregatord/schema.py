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


_NAMES = "tenant_id LowCardinality(String), vm_id LowCardinality(String)"
_USAGE = f"""{_NAMES}, deployment_id LowCardinality(String), boot_epoch Int64,
    start_ns Int64 CODEC(Delta, ZSTD(1)), meter UInt8, quantity Int128 CODEC(ZSTD(1)),
    version UInt64 CODEC(Delta, ZSTD(1))"""
_USAGE_ORDER = "tenant_id, vm_id, boot_epoch, start_ns, meter"
_SAMPLES = f"""{_NAMES}, boot_epoch Int64 CODEC(Delta, ZSTD(1)),
    seq Int64 CODEC(DoubleDelta, ZSTD(1)),
    tick_at_ns Int64 CODEC(DoubleDelta, ZSTD(1)),
    offset_us Int32 CODEC(T64, ZSTD(1)),
    memory_bytes UInt64 CODEC(Delta, ZSTD(1)), {_CUMULATIVE_DDL},
    absent_mask UInt8 CODEC(ZSTD(1)), vcpus UInt16 CODEC(ZSTD(1)),
    memory_limit_bytes UInt64 CODEC(ZSTD(1)),
    disk_limit_bytes UInt64 CODEC(ZSTD(1))"""
_SUMMARIES = f"""{_NAMES}, deployment_id LowCardinality(String), window_id String,
    {", ".join(f"{name} Int64 CODEC(Delta, ZSTD(1))" for name in SUMMARY_NUMBERS)},
    memory_first_us Nullable(Int64), memory_last_us Nullable(Int64),
    memory_last_bytes Nullable(Int64), {_EDGES_DDL}"""
_BILLING = f"""{_USAGE}, price_version_id LowCardinality(String), price_nanos Int64,
    per_quantity Int128, currency LowCardinality(String), amount_nanos Int64"""
_GAPS = f"""{_NAMES}, deployment_id LowCardinality(String), boot_epoch Int64,
    first_seq Int64, last_seq Int64, reason UInt8, start_at_ns Int64, end_at_ns Int64,
    window_at_ns Int64, window_id String"""
_EVENTS = f"""{_NAMES}, boot_epoch Int64, type UInt8, at_ns Int64, vcpus Int64,
    memory_bytes Int64, disk_bytes Int64, reason String"""
_QUARANTINE = f"""{_NAMES}, window_id String, content_sha256 String, batch_id String,
    reason UInt8, detail String, received_at_ns Int64, payload_base64 String CODEC(ZSTD(3))"""


def _versioned(name: str, columns: str, days: int) -> str:
    """A table of quantities, of which the highest version counts."""
    return _table(
        name, columns, order=_USAGE_ORDER, time_ns="start_ns", days=days, version="version"
    )


def _once(name: str, columns: str, *, order: str, time_ns: str, days: int = 0) -> str:
    """A table whose rows never change: one that comes again is the same."""
    return _table(name, columns, order=order, time_ns=time_ns, days=days, version="")


def schema(settings: AggregatordSettings) -> list[str]:
    """Statements that make the tables that are absent."""
    window = "vm_id, boot_epoch, first_seq"
    hourly_days = settings.usage_hourly_days
    return [
        _once(
            "raw_samples",
            _SAMPLES,
            order="vm_id, boot_epoch, seq",
            time_ns="tick_at_ns",
            days=settings.usage_raw_days,
        ),
        _once("window_usage", _SUMMARIES, order=window, time_ns="start_at_ns", days=hourly_days),
        _versioned("hourly_usage", _USAGE, hourly_days),
        _versioned("daily_usage", _USAGE, settings.usage_daily_days),
        _versioned("billing_records", _BILLING, 0),
        _once("gaps", _GAPS, order=window, time_ns="window_at_ns"),
        _once("lifecycle_events", _EVENTS, order="vm_id, boot_epoch, at_ns, type", time_ns="at_ns"),
        _once(
            "quarantine",
            _QUARANTINE,
            order="window_id, content_sha256",
            time_ns="received_at_ns",
        ),
    ]
