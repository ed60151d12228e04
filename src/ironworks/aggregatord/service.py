"""Composition root of aggregatord."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypedDict

from prometheus_client import Gauge

from ironworks.aggregatord.api import BatchHandlers, InvoiceHandlers, UsageHandlers
from ironworks.aggregatord.app import Usage
from ironworks.aggregatord.ingest import Ingest
from ironworks.aggregatord.live import Live
from ironworks.aggregatord.quarantine import Quarantine
from ironworks.aggregatord.retention import Retention
from ironworks.aggregatord.rollup import Rollup
from ironworks.aggregatord.tenants import Tenants
from ironworks.aggregatord.types import AggregatordSettings
from ironworks.aggregatord.vms import Vms
from ironworks.aggregatord.warehouse import Warehouse
from ironworks.gen.ironworks.aggregatord.v1.batch_connect import BatchServiceASGIApplication
from ironworks.gen.ironworks.aggregatord.v1.invoice_connect import InvoiceServiceASGIApplication
from ironworks.gen.ironworks.aggregatord.v1.price_connect import (
    PriceService,
    PriceServiceASGIApplication,
)
from ironworks.gen.ironworks.aggregatord.v1.usage_connect import UsageServiceASGIApplication
from ironworks.gen.ironworks.gatewayd.v1.hosts_connect import HostDirectoryServiceClient
from ironworks.gen.ironworks.gatewayd.v1.tenants_connect import TenantServiceClient
from ironworks.gen.ironworks.metald.v1.vm_connect import VmServiceClient
from ironworks.model.errors import InvalidRequest
from ironworks.model.units import MIB
from ironworks.runtime.clock import Clock
from ironworks.runtime.reconcile import Reconciler, Report
from ironworks.runtime.service import Chassis, Parts
from ironworks.storage.clickhouse import ChdbEngine, ClickHouseEngine
from ironworks.storage.schema import ensure_current
from ironworks.storage.sql import Database, sqlite_url

ROLLUP_SECONDS = 10.0
"""For nobody in particular: a question computes what it needs before it is answered."""
REST_SECONDS = 5.0
EXPIRE_SECONDS = 600.0
BATCH_MAX_BYTES = 10 * MIB
DIRECTORY_SECONDS = 2.0


class PriceHandlers(PriceService):
    """`ironworks.aggregatord.v1.PriceService`, of which this version implements nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """aggregatord without a server around it."""

    clock: Clock
    engine: ClickHouseEngine
    database: Database
    warehouse: Warehouse
    ingest: Ingest
    quarantine: Quarantine
    rollup: Rollup
    retention: Retention
    live: Live
    usage: Usage

    @property
    def batches(self) -> BatchHandlers:
        """The handlers of the RPC service that takes batches."""
        return BatchHandlers(
            ingest=self.ingest,
            quarantine=self.quarantine,
            live=self.live,
            database=self.database,
            clock=self.clock,
        )


async def build(
    *,
    settings: AggregatordSettings,
    database: Database,
    warehouse: Warehouse,
    clock: Clock,
    engine: ClickHouseEngine,
    tenants: Tenants | None = None,
    vms: Vms | None = None,
) -> Core:
    """Put the use cases on their stores; makes the tables and the price plan that are absent."""
    await warehouse.prepare()

    class Given(TypedDict):
        database: Database
        warehouse: Warehouse
        clock: Clock
        settings: AggregatordSettings

    given = Given(database=database, warehouse=warehouse, clock=clock, settings=settings)
    ingest, rollup, live = Ingest(tenants=tenants, vms=vms, **given), Rollup(**given), Live(clock)
    ingest.on_accepted = live.accepted
    usage = Usage(rollup=rollup, **given)
    await usage.begin()
    return Core(
        clock=clock,
        engine=engine,
        database=database,
        warehouse=warehouse,
        ingest=ingest,
        quarantine=Quarantine(database=database, warehouse=warehouse, ingest=ingest),
        rollup=rollup,
        retention=Retention(**given),
        live=live,
        usage=usage,
    )


async def usage_engine(settings: AggregatordSettings) -> ClickHouseEngine:
    """ClickHouse as the settings want it, opened."""
    if settings.clickhouse_url:
        # Its client is memory that only whoever has a server pays for.
        from ironworks.storage.clickhouse_server import ServerEngine  # noqa: PLC0415

        return ServerEngine(settings.clickhouse_url, cluster=settings.clickhouse_cluster)
    if settings.clickhouse_cluster:
        raise InvalidRequest("clickhouse_cluster needs clickhouse_url: chDB is no cluster.")
    engine = ChdbEngine(settings.data_dir / "aggregatord" / "usage")
    await engine.open()
    return engine


def _measure(chassis: Chassis[AggregatordSettings], core: Core) -> None:
    def gauge(name: str, text: str, value: Callable[[], int]) -> None:
        made = Gauge(f"ironworks_aggregatord_{name}", text, registry=chassis.registry)
        made.set_function(value)

    ingest = core.ingest
    gauge("samples_accepted", "Samples accepted since the start.", lambda: ingest.samples_accepted)
    gauge(
        "windows_quarantined",
        "Windows quarantined since the start.",
        lambda: ingest.windows_quarantined,
    )
    gauge(
        "days_unreconciled",
        "Days of raw samples that stay because their hours say something else.",
        lambda: core.retention.days_unreconciled,
    )
    gauge("live_subscribers", "Open streams of usage.", lambda: core.live.subscriber_count)


def _reconcilers(core: Core) -> list[Reconciler]:
    async def roll_up() -> Report:
        return Report(counts={"hours": await core.rollup.catch_up()})

    async def sweep() -> Report:
        return Report(counts=await core.retention.sweep())

    async def rest() -> Report:
        return Report(counts={"returned": int(await core.engine.rest())})

    return [
        Reconciler("roll_up", ROLLUP_SECONDS, roll_up, timeout_seconds=600.0),
        Reconciler("expire_days", EXPIRE_SECONDS, sweep, timeout_seconds=600.0),
        Reconciler("return_memory", REST_SECONDS, rest),
    ]


def _vms(chassis: Chassis[AggregatordSettings]) -> Vms:
    def vms_at(url: str) -> VmServiceClient:
        return chassis.clients.of(
            VmServiceClient, "metald", timeout_seconds=DIRECTORY_SECONDS, url=url
        )

    hosts = chassis.clients.of(
        HostDirectoryServiceClient, "gatewayd", timeout_seconds=DIRECTORY_SECONDS
    )
    return Vms(hosts, vms_at, chassis.clock)


@asynccontextmanager
async def compose(chassis: Chassis[AggregatordSettings]) -> AsyncGenerator[Parts]:
    """Build aggregatord."""
    settings = chassis.settings
    file = settings.data_dir / "aggregatord" / "ledger.sqlite"
    database = Database(settings.ledger_url or sqlite_url(file))
    engine: ClickHouseEngine | None = None
    try:
        ensure_current(database.engine, "ironworks.aggregatord.migrations")
        engine = await usage_engine(settings)
        core = await build(
            settings=settings,
            database=database,
            warehouse=Warehouse(engine, settings),
            clock=chassis.clock,
            engine=engine,
            tenants=Tenants(
                chassis.clients.of(
                    TenantServiceClient, "gatewayd", timeout_seconds=DIRECTORY_SECONDS
                ),
                chassis.clock,
            ),
            vms=_vms(chassis),
        )
        _measure(chassis, core)
        application = chassis.application
        yield Parts(
            applications=[
                application(
                    BatchServiceASGIApplication, core.batches, max_message_bytes=BATCH_MAX_BYTES
                ),
                application(UsageServiceASGIApplication, UsageHandlers(core.usage, core.live)),
                application(InvoiceServiceASGIApplication, InvoiceHandlers(core.usage)),
                application(PriceServiceASGIApplication, PriceHandlers()),
            ],
            reconcilers=_reconcilers(core),
        )
    finally:
        if engine is not None:
            await engine.close()
        database.close()
