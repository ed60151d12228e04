"""aggregatord's use cases on a real ClickHouse and a real database, without a server around."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ironworks.aggregatord.ingest import Outcome
from ironworks.aggregatord.service import Core, build
from ironworks.aggregatord.tables import METADATA
from ironworks.aggregatord.types import READINGS, AggregatordSettings
from ironworks.aggregatord.warehouse import Warehouse
from ironworks.gen.ironworks.aggregatord.v1 import batch_pb
from ironworks.storage.clickhouse import ChdbEngine, ClickHouseEngine
from ironworks.storage.sql import Database, sqlite_url
from ironworks.testkit.clock import FakeClock
from ironworks.testkit.metering import EPOCH_AT_NS, batch

LASTING_DAYS = 20_000
GROWING_METERS = {
    "cpu_ns": 2,
    "disk_read_bytes": 5,
    "disk_write_bytes": 6,
    "network_receive_bytes": 8,
    "network_transmit_bytes": 9,
    "network_internal_bytes": 11,
}
"""Counters that only grow, and the meters that they are billed by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregator(Core):
    """The parts of one aggregatord."""

    clock: FakeClock

    async def submit(self, windows: Sequence[batch_pb.Window], batch_id: str = "") -> Outcome:
        """Take a batch of windows in."""
        return await self.ingest.submit(batch(windows, batch_id=batch_id))

    async def count(self, table: str) -> int:
        """Rows of a table, after replacement."""
        rows = await self.engine.rows(f"SELECT count() FROM {table} FINAL")  # noqa: S608
        return int(rows[0][0])


@asynccontextmanager
async def aggregator(
    directory: Path, *, engine: ClickHouseEngine | None = None, database_url: str = ""
) -> AsyncGenerator[Aggregator]:
    """An aggregatord on this directory; what is in it is taken up. Its clock stands still.

    Args:
        directory: Where ledger and usage are, unless these say something else:
        engine: A ClickHouse; it is closed in the end.
        database_url: A relational database, with or without the ledger's tables.
    """
    settings = AggregatordSettings(data_dir=directory)
    clock = FakeClock(EPOCH_AT_NS)
    database = Database(database_url or sqlite_url(directory / "ledger.sqlite"))
    # A migrated database equals this one: tests/style proves it.
    METADATA.create_all(database.engine)
    if engine is None:
        engine = ChdbEngine(directory / "usage")
        await engine.open()
    # The engine expires by the real clock, and tests live in the past.
    kept = ("usage_raw_days", "usage_hourly_days", "usage_daily_days")
    lasting = settings.model_copy(update=dict.fromkeys(kept, LASTING_DAYS))
    try:
        core = await build(
            settings=settings,
            database=database,
            warehouse=Warehouse(engine, lasting),
            clock=clock,
            engine=engine,
        )
        parts: dict[str, Any] = {field.name: getattr(core, field.name) for field in fields(core)}
        yield Aggregator(**parts)
    finally:
        await engine.close()
        database.close()


def _same(found: object, expected: object, of: tuple[object, ...]) -> None:
    if found != expected:
        raise AssertionError(of, found, expected)


async def conserved(made: Core) -> dict[tuple[str, int], int]:
    """Growth of the counters, which raw samples and every kind of rollup agree on.

    Raises:
        AssertionError: they do not.
    """
    await made.rollup.catch_up()
    raw: dict[tuple[str, int], int] = {}
    for name, meter in GROWING_METERS.items():
        bit = 1 << READINGS.index(name)
        seen = f"bitAnd(absent_mask, {bit}) = 0"
        for vm_id, grown in await made.engine.rows(
            "SELECT vm_id, sum(toInt128(value) - before) FROM (SELECT vm_id,"  # noqa: S608
            f" toInt128({name}) AS value, lagInFrame(toInt128({name}), 1, toInt128({name})) OVER"
            " (PARTITION BY vm_id, boot_epoch ORDER BY seq ROWS BETWEEN UNBOUNDED PRECEDING AND"
            f" CURRENT ROW) AS before FROM raw_samples FINAL WHERE {seen}) GROUP BY vm_id"
        ):
            raw[vm_id, meter] = int(grown)
    sums = {
        "windows": " UNION ALL ".join(
            f"SELECT vm_id, {meter}, sum(toInt128(grown_{name})) FROM windows FINAL GROUP BY vm_id"  # noqa: S608
            for name, meter in GROWING_METERS.items()
        )
    }
    for table in ("hourly_usage", "daily_usage", "billing_records"):
        sums[table] = f"SELECT vm_id, meter, sum(quantity) FROM {table} FINAL GROUP BY vm_id, meter"  # noqa: S608
    for table, query in sums.items():
        rows = {(row[0], row[1]): int(row[2]) for row in await made.engine.rows(query)}
        for key, quantity in raw.items():
            if table != "billing_records" or key in rows:
                _same(rows.get(key, 0), quantity, (table, key))
        if table.endswith("_usage"):
            for vm_id in {vm_id for vm_id, _ in rows}:
                _same(rows[vm_id, 10] + rows[vm_id, 11], rows[vm_id, 9], (table, vm_id))
    for vm_id, received, sent in await made.engine.rows(
        "SELECT vm_id, sum(receive_bytes), sum(transmit_bytes) FROM five_minute_rates FINAL"
        " GROUP BY vm_id"
    ):
        grown = raw.get((vm_id, 8), 0), raw.get((vm_id, 9), 0)
        _same((received, sent), grown, ("five_minute_rates", vm_id))
    return raw
