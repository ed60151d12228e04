from __future__ import annotations

from pathlib import Path

from ironworks.builderd.reconcilers import reconcilers
from ironworks.builderd.types import BuildState
from ironworks.runtime.clock import SystemClock
from ironworks.testkit.builds import build_world


async def test_an_accepted_build_that_is_in_no_queue_gets_into_it(tmp_path: Path) -> None:
    async with build_world(tmp_path) as world:
        world.paused = True
        build = await world.create(world.image())
        world.paused = False
        reports = {
            loop.name: (await loop.activate_once(SystemClock())).report.counts
            for loop in reconcilers(world.builds)
        }
        assert reports == {"queue": {"waiting": 1}, "sweep": {"keys": 0}}
        assert (await world.end(build)).state is BuildState.COMPLETED
