"""Composition root of billaged."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

from prometheus_client import Gauge

from ironworks.billaged.api import MeterHandlers
from ironworks.billaged.app import Collector
from ironworks.billaged.live import LiveReporter
from ironworks.billaged.types import BillagedSettings
from ironworks.gen.ironworks.aggregatord.v1.batch_connect import BatchServiceClient
from ironworks.gen.ironworks.billaged.v1.meter_connect import MeterServiceASGIApplication
from ironworks.runtime.reconcile import Reconciler, Report
from ironworks.runtime.service import Chassis, Parts

CUT_SECONDS = 1.0
SHIP_SECONDS = 1.0
LIVE_SECONDS = 0.1
"""How often it is looked whether aggregatord wants a report by now."""
SUBMIT_SECONDS = 120.0
"""A batch may take long on a machine that has much else to do; sending it again helps nobody."""


def _reconcilers(collector: Collector, live: LiveReporter) -> list[Reconciler]:
    async def cut() -> Report:
        return Report(counts={"batches": await collector.cut()})

    async def ship() -> Report:
        return Report(counts={"acknowledged": await collector.shipper.ship()})

    async def tell() -> Report:
        return Report(counts={"vms": await live.report()})

    cutter = Reconciler("cut_windows", CUT_SECONDS, cut)
    shipper = Reconciler("ship_batches", SHIP_SECONDS, ship, timeout_seconds=300.0)
    collector.on_due = cutter.wake
    collector.on_sealed = shipper.wake
    return [cutter, shipper, Reconciler("live_usage", LIVE_SECONDS, tell)]


def _measure(chassis: Chassis[BillagedSettings], collector: Collector) -> None:
    def gauge(name: str, text: str) -> Gauge:
        return Gauge(f"ironworks_billaged_{name}", text, registry=chassis.registry)

    gauge("samples_received", "Samples received since the start.").set_function(
        lambda: collector.state.samples_received
    )
    gauge("batches_waiting", "Batches not acknowledged by aggregatord.").set_function(
        lambda: len(collector.outbox.waiting)
    )
    gauge("log_bytes", "Bytes of the write-ahead log.").set_function(
        lambda: collector.log.size_bytes
    )
    gauge("outbox_bytes", "Bytes of waiting batches.").set_function(
        lambda: collector.outbox.size_bytes
    )
    gauge("log_damaged_records", "Damaged records found in the log.").set_function(
        lambda: collector.log.scan.damaged
    )


@asynccontextmanager
async def compose(chassis: Chassis[BillagedSettings]) -> AsyncGenerator[Parts]:
    """Build billaged."""
    settings = chassis.settings
    collector = Collector(
        directory=settings.data_dir / "billaged",
        settings=settings,
        batches=chassis.clients.of(
            BatchServiceClient, "aggregatord", timeout_seconds=SUBMIT_SECONDS
        ),
        clock=chassis.clock,
    )
    live = LiveReporter(
        state=collector.state,
        reports=chassis.clients.of(BatchServiceClient, "aggregatord", timeout_seconds=2.0),
        clock=chassis.clock,
    )
    collector.open()
    _measure(chassis, collector)

    async def ready() -> Mapping[str, str]:
        # Without aggregatord it still does its work: it keeps what it is given.
        return {}

    try:
        yield Parts(
            applications=[
                chassis.application(MeterServiceASGIApplication, MeterHandlers(collector))
            ],
            reconcilers=_reconcilers(collector, live),
            ready=ready,
        )
    finally:
        await collector.close()
