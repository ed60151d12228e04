"""Composition root of aggregatord."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

from prometheus_client import Gauge

from ironworks.aggregatord.api import BatchHandlers, InvoiceHandlers, UsageHandlers
from ironworks.aggregatord.app import Usage
from ironworks.aggregatord.ingest import Ingest
from ironworks.aggregatord.rollup import Rollup
from ironworks.aggregatord.types import AggregatordSettings
from ironworks.aggregatord.warehouse import Warehouse
from ironworks.gen.ironworks.aggregatord.v1.batch_connect import BatchServiceASGIApplication
from ironworks.gen.ironworks.aggregatord.v1.invoice_connect import InvoiceServiceASGIApplication
from ironworks.gen.ironworks.aggregatord.v1.price_connect import (
    PriceService,
    PriceServiceASGIApplication,
)
from ironworks.gen.ironworks.aggregatord.v1.usage_connect import UsageServiceASGIApplication
from ironworks.model.units import MIB
from ironworks.runtime.reconcile import Reconciler, Report
from ironworks.runtime.service import Chassis, Parts
from ironworks.storage.clickhouse import ChdbEngine
from ironworks.storage.schema import ensure_current
from ironworks.storage.sql import Database, sqlite_url

ROLLUP_SECONDS = 2.0
REST_SECONDS = 5.0
BATCH_MAX_BYTES = 10 * MIB


class PriceHandlers(PriceService):
    """`ironworks.aggregatord.v1.PriceService`, of which this version implements nothing."""


def _measure(chassis: Chassis[AggregatordSettings], ingest: Ingest) -> None:
    Gauge(
        "ironworks_aggregatord_samples_accepted",
        "Samples accepted since the start.",
        registry=chassis.registry,
    ).set_function(lambda: ingest.samples_accepted)
    Gauge(
        "ironworks_aggregatord_windows_quarantined",
        "Windows quarantined since the start.",
        registry=chassis.registry,
    ).set_function(lambda: ingest.windows_quarantined)


@asynccontextmanager
async def compose(chassis: Chassis[AggregatordSettings]) -> AsyncGenerator[Parts]:
    """Build aggregatord."""
    directory = chassis.settings.data_dir / "aggregatord"
    database = Database(sqlite_url(directory / "ledger.sqlite"))
    engine = ChdbEngine(directory / "usage")
    ensure_current(database.engine, "ironworks.aggregatord.migrations")
    try:
        await engine.open()
        warehouse = Warehouse(engine, chassis.settings)
        await warehouse.prepare()
        ingest = Ingest(
            database=database,
            warehouse=warehouse,
            clock=chassis.clock,
            settings=chassis.settings,
        )
        rollup = Rollup(database=database, warehouse=warehouse)
        usage = Usage(
            database=database,
            warehouse=warehouse,
            rollup=rollup,
            clock=chassis.clock,
            settings=chassis.settings,
        )
        await usage.begin()
        _measure(chassis, ingest)

        async def roll_up() -> Report:
            return Report(counts={"hours": await rollup.catch_up()})

        async def rest() -> Report:
            return Report(counts={"returned": int(await engine.rest())})

        async def ready() -> Mapping[str, str]:
            return {}

        application = chassis.application
        yield Parts(
            applications=[
                application(
                    BatchServiceASGIApplication,
                    BatchHandlers(ingest, database),
                    max_message_bytes=BATCH_MAX_BYTES,
                ),
                application(UsageServiceASGIApplication, UsageHandlers(usage)),
                application(InvoiceServiceASGIApplication, InvoiceHandlers(usage)),
                application(PriceServiceASGIApplication, PriceHandlers()),
            ],
            reconcilers=[
                Reconciler("roll_up", ROLLUP_SECONDS, roll_up, timeout_seconds=600.0),
                Reconciler("return_memory", REST_SECONDS, rest),
            ],
            ready=ready,
        )
    finally:
        await engine.close()
        database.close()
