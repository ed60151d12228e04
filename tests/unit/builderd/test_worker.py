"""A build from its reference to its asset, whatever happens on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ironworks.builderd.types import BuildState, RootfsFormat
from ironworks.model.errors import Unavailable
from ironworks.testkit.builds import TENANT, BuildWorld, build_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[BuildWorld]:
    async with build_world(tmp_path) as made:
        yield made


async def test_completed_comes_after_the_asset(world: BuildWorld) -> None:
    world.assets.gate = asyncio.Event()
    build = await world.create(world.image())
    async for seen in world.builds.watch(TENANT, build.build_id):
        if seen.state is BuildState.REGISTERING:
            break
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
    async for seen in world.builds.watch(TENANT, build.build_id):
        if seen.state is BuildState.REGISTERING:
            break
    await world.builds.cancel(TENANT, build.build_id, "")
    await world.worker.run(build.build_id)
    assert (await world.end(build)).state is BuildState.CANCELLED
    assert list(world.worker.scratch_dir.iterdir()) == []


async def test_a_stopped_worker_leaves_the_build_for_the_next(world: BuildWorld) -> None:
    world.assets.gate = asyncio.Event()
    build = await world.create(world.image())
    async for seen in world.builds.watch(TENANT, build.build_id):
        if seen.state is BuildState.REGISTERING:
            break
    await world.tasks.stop()
    left = await world.builds.get(TENANT, build.build_id)
    assert left.state is BuildState.REGISTERING
    world.assets.gate = None
    await world.worker.run(build.build_id)
    ended = await world.end(build)
    assert (ended.state, ended.attempt_count) == (BuildState.COMPLETED, 2)


async def test_scratch_of_an_earlier_life_is_removed(world: BuildWorld) -> None:
    (world.worker.scratch_dir / "bld_dead" / "pulled").mkdir(parents=True)
    assert world.worker.clean() == 1
    assert list(world.worker.scratch_dir.iterdir()) == []


async def test_time_is_limited(world: BuildWorld) -> None:
    world.assets.gate = asyncio.Event()
    build = await world.builds.create(
        TENANT,
        world.image(),
        rootfs_format=RootfsFormat.SQUASHFS,
        labels={},
        priority=2,
        timeout_seconds=1,
        force=False,
        key="",
    )
    ended = await world.end(build)
    assert ended.failure is not None
    assert ended.failure.code == "deadline_exceeded"
