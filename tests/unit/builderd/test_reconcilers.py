from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ironworks.builderd.reconcilers import reconcilers
from ironworks.builderd.types import Build, BuildState
from ironworks.runtime.clock import SystemClock
from ironworks.testkit.builds import build_world


async def test_an_accepted_build_that_is_in_no_queue_gets_into_it(tmp_path: Path) -> None:
    async with build_world(tmp_path) as world:
        world.paused = True
        build = await world.create(world.image())
        world.paused = False
        (tmp_path / "builderd" / "scratch" / "dead" / "bld_1").mkdir(parents=True)

        async def top_up(builds: Sequence[Build]) -> int:
            for one in builds:
                await world.enqueue(one)
            return len(builds)

        loops = reconcilers(
            builds=world.builds,
            worker=world.worker,
            reach=world.reach,
            uploads=world.uploads,
            choices=world.choices,
            top_up=top_up,
        )
        reports = {
            loop.name: (await loop.activate_once(SystemClock())).report.counts for loop in loops
        }
        assert reports == {
            "queue": {"waiting": 1, "turns": 1},
            "leftovers": {"scratch": 1, "uploads": 0},
            "sweep": {"keys": 0, "blobs": 0, "credentials": 0},
        }
        assert (await world.end(build)).state is BuildState.COMPLETED
