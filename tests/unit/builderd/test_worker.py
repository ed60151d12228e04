"""A build from its reference to its asset, whatever happens on the way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ironworks.builderd import worker
from ironworks.builderd.types import BuildState
from ironworks.model.errors import FailedPrecondition, Unavailable
from ironworks.testkit.builds import TENANT, BuildWorld, build_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[BuildWorld]:
    async with build_world(tmp_path) as made:
        yield made


async def test_completed_comes_after_the_asset(world: BuildWorld) -> None:
    world.assets.gate = asyncio.Event()
    build = await world.create(world.image())
    await world.until(build, BuildState.REGISTERING)
    now = await world.builds.get(TENANT, build.build_id)
    assert now.state is BuildState.REGISTERING
    world.assets.gate.set()
    ended = await world.end(build)
    assert ended.state is BuildState.COMPLETED
    assert ended.result is not None
    assert ended.result.asset_id in world.assets.usable
    assert list(world.worker.scratch_dir.iterdir()) == []


async def test_a_passing_fault_of_assetmanagerd_is_tried_again(world: BuildWorld) -> None:
    world.assets.failures = [Unavailable("down"), Unavailable("down")]
    ended = await world.end(await world.create(world.image()))
    assert ended.state is BuildState.COMPLETED


async def test_a_lasting_fault_fails_the_build(world: BuildWorld) -> None:
    world.assets.failures = [Unavailable("assetmanagerd is down.")] * 4
    ended = await world.end(await world.create(world.image()))
    assert ended.failure is not None
    assert (ended.failure.code, ended.failure.state) == ("unavailable", BuildState.REGISTERING)
    assert list(world.worker.scratch_dir.iterdir()) == []


async def test_a_fault_of_ours_ends_the_build_too(world: BuildWorld) -> None:
    world.assets.failures = [ValueError("a bug")]
    ended = await world.end(await world.create(world.image()))
    assert ended.failure is not None
    assert ended.failure.code == "internal"
    assert "a bug" not in ended.failure.message


async def test_what_is_gone_is_built_again(world: BuildWorld) -> None:
    reference = world.image()
    first = await world.end(await world.create(reference))
    again = await world.create(reference)
    assert (again.state, again.reused_build_id) == (BuildState.COMPLETED, first.build_id)
    world.assets.usable.clear()
    third = await world.end(await world.create(reference))
    assert third.state is BuildState.COMPLETED
    assert not third.reused_build_id


async def test_a_changed_layout_is_another_image(world: BuildWorld) -> None:
    first = await world.end(await world.create(world.image(text=b"one")))
    second = await world.end(await world.create(world.image(text=b"two")))
    assert not second.reused_build_id
    assert first.image_digest != second.image_digest


async def test_a_running_build_is_cancelled(world: BuildWorld) -> None:
    world.assets.gate = asyncio.Event()
    build = await world.create(world.image())
    await world.until(build, BuildState.REGISTERING)
    await world.builds.cancel(TENANT, build.build_id, "")
    await world.worker.serve(build.build_id)
    assert (await world.end(build)).state is BuildState.CANCELLED
    assert list(world.worker.scratch_dir.iterdir()) == []


async def test_a_stopped_worker_leaves_the_build_for_the_next(world: BuildWorld) -> None:
    world.assets.gate = asyncio.Event()
    build = await world.create(world.image())
    await world.until(build, BuildState.REGISTERING)
    await world.tasks.stop()
    left = await world.builds.get(TENANT, build.build_id)
    assert left.state is BuildState.REGISTERING
    world.assets.gate = None
    await world.worker.serve(build.build_id)
    ended = await world.end(build)
    assert (ended.state, ended.attempt_count) == (BuildState.COMPLETED, 2)


async def test_scratch_of_an_earlier_life_is_removed(world: BuildWorld) -> None:
    (world.worker.scratch_dir / "bld_dead" / "pulled").mkdir(parents=True)
    world.worker.close()
    assert world.worker.open() == 1
    assert list(world.worker.scratch_dir.iterdir()) == []


async def test_scratch_of_a_dead_neighbour_is_removed_and_a_living_ones_stays(
    world: BuildWorld, tmp_path: Path
) -> None:
    async with build_world(tmp_path, builderd_worker="other") as other:
        living = other.worker.scratch_dir / "bld_living"
        living.mkdir()
        assert world.worker.clean() == 0
        assert living.exists()
    assert world.worker.clean() == 1
    assert not living.exists()


async def test_a_worker_that_is_cleaned_up_after_may_come_back_meanwhile(
    world: BuildWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with build_world(tmp_path, builderd_worker="other") as other:
        cleaning, let_go = threading.Event(), threading.Event()

        def slowly(*of: object) -> None:
            if of[-1] == other.worker.name:
                cleaning.set()
                let_go.wait(30)

        other.worker.close()
        with monkeypatch.context() as patched:
            patched.setattr(worker, "sweep_groups", slowly)
            async with asyncio.TaskGroup() as both:
                cleaned = both.create_task(asyncio.to_thread(world.worker.clean))
                await asyncio.to_thread(cleaning.wait, 30)
                opened = both.create_task(asyncio.to_thread(other.worker.open))
                await asyncio.sleep(0.1)
                assert not opened.done()
                let_go.set()
            assert (cleaned.result(), opened.result()) == (0, 0)


async def test_two_workers_here_have_two_names(world: BuildWorld, tmp_path: Path) -> None:
    del world
    with pytest.raises(FailedPrecondition, match="called builderd too"):
        async with build_world(tmp_path):
            pass


async def test_time_is_limited(world: BuildWorld) -> None:
    world.assets.gate = asyncio.Event()
    ended = await world.end(await world.create(world.image(), timeout_seconds=1))
    assert ended.failure is not None
    assert ended.failure.code == "deadline_exceeded"


async def test_a_build_that_kills_its_workers_fails_in_the_end(tmp_path: Path) -> None:
    async with build_world(tmp_path, max_build_attempts=1) as world:
        world.assets.gate = asyncio.Event()
        build = await world.create(world.image())
        await world.until(build, BuildState.REGISTERING)
        await world.tasks.stop()
        await world.worker.serve(build.build_id)
        ended = await world.end(build)
        assert ended.failure is not None
        assert "died 1 times" in ended.failure.message


async def test_a_worker_that_lost_its_build_does_no_more_for_it(
    tmp_path: Path, database_url: str
) -> None:
    async with (
        build_world(tmp_path / "one", database_url=database_url) as slow,
        build_world(
            tmp_path / "two",
            database_url=database_url,
            builderd_worker="b",
            local_image_roots=[tmp_path / "one" / "images"],
        ) as fast,
    ):
        slow.assets.gate = asyncio.Event()
        build = await slow.create(slow.image())
        await slow.until(build, BuildState.REGISTERING)
        # As the queue does when the first has given no sign of life.
        await fast.worker.serve(build.build_id)
        slow.assets.gate.set()
        await slow.worker.serve(build.build_id)
        ended = await slow.end(build)
        assert (ended.state, ended.worker, ended.attempt_count) == (BuildState.COMPLETED, "b", 2)
        assert list(slow.worker.scratch_dir.iterdir()) == []
        assert list(slow.settings.staging_dir.iterdir()) == []


async def test_a_build_is_cancelled_through_another_builderd(
    tmp_path: Path, database_url: str
) -> None:
    async with (
        build_world(tmp_path / "one", database_url=database_url) as runs,
        build_world(tmp_path / "two", database_url=database_url, builderd_worker="b") as asked,
    ):
        runs.assets.gate = asyncio.Event()
        build = await runs.create(runs.image())
        await runs.until(build, BuildState.REGISTERING)
        await asked.builds.cancel(TENANT, build.build_id, "")
        async with asyncio.timeout(30):
            await runs.worker.serve(build.build_id)
        assert (await runs.end(build)).state is BuildState.CANCELLED
        assert runs.worker.is_idle
        assert list(runs.worker.scratch_dir.iterdir()) == []


async def test_the_same_image_is_built_once_by_two_builderds(
    tmp_path: Path, database_url: str
) -> None:
    async with (
        build_world(tmp_path / "one", database_url=database_url) as one,
        build_world(tmp_path / "one", database_url=database_url, builderd_worker="b") as two,
    ):
        two.assets.usable = one.assets.usable
        one.assets.gate = two.assets.gate = asyncio.Event()
        reference = one.image()
        first, second = await one.create(reference), await two.create(reference)
        for world, build in ((one, first), (two, second)):
            async for seen in world.builds.watch(TENANT, build.build_id):
                if seen.state is BuildState.REGISTERING or seen.image_digest:
                    break
        one.assets.gate.set()
        ended = [await one.end(first), await two.end(second)]
        assert {build.state for build in ended} == {BuildState.COMPLETED}
        assert sorted(bool(build.reused_build_id) for build in ended) == [False, True]
        assert len(one.assets.usable) == 1
