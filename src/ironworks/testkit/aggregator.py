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
from ironworks.aggregatord.types import AggregatordSettings
from ironworks.aggregatord.warehouse import Warehouse
from ironworks.gen.ironworks.aggregatord.v1 import batch_pb
from ironworks.storage.clickhouse import ChdbEngine, ClickHouseEngine
from ironworks.storage.sql import Database, sqlite_url
from ironworks.testkit.clock import FakeClock
from ironworks.testkit.metering import EPOCH_AT_NS, batch

LASTING_DAYS = 20_000


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
