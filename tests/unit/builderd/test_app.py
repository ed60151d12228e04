"""What can be asked of builderd."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ironworks.builderd.types import BuildFilter, BuildState
from ironworks.model.errors import FailedPrecondition, NotFound, ResourceExhausted
from ironworks.model.pages import PageSpec
from ironworks.testkit.builds import TENANT, BuildWorld, build_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[BuildWorld]:
    async with build_world(tmp_path) as made:
        yield made


async def test_the_same_key_is_the_same_build(world: BuildWorld) -> None:
    reference = world.image()
    first = await world.create(reference, key="k")
    assert (await world.create(reference, key="k")).build_id == first.build_id
    await world.end(first)


async def test_the_queue_is_bounded(world: BuildWorld) -> None:
    world.paused = True
    for number in range(2):
        await world.create(world.image(str(number), str(number).encode()))
    with pytest.raises(ResourceExhausted, match="2 builds"):
        await world.create(world.image("more", b"more"))
    assert await world.builds.usage(TENANT) == (0, 2)
    world.paused = False
    for build in await world.builds.unended():
        await world.enqueue(build)
    for build in await world.builds.page(TENANT, BuildFilter(), PageSpec(size=10)):
        assert (await world.end(build)).state is BuildState.COMPLETED
    assert await world.builds.unended() == []
    stats = await world.builds.stats(TENANT, 0)
    assert (stats.completed_count, stats.queued_count) == (2, 0)
    assert stats.written_bytes > 0


async def test_a_waiting_build_is_cancelled(world: BuildWorld) -> None:
    world.paused = True
    build = await world.create(world.image())
    cancelled = await world.builds.cancel(TENANT, build.build_id, "")
    assert cancelled.state is BuildState.CANCELLED
    assert await world.builds.cancel(TENANT, build.build_id, "") == cancelled
    await world.worker.serve(build.build_id)
    assert (await world.end(build)).state is BuildState.CANCELLED


async def test_logs_are_followed_to_the_end(world: BuildWorld) -> None:
    world.paused = True
    build = await world.create(world.image())
    world.tasks.start(world.worker.serve(build.build_id), name="run")
    followed = [
        line.text
        async for line in world.builds.logs(
            TENANT, build.build_id, after=0, from_end=False, follow=True
        )
    ]
    assert followed[0] == "Accepted."
    assert "is available" in followed[-1]
    assert followed == [line.text for line in await world.log(build)]
    rest = world.builds.logs(TENANT, build.build_id, after=2, from_end=False, follow=False)
    assert [line.text async for line in rest] == followed[2:]
    end = world.builds.logs(TENANT, build.build_id, after=0, from_end=True, follow=True)
    assert [line async for line in end] == []


async def test_others_builds_are_unknown(world: BuildWorld) -> None:
    build = await world.end(await world.create(world.image()))
    for refused in (
        world.builds.get("tnt_evil", build.build_id),
        world.builds.cancel("tnt_evil", build.build_id, ""),
        world.builds.delete("tnt_evil", build.build_id),
    ):
        with pytest.raises(NotFound, match="is not known here"):
            await refused
    assert await world.builds.page("tnt_evil", BuildFilter(), PageSpec(size=10)) == []
    assert await world.builds.get("", build.build_id) == build


async def test_only_what_has_ended_is_deleted(world: BuildWorld) -> None:
    world.paused = True
    build = await world.create(world.image())
    with pytest.raises(FailedPrecondition, match="Cancel it first"):
        await world.builds.delete(TENANT, build.build_id)
    await world.builds.cancel(TENANT, build.build_id, "")
    await world.builds.delete(TENANT, build.build_id)
    with pytest.raises(NotFound):
        await world.builds.get(TENANT, build.build_id)


async def test_lists_are_filtered(world: BuildWorld) -> None:
    done = await world.end(await world.create(world.image()))
    world.paused = True
    waiting = await world.create(world.image("other", b"other"))

    async def ids(query: BuildFilter) -> list[str]:
        found = await world.builds.page(TENANT, query, PageSpec(size=10))
        return [build.build_id for build in found]

    assert await ids(BuildFilter()) == [waiting.build_id, done.build_id]
    assert await ids(BuildFilter(states=(BuildState.QUEUED,))) == [waiting.build_id]
    assert await ids(BuildFilter(image_digest=done.image_digest)) == [done.build_id]
    assert await ids(BuildFilter(labels={"no": "such"})) == []
