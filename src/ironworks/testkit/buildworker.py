"""`python -m ironworks.testkit.buildworker DIRECTORY NAME [URL]`: a builderd without a server.

It works on the durable queue until it is killed. Assets are files, so that all workers over one
directory know of the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from ironworks.builderd.flatten.plan import Flattened
from ironworks.builderd.queue import make_workflows, top_up
from ironworks.builderd.reconcilers import reconcilers
from ironworks.builderd.types import Build, ImageConfig, Registered
from ironworks.runtime.clock import SystemClock
from ironworks.testkit.builds import BuildWorld, FakeAssets, build_world

LEASE_SECONDS = 3.0
_PERIOD_SECONDS = 0.5


class FileAssets(FakeAssets):
    """assetmanagerd, as far as builderds over one directory know it."""

    @property
    def _kept(self) -> Path:
        path = self.staging.parent / "kept"
        path.mkdir(exist_ok=True)
        return path

    async def is_usable(self, tenant_id: str, asset_id: str) -> bool:
        """Whether it was made by any worker."""
        return (self._kept / f"{tenant_id}.{asset_id}").exists()

    async def register(
        self, build: Build, made: Flattened, config: ImageConfig, staged_name: str
    ) -> Registered:
        """As the real one: takes the file; the same bytes of a tenant are one asset."""
        del config, made
        staged = self.staging / staged_name
        sha256 = hashlib.sha256(staged.read_bytes()).hexdigest()
        staged.replace(self._kept / f"{build.tenant_id}.{sha256}")
        return Registered(asset_id=sha256, sha256=sha256)


def assets_of(directory: Path) -> FileAssets:
    """The assets of all workers over `directory`."""
    return FileAssets(directory / "assets" / "staging")


async def work(directory: Path, name: str, url: str) -> None:
    """Serve the queue for ever."""
    async with build_world(
        directory,
        database_url=url,
        assets=assets_of(directory),
        builderd_database_url=url,
        builderd_worker=name,
        builderd_lease_seconds=LEASE_SECONDS,
    ) as world:
        workflows = make_workflows(world.settings, world.worker.serve)
        await workflows.start()
        sys.stdout.write("ready\n")
        sys.stdout.flush()

        async def refill(builds: Sequence[Build]) -> int:
            return await top_up(workflows, builds)

        await _look_after(world, refill)


async def _look_after(
    world: BuildWorld, refill: Callable[[Sequence[Build]], Awaitable[int]]
) -> None:
    clock = SystemClock()
    loops = reconcilers(
        builds=world.builds,
        worker=world.worker,
        reach=world.reach,
        uploads=world.uploads,
        choices=world.choices,
        top_up=refill,
    )
    while True:
        for loop in loops[:2]:
            await loop.activate_once(clock)
        await clock.sleep(_PERIOD_SECONDS)


if __name__ == "__main__":
    asyncio.run(work(Path(sys.argv[1]), sys.argv[2], (sys.argv[3:] or [""])[0]))
