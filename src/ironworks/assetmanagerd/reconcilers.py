"""Loops of assetmanagerd."""

from __future__ import annotations

from ironworks.assetmanagerd.app import Registry
from ironworks.assetmanagerd.intake import Intake
from ironworks.assetmanagerd.leasing import Leasing
from ironworks.assetmanagerd.repair import Repair
from ironworks.assetmanagerd.types import AssetSettings
from ironworks.assetmanagerd.watch import Watches
from ironworks.runtime.reconcile import Reconciler, Report

_EXPIRY_PERIOD_SECONDS = 5.0
_NEWS_PERIOD_SECONDS = 0.2
_REPAIR_SECONDS = 3600.0


def reconcilers(
    *,
    registry: Registry,
    leasing: Leasing,
    intake: Intake,
    repair: Repair,
    watches: Watches,
    settings: AssetSettings,
) -> list[Reconciler]:
    """Expiry of leases, interrupted registrations, garbage, repair, and news for who watches."""

    async def expire() -> Report:
        return Report(counts={"expired": await leasing.expire_leases()})

    async def resume() -> Report:
        return Report(counts={"resumed": await intake.resume()})

    async def collect() -> Report:
        done = await registry.collect(dry_run=False)
        swept = await registry.sweep()
        return Report(
            counts={
                "looked_at": done.collected_count + done.kept_count,
                "collected": done.collected_count,
                "uploads": await intake.forget_uploads(),
                **swept,
            }
        )

    async def mend() -> Report:
        findings = await repair.run()
        return Report(counts={fault.value: count for fault, count in findings.counts})

    async def read_news() -> Report:
        return Report(counts={"changes": await watches.activate()})

    gc_seconds = settings.asset_gc_period_seconds
    return [
        Reconciler("lease-expiry", _EXPIRY_PERIOD_SECONDS, expire),
        Reconciler("registrations", 60.0, resume, timeout_seconds=3600.0),
        Reconciler("garbage", gc_seconds, collect, timeout_seconds=gc_seconds),
        Reconciler(
            "repair", settings.asset_repair_period_seconds, mend, timeout_seconds=_REPAIR_SECONDS
        ),
        Reconciler("news", _NEWS_PERIOD_SECONDS, read_news),
    ]
