"""A build can be cancelled at any point: it ends at once, and nothing of it is left."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from ironworks.builderd.cgroup import PARENT
from ironworks.builderd.journal import Journal
from ironworks.builderd.types import Build, BuildState
from ironworks.model.units import NS_PER_MS
from ironworks.runtime.cgroup_layout import read_layout
from ironworks.runtime.clock import SystemClock
from ironworks.runtime.settings import tag_of
from ironworks.testkit.builds import TENANT, BuildWorld, build_world
from ironworks.testkit.hostile_registry import HostileRegistry, hostile_registry
from ironworks.testkit.images import File

BOUND_SECONDS = 20
"""The promise is 2; a machine that runs all tests at once may need longer."""
BIG = [File(name=f"f{n}", data=os.urandom(1 << 20)) for n in range(64)]
CLOCK = SystemClock()


@pytest.fixture
async def registry() -> AsyncIterator[HostileRegistry]:
    async with hostile_registry() as running:
        yield running


@pytest.fixture
async def world(tmp_path: Path, registry: HostileRegistry) -> AsyncIterator[BuildWorld]:
    async with build_world(tmp_path, insecure_registries=[registry.address]) as made:
        made.assets.gate = asyncio.Event()  # whoever gets so far stays there
        yield made


@pytest.fixture
def held_validating(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is valid stays VALIDATING: that state is left within a millisecond otherwise."""
    enter = Journal.enter

    async def held(self: Journal, build: Build, state: BuildState, text: str) -> Build:
        if state is BuildState.REGISTERING:
            await asyncio.Event().wait()
        return await enter(self, build, state, text)

    monkeypatch.setattr(Journal, "enter", held)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - files and processes tell nobody
        await asyncio.sleep(0.01)


async def under_way(world: BuildWorld, registry: HostileRegistry, stage: str) -> Build:
    """A build that is in a stage, and in the middle of it."""
    if stage == "queued":
        world.paused = True
        return await world.create(world.image())
    if stage in ("resolving", "pulling"):
        name = "hang" if stage == "resolving" else "hang-bytes"
        build = await world.create(f"{registry.address}/{name}:1")
        await until(lambda: any(f"/{name}/" in one for one in registry.asked))
    elif stage == "waiting for the same":
        reference = world.image()
        first = await world.create(reference)
        await world.until(first, BuildState.REGISTERING)
        build = await world.create(reference, force=True)
        lines = world.builds.logs(TENANT, build.build_id, after=0, from_end=False, follow=True)
        async for line in lines:
            if "builds the same" in line.text:
                return build
    else:
        build = await world.create(world.image("big", b"", *BIG))
    state = BuildState.RESOLVING if stage == "resolving" else BuildState(stage)
    await world.until(build, state)
    return build


def cgroups(world: BuildWorld) -> list[Path]:
    """Those of programs that work for builds of this world."""
    tag = tag_of(world.settings.data_dir)
    return [one for root in read_layout().roots for one in (root / PARENT).glob(f"{tag}-*/*")]


async def cancelled_at(world: BuildWorld, registry: HostileRegistry, stage: str) -> None:
    build = await under_way(world, registry, stage)
    began_ns = CLOCK.monotonic_ns()
    async with asyncio.timeout(BOUND_SECONDS):
        cancelled = await world.builds.cancel(TENANT, build.build_id, "")
        await until(lambda: not (world.worker.scratch_dir / build.build_id).exists())
        if stage != "waiting for the same":  # the first goes on
            await until(lambda: world.worker.is_idle and not cgroups(world))
    took_ms = (CLOCK.monotonic_ns() - began_ns) // NS_PER_MS
    sys.stdout.write(f"cancelled while {stage}: gone after {took_ms} ms\n")
    assert cancelled.state is BuildState.CANCELLED
    assert (await world.end(build)).state is BuildState.CANCELLED
    assert not [
        path for path in world.settings.staging_dir.iterdir() if build.build_id in path.name
    ]


async def test_a_build_is_cancelled_while_it_is_validated(
    world: BuildWorld, registry: HostileRegistry, held_validating: None
) -> None:
    del held_validating
    await cancelled_at(world, registry, "validating")


@pytest.mark.parametrize(
    "stage",
    ["queued", "resolving", "waiting for the same", "pulling", "building", "registering"],
)
async def test_a_build_is_cancelled_at_any_point(
    world: BuildWorld, registry: HostileRegistry, stage: str
) -> None:
    await cancelled_at(world, registry, stage)
