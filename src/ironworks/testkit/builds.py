"""builderd without its server: a fake assetmanagerd, and a queue that runs builds at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ironworks.builderd.app import Builds
from ironworks.builderd.changes import Changes
from ironworks.builderd.decide import parse_image
from ironworks.builderd.flatten.plan import Flattened
from ironworks.builderd.sources.documents import host_architecture
from ironworks.builderd.types import Build, BuilderSettings, ImageConfig, LogLine, RootfsFormat
from ironworks.builderd.worker import Worker
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
    ) -> str:
        """As the real one: takes the file."""
        del build, config
        if self.failures:
            raise self.failures.pop(0)
        if self.gate is not None:
            await self.gate.wait()
        if (self.staging / staged_name).stat().st_size != made.size_bytes:
            raise AssertionError(staged_name)
        (self.staging / staged_name).unlink()
        asset_id = f"ast_{len(self.usable)}"
        self.usable.add(asset_id)
        return asset_id


@dataclass
class BuildWorld:
    """All parts of builderd but its server; nothing is run while `paused`."""

    settings: BuilderSettings
    assets: FakeAssets
    worker: Worker
    builds: Builds
    tasks: Tasks
    paused: bool = False

    async def enqueue(self, build: Build) -> None:
        """Run the build now, unless paused."""
        if not self.paused:
            self.tasks.start(self.worker.run(build.build_id), name=build.build_id)

    async def create(self, image: str, key: str = "", *, force: bool = False) -> Build:
        """Ask for a build."""
        return await self.builds.create(
            TENANT,
            image,
            rootfs_format=RootfsFormat.SQUASHFS,
            labels={},
            priority=2,
            timeout_seconds=0,
            force=force,
            key=key,
        )

    async def end(self, build: Build) -> Build:
        """The build once it has ended."""
        return [seen async for seen in self.builds.watch(TENANT, build.build_id)][-1]

    async def log(self, build: Build) -> list[LogLine]:
        """All lines."""
        lines = self.builds.logs(TENANT, build.build_id, after=0, from_end=False, follow=False)
        return [line async for line in lines]

    def image(self, name: str = "app", text: bytes = b"hello") -> str:
        """A small layout."""
        layer = images.Layer(tar=images.make_tar([File(name="app", data=text)]))
        image = images.Image(
            layers=[layer], config={"Cmd": ["/app"]}, architecture=host_architecture()
        )
        return images.write_image(self.settings.data_dir / "images" / name, image)


@asynccontextmanager
async def build_world(
    data_dir: Path, *, insecure_registries: Sequence[str] = ()
) -> AsyncGenerator[BuildWorld]:
    """A fresh builderd below `data_dir`; at most two builds of a tenant wait."""
    settings = BuilderSettings(
        data_dir=data_dir,
        min_free_bytes=0,
        max_queued_builds_per_tenant=2,
        insecure_registries=list(insecure_registries),
    )
    settings.staging_dir.mkdir(parents=True)
    (data_dir / "images").mkdir()
    database = Database(sqlite_url(settings.builder_dir / "builds.db"))
    upgrade(database.engine, "ironworks.builderd.migrations")
    assets, changes, clock = FakeAssets(settings.staging_dir), Changes(), SystemClock()
    worker = Worker(
        name="w",
        database=database,
        assets=assets,
        changes=changes,
        settings=settings,
        clock=clock,
        parse=parse_image,
    )
    worker.clean()
    later: list[Callable[[Build], Awaitable[None]]] = []

    async def enqueue(build: Build) -> None:
        await later[0](build)

    builds = Builds(
        database=database,
        worker=worker,
        changes=changes,
        settings=settings,
        clock=clock,
        entropy=SystemEntropy(),
        enqueue=enqueue,
    )
    async with Tasks() as tasks:
        made = BuildWorld(settings, assets, worker, builds, tasks)
        later.append(made.enqueue)
        yield made
    database.close()
