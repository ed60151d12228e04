"""Composition root of assetmanagerd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry, Gauge

from ironworks.assetmanagerd import lease_store, store
from ironworks.assetmanagerd.api import Handlers
from ironworks.assetmanagerd.app import Registry
from ironworks.assetmanagerd.bytes.backend import AssetBytes, Backend
from ironworks.assetmanagerd.bytes.bucket import BucketBackend
from ironworks.assetmanagerd.bytes.cache import HostCache
from ironworks.assetmanagerd.bytes.local import LocalBackend
from ironworks.assetmanagerd.bytes.locks import DigestLocks
from ironworks.assetmanagerd.bytes.staging import Staging
from ironworks.assetmanagerd.intake import Intake
from ironworks.assetmanagerd.leasing import Leasing
from ironworks.assetmanagerd.positions import KEY_BYTES, Positions
from ironworks.assetmanagerd.reconcilers import reconcilers
from ironworks.assetmanagerd.repair import Fault, Repair
from ironworks.assetmanagerd.types import AssetSettings
from ironworks.assetmanagerd.watch import Watches
from ironworks.gen.ironworks.assetmanagerd.v1.asset_connect import AssetServiceASGIApplication
from ironworks.runtime.clock import Clock
from ironworks.runtime.service import Chassis, Parts
from ironworks.storage.objects import ObjectStore
from ironworks.storage.schema import ensure_current
from ironworks.storage.sql import Database

NAME = "assetmanagerd"


def backend(settings: AssetSettings, database: Database, clock: Clock) -> Backend:
    """What keeps bytes: a bucket, if one is set, else the data directory."""
    bucket = settings.bucket()
    if bucket is None:
        return LocalBackend(settings.asset_dir)

    async def leased() -> frozenset[str]:
        return await database.read(lease_store.leased_objects)

    cache = HostCache(
        settings.asset_dir / "cache",
        limit_bytes=settings.asset_cache_bytes,
        leased=leased,
        clock=clock,
    )
    return BucketBackend(ObjectStore(bucket, clock), cache)


async def opened(settings: AssetSettings, kept: Backend) -> AssetBytes:
    """All bytes, ready for use."""
    staging = Staging(settings.staging_dir, min_free_bytes=settings.min_free_bytes)
    await asyncio.to_thread(staging.open)
    await kept.open()
    return AssetBytes(staging=staging, kept=kept)


def register_figures(registry: CollectorRegistry, repair: Repair, watches: Watches) -> None:
    """Figures for /metrics: what the last repair found, and who watches."""
    faults = Gauge(
        "ironworks_asset_faults", "Found by the last repair.", ["fault"], registry=registry
    )
    for fault in Fault:
        faults.labels(fault.value).set_function(
            lambda fault=fault: dict(repair.last.counts).get(fault, 0)
        )
    Gauge("ironworks_asset_watchers", "Clients that watch.", registry=registry).set_function(
        lambda: watches.count
    )


@asynccontextmanager
async def compose(chassis: Chassis[AssetSettings]) -> AsyncGenerator[Parts]:
    """Open the store and the bytes, and build everything that serves them."""
    settings, clock, entropy = chassis.settings, chassis.clock, chassis.entropy
    database = Database(settings.database_url, order_by="asset_events")
    try:
        await asyncio.to_thread(ensure_current, database.engine, f"ironworks.{NAME}.migrations")
        files = await opened(settings, backend(settings, database, clock))
        locks = DigestLocks()
        registry = Registry(
            database=database,
            files=files,
            settings=settings,
            clock=clock,
            entropy=entropy,
        )
        intake = Intake(
            database=database,
            files=files,
            locks=locks,
            settings=settings,
            clock=clock,
            entropy=entropy,
        )
        leasing = Leasing(
            database=database, files=files, settings=settings, clock=clock, entropy=entropy
        )
        repair = Repair(database=database, files=files, locks=locks, settings=settings, clock=clock)
        watches = Watches(database)
        fresh = entropy.token_bytes(KEY_BYTES)
        key = await database.write(lambda connection: store.position_key(connection, fresh))
        register_figures(chassis.registry, repair, watches)
        await leasing.grace()
        handlers = Handlers(
            registry=registry,
            leasing=leasing,
            intake=intake,
            repair=repair,
            watches=watches,
            positions=Positions(key, entropy),
            ttl_seconds=settings.asset_ttl_seconds,
        )
        yield Parts(
            applications=[chassis.application(AssetServiceASGIApplication, handlers)],
            reconcilers=reconcilers(
                registry=registry,
                leasing=leasing,
                intake=intake,
                repair=repair,
                watches=watches,
                settings=settings,
            ),
            stopping=watches.close,
        )
    finally:
        await asyncio.to_thread(database.close)
