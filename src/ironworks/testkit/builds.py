"""builderd without its server: a fake assetmanagerd, and a queue that runs builds at once."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ironworks.builderd.app import Builds
from ironworks.builderd.changes import Changes
from ironworks.builderd.choices import Choices
from ironworks.builderd.decide import parse_image
from ironworks.builderd.flatten.plan import Flattened
from ironworks.builderd.journal import Journal
from ironworks.builderd.making import Maker
from ironworks.builderd.reach import Reach
from ironworks.builderd.types import (
    Build,
    BuilderSettings,
    BuildState,
    ImageConfig,
    LogLine,
    Registered,
    RootfsFormat,
)
from ironworks.builderd.uploads import Uploads
from ironworks.builderd.vault import Vault
from ironworks.builderd.worker import Worker
from ironworks.runtime.architecture import host_architecture
from ironworks.runtime.clock import SystemClock, SystemEntropy
from ironworks.runtime.tasks import Tasks
from ironworks.storage.migrate import upgrade
from ironworks.storage.sql import Database, sqlite_url
from ironworks.testkit import images
from ironworks.testkit.images import File

TENANT = "tnt_acme"


@dataclass
class FakeAssets:
    """assetmanagerd, as far as builderd knows it."""

    staging: Path
    usable: set[str] = field(default_factory=set[str])
    failures: list[Exception] = field(default_factory=list[Exception])
    gate: asyncio.Event | None = None

    async def is_usable(self, tenant_id: str, asset_id: str) -> bool:
        """Whether it was made here, and not taken away since."""
        del tenant_id
        return asset_id in self.usable

    async def register(
        self, build: Build, made: Flattened, config: ImageConfig, staged_name: str
    ) -> Registered:
        """As the real one: takes the file."""
        del build, config
        if self.failures:
            raise self.failures.pop(0)
        if self.gate is not None:
            await self.gate.wait()
        data = (self.staging / staged_name).read_bytes()
        if len(data) != made.size_bytes:
            raise AssertionError(staged_name)
        (self.staging / staged_name).unlink()
        asset_id = f"ast_{len(self.usable)}"
        self.usable.add(asset_id)
        return Registered(asset_id=asset_id, sha256=hashlib.sha256(data).hexdigest())


@dataclass
class BuildWorld:
    """All parts of builderd but its server; nothing is run while `paused`."""

    settings: BuilderSettings
    database: Database
    assets: FakeAssets
    worker: Worker
    builds: Builds
    uploads: Uploads
    choices: Choices
    reach: Reach
    tasks: Tasks
    paused: bool = False

    async def enqueue(self, build: Build) -> None:
        """Serve the build's turn now, unless paused."""
        if not self.paused:
            self.tasks.start(self.worker.serve(build.build_id), name=build.build_id)

    async def create(
        self,
        image: str,
        key: str = "",
        *,
        force: bool = False,
        tenant_id: str = TENANT,
        priority: int = 2,
        timeout_seconds: int = 0,
    ) -> Build:
        """Ask for a build."""
        return await self.builds.create(
            tenant_id,
            image,
            rootfs_format=RootfsFormat.SQUASHFS,
            labels={},
            priority=priority,
            timeout_seconds=timeout_seconds,
            force=force,
            key=key,
        )

    async def end(self, build: Build) -> Build:
        """The build once it has ended."""
        return [seen async for seen in self.builds.watch(build.tenant_id, build.build_id)][-1]

    async def build(self, image: str) -> Build:
        """Ask for a build, and wait for its end."""
        return await self.end(await self.create(image))

    async def until(self, build: Build, state: BuildState) -> None:
        """Wait until the build has come so far."""
        async for seen in self.builds.watch(build.tenant_id, build.build_id):
            if seen.state is state:
                return

    async def log(self, build: Build) -> list[LogLine]:
        """All lines."""
        lines = self.builds.logs(
            build.tenant_id, build.build_id, after=0, from_end=False, follow=False
        )
        return [line async for line in lines]

    def image(self, name: str = "app", text: bytes = b"hello", *more: File, **config: Any) -> str:
        """A small layout, with a file of this text and `more`."""
        tar = images.make_tar([File(name="app", data=text), *more])
        image = images.Image(
            layers=[images.Layer(tar=tar)],
            config={"Cmd": ["/app"], **config},
            architecture=host_architecture(),
        )
        return images.write_image(self.settings.data_dir / "images" / name, image)


@asynccontextmanager
async def build_world(
    data_dir: Path,
    *,
    database_url: str = "",
    assets: FakeAssets | None = None,
    **settings: Any,
) -> AsyncGenerator[BuildWorld]:
    """A builderd below `data_dir`; at most two builds of a tenant wait."""
    chosen: dict[str, Any] = {
        "min_free_bytes": 0,
        "max_queued_builds_per_tenant": 2,
        "build_cgroups": os.geteuid() == 0,
        **settings,
    }
    limits = BuilderSettings(data_dir=data_dir, **chosen)
    limits.staging_dir.mkdir(parents=True, exist_ok=True)
    (data_dir / "images").mkdir(exist_ok=True)
    database = Database(database_url or sqlite_url(limits.builder_dir / "builds.db"))
    upgrade(database.engine, "ironworks.builderd.migrations")
    changes, clock, entropy = Changes(), SystemClock(), SystemEntropy()
    assets = assets or FakeAssets(limits.staging_dir)
    vault = Vault(limits.key_file)
    reach = Reach(database=database, vault=vault, settings=limits, clock=clock)
    journal = Journal(database, changes, clock)
    maker = Maker(
        journal=journal,
        assets=assets,
        reach=reach,
        settings=limits,
        clock=clock,
        parse=parse_image,
    )
    worker = Worker(journal=journal, maker=maker, settings=limits, clock=clock)
    worker.open()
    uploads = Uploads(database=database, settings=limits, clock=clock, entropy=entropy)
    later: list[Callable[[Build], Awaitable[None]]] = []

    async def enqueue(build: Build) -> None:
        await later[0](build)

    builds = Builds(
        database=database,
        worker=worker,
        maker=maker,
        uploads=uploads,
        changes=changes,
        settings=limits,
        clock=clock,
        entropy=entropy,
        enqueue=enqueue,
    )
    choices = Choices(database=database, worker=worker, vault=vault, clock=clock)
    async with Tasks() as tasks:
        made = BuildWorld(limits, database, assets, worker, builds, uploads, choices, reach, tasks)
        later.append(made.enqueue)
        yield made
    worker.close()
    database.close()
