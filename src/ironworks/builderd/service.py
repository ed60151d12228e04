"""Composition root of builderd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

import structlog

from ironworks.builderd.api import Handlers
from ironworks.builderd.app import Builds
from ironworks.builderd.assets import RemoteAssets
from ironworks.builderd.changes import Changes
from ironworks.builderd.choices import Choices
from ironworks.builderd.decide import parse_image
from ironworks.builderd.journal import Journal
from ironworks.builderd.making import Maker
from ironworks.builderd.queue import enqueue, make_workflows, top_up
from ironworks.builderd.reach import Reach
from ironworks.builderd.reconcilers import reconcilers
from ironworks.builderd.sandbox import warm_up
from ironworks.builderd.types import Build, BuilderSettings
from ironworks.builderd.uploads import Uploads
from ironworks.builderd.vault import Vault
from ironworks.builderd.worker import Worker
from ironworks.gen.ironworks.builderd.v1.build_connect import BuildServiceASGIApplication
from ironworks.runtime.service import Chassis, Parts
from ironworks.runtime.tasks import Tasks
from ironworks.storage.schema import ensure_current
from ironworks.storage.sql import Database, sqlite_url

NAME = "builderd"
_log = structlog.stdlib.get_logger()


@asynccontextmanager
async def compose(chassis: Chassis[BuilderSettings]) -> AsyncGenerator[Parts]:
    """Open the store, clean what an earlier life left, start the queue."""
    settings = chassis.settings
    url = settings.builderd_database_url or sqlite_url(settings.builder_dir / f"{NAME}.db")
    database = Database(url)
    try:
        await asyncio.to_thread(ensure_current, database.engine, f"ironworks.{NAME}.migrations")
        vault = await asyncio.to_thread(Vault, settings.key_file)
        async with _running(chassis, database, vault) as parts:
            yield parts
    finally:
        await asyncio.to_thread(database.close)


def _maker(chassis: Chassis[BuilderSettings], journal: Journal, reach: Reach) -> Maker:
    return Maker(
        journal=journal,
        assets=RemoteAssets(chassis.clients),
        reach=reach,
        settings=chassis.settings,
        clock=chassis.clock,
        parse=parse_image,
    )


@asynccontextmanager
async def _running(
    chassis: Chassis[BuilderSettings], database: Database, vault: Vault
) -> AsyncGenerator[Parts]:
    settings, clock, entropy = chassis.settings, chassis.clock, chassis.entropy
    changes = Changes()
    journal = Journal(database, changes, clock)
    reach = await asyncio.to_thread(
        lambda: Reach(database=database, vault=vault, settings=settings, clock=clock)
    )
    maker = _maker(chassis, journal, reach)
    worker = Worker(journal=journal, maker=maker, settings=settings, clock=clock)
    if left := await asyncio.to_thread(worker.open):
        _log.info("scratch_cleaned", builds=left)
    workflows = make_workflows(settings, worker.serve)
    uploads = Uploads(database=database, settings=settings, clock=clock, entropy=entropy)
    choices = Choices(database=database, worker=worker, vault=vault, clock=clock)
    async with Tasks() as hurried:
        hurried.start(warm_up(), name="warm up")

        async def submit(build: Build) -> None:
            await enqueue(workflows, build)
            # The queue looks for work now and then. Where nobody else does, an idle worker need not
            # wait for that; the queue's own run of the turn joins the one that is under way.
            if worker.is_idle and not settings.shared:
                hurried.start(worker.serve(build.build_id), name=f"build {build.build_id}")

        builds = Builds(
            database=database,
            worker=worker,
            maker=maker,
            uploads=uploads,
            changes=changes,
            settings=settings,
            clock=clock,
            entropy=entropy,
            enqueue=submit,
        )
        await workflows.start()
        try:
            handlers = Handlers(builds, uploads, choices, settings)
            yield Parts(
                applications=[chassis.application(BuildServiceASGIApplication, handlers)],
                reconcilers=reconcilers(
                    builds=builds,
                    worker=worker,
                    reach=reach,
                    uploads=uploads,
                    choices=choices,
                    top_up=partial(top_up, workflows),
                ),
            )
        finally:
            await workflows.stop()
            worker.close()
