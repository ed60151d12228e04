"""Composition root of builderd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import structlog

from ironworks.builderd.api import Handlers
from ironworks.builderd.app import Builds
from ironworks.builderd.assets import RemoteAssets
from ironworks.builderd.changes import Changes
from ironworks.builderd.decide import parse_image
from ironworks.builderd.queue import enqueue, make_workflows
from ironworks.builderd.reconcilers import reconcilers
from ironworks.builderd.types import Build, BuilderSettings
from ironworks.builderd.worker import Worker
from ironworks.gen.ironworks.builderd.v1.build_connect import BuildServiceASGIApplication
from ironworks.runtime.service import Chassis, Parts
from ironworks.runtime.tasks import Tasks
from ironworks.storage.migrate import upgrade
from ironworks.storage.sql import Database, sqlite_url

NAME = "builderd"
_log = structlog.stdlib.get_logger()


@asynccontextmanager
async def compose(chassis: Chassis[BuilderSettings]) -> AsyncGenerator[Parts]:
    """Open the store, clean what an earlier life left, start the queue."""
    settings = chassis.settings
    database = Database(sqlite_url(settings.builder_dir / f"{NAME}.db"))
    try:
        await asyncio.to_thread(upgrade, database.engine, f"ironworks.{NAME}.migrations")
        changes = Changes()
        worker = Worker(
            name=NAME,
            database=database,
            assets=RemoteAssets(chassis.clients),
            changes=changes,
            settings=settings,
            clock=chassis.clock,
            parse=parse_image,
        )
        if left := await asyncio.to_thread(worker.clean):
            _log.info("scratch_cleaned", builds=left)
        workflows = make_workflows(settings, worker.run)
        async with Tasks() as hurried:

            async def submit(build: Build) -> None:
                await enqueue(workflows, build)
                # The queue looks for work now and then. An idle worker need not wait for that; the
                # queue's own run of the build then joins the one that is under way.
                if worker.is_idle:
                    hurried.start(worker.run(build.build_id), name=f"build {build.build_id}")

            builds = Builds(
                database=database,
                worker=worker,
                changes=changes,
                settings=settings,
                clock=chassis.clock,
                entropy=chassis.entropy,
                enqueue=submit,
            )
            await workflows.start()
            try:
                yield Parts(
                    applications=[
                        chassis.application(BuildServiceASGIApplication, Handlers(builds, settings))
                    ],
                    reconcilers=reconcilers(builds),
                )
            finally:
                await workflows.stop()
    finally:
        await asyncio.to_thread(database.close)
