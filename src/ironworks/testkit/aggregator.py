"""aggregatord's use cases on a real chDB and a real SQLite, without a server around them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from ironworks.aggregatord.app import Usage
from ironworks.aggregatord.ingest import Ingest, Outcome
from ironworks.aggregatord.rollup import Rollup
from ironworks.aggregatord.tables import METADATA
from ironworks.aggregatord.types import AggregatordSettings
from ironworks.aggregatord.warehouse import Warehouse
from ironworks.gen.ironworks.aggregatord.v1 import batch_pb
from ironworks.storage.clickhouse import ChdbEngine
from ironworks.storage.sql import Database, sqlite_url
from ironworks.testkit.clock import FakeClock
from ironworks.testkit.metering import EPOCH_AT_NS, batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregator:
    """The parts of one aggregatord."""

    clock: FakeClock
    engine: ChdbEngine
    database: Database
    warehouse: Warehouse
    ingest: Ingest
    rollup: Rollup
    usage: Usage

    async def submit(self, windows: Sequence[batch_pb.Window], batch_id: str = "") -> Outcome:
        """Take a batch of windows in."""
        return await self.ingest.submit(batch(windows, batch_id=batch_id))

    async def count(self, table: str) -> int:
        """Rows of a table, after replacement."""
        rows = await self.engine.rows(f"SELECT count() FROM {table} FINAL")  # noqa: S608
        return int(rows[0][0])


@asynccontextmanager
async def aggregator(directory: Path) -> AsyncGenerator[Aggregator]:
    """An aggregatord on this directory; what is in it is taken up. Its clock stands still."""
    settings = AggregatordSettings(data_dir=directory)
    clock = FakeClock(EPOCH_AT_NS)
    database = Database(sqlite_url(directory / "ledger.sqlite"))
    # A migrated database equals this one: tests/style proves it.
    METADATA.create_all(database.engine)
    engine = ChdbEngine(directory / "usage")
    await engine.open()
    try:
        # The engine expires by the real clock, and tests live in the past.
        lasting = settings.model_copy(
            update={
                "usage_raw_days": 20_000,
                "usage_hourly_days": 20_000,
                "usage_daily_days": 20_000,
            }
        )
        warehouse = Warehouse(engine, lasting)
        await warehouse.prepare()
        rollup = Rollup(database=database, warehouse=warehouse)
        usage = Usage(
            database=database, warehouse=warehouse, rollup=rollup, clock=clock, settings=settings
        )
        await usage.begin()
        yield Aggregator(
            clock=clock,
            engine=engine,
            database=database,
            warehouse=warehouse,
            ingest=Ingest(database=database, warehouse=warehouse, clock=clock, settings=settings),
            rollup=rollup,
            usage=usage,
        )
    finally:
        await engine.close()
        database.close()
