"""Workers of one queue in processes of their own: killed, paused, and two at a time."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from ironworks.builderd.types import ENDED, Build, BuildFilter, BuildState
from ironworks.model.pages import PageSpec
from ironworks.runtime.clock import SystemEntropy
from ironworks.testkit.builds import BuildWorld, build_world
from ironworks.testkit.buildworker import assets_of
from ironworks.testkit.images import File

TENANTS = ("tnt_a", "tnt_b", "tnt_c")


class Fleet:
    """Processes of workers over one directory and one database."""

    def __init__(self, directory: Path, url: str) -> None:
        self._directory = directory
        self._url = url
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    async def start(self, name: str) -> None:
        command = [sys.executable, "-m", "ironworks.testkit.buildworker", str(self._directory)]
        with (self._directory / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [*command, name, *([self._url] if self._url else [])], stdout=log, stderr=log
            )

    async def ready(self, name: str, lives: int = 1) -> None:
        async with asyncio.timeout(600):
            while True:
                said = (self._directory / f"{name}.log").read_text()
                if said.count("ready\n") >= lives:
                    return
                if self.running[name].poll() is not None:
                    pytest.fail(f"{name} does not start: {said[-2000:]}")
                await asyncio.sleep(0.05)

    def kill(self, name: str) -> None:
        worker = self.running.pop(name)
        worker.kill()
        worker.wait()

    def stop(self) -> None:
        for name in list(self.running):
            with suppress(ProcessLookupError):
                self.running[name].send_signal(signal.SIGCONT)
            self.kill(name)


@pytest.fixture
def url(database_url: str) -> str:
    """What the setting `builderd_database_url` is."""
    return "" if database_url.startswith("sqlite") else database_url


@pytest.fixture
async def world(tmp_path: Path, url: str) -> AsyncIterator[BuildWorld]:
    """A builderd that takes requests and builds nothing."""
    async with build_world(
        tmp_path,
        database_url=url,
        assets=assets_of(tmp_path),
        builderd_database_url=url,
        builderd_worker="asked",
        max_queued_builds_per_tenant=100,
    ) as made:
        made.paused = True
        yield made


@pytest.fixture
async def fleet(tmp_path: Path, url: str, world: BuildWorld) -> AsyncIterator[Fleet]:
    del world
    made = Fleet(tmp_path, url)
    yield made
    made.stop()


async def ended(world: BuildWorld) -> list[Build]:
    """All builds, once none is under way."""
    async with asyncio.timeout(600):
        while True:
            builds = await world.builds.page("", BuildFilter(), PageSpec(size=1000))
            if all(build.state in ENDED for build in builds):
                return builds
            await asyncio.sleep(0.1)


def left(directory: Path) -> list[Path]:
    return [
        *(directory / "builderd" / "scratch").glob("*/*"),
        *(directory / "assets" / "staging").iterdir(),
    ]


async def clean(directory: Path) -> None:
    """Nothing is left, a little later at the latest: workers look after it now and then."""
    async with asyncio.timeout(60):
        while True:
            if not left(directory):
                return
            await asyncio.sleep(0.2)


async def test_two_workers_share_the_builds_and_no_tenant_takes_all(
    world: BuildWorld, fleet: Fleet
) -> None:
    for name in ("one", "two"):
        await fleet.start(name)
    builds = [
        await world.create(world.image(f"{tenant}{n}", os.urandom(9)), tenant_id=tenant)
        for tenant in TENANTS
        for n in range(3)
    ]
    done = await ended(world)
    assert {build.state for build in done} == {BuildState.COMPLETED}
    assert len(done) == len(builds)
    assert {build.attempt_count for build in done} == {1}
    assert {build.worker for build in done} <= {"one", "two"}
    # Each tenant's first came before any tenant's third.
    started = {build.build_id: build.started_at_ns for build in done}
    first = [started[build.build_id] for build in builds[::3]]
    third = [started[build.build_id] for build in builds[2::3]]
    assert max(first) < min(third)


async def test_a_build_goes_on_elsewhere_while_its_worker_sleeps(
    world: BuildWorld, fleet: Fleet, tmp_path: Path, url: str
) -> None:
    if not url:
        pytest.skip("a process that is frozen while it writes keeps SQLite's lock")
    await fleet.start("slow")
    reference = world.image("app", b"", *_random_files(40))
    build = await world.create(reference)
    seen = build
    while seen.state is BuildState.QUEUED:
        await asyncio.sleep(0.005)
        seen = await world.builds.get(build.tenant_id, build.build_id)
    fleet.running["slow"].send_signal(signal.SIGSTOP)
    await fleet.start("other")
    (done,) = await ended(world)
    assert (done.state, done.worker, done.attempt_count) == (BuildState.COMPLETED, "other", 2)
    fleet.running["slow"].send_signal(signal.SIGCONT)
    await clean(tmp_path)
    assert await world.builds.get(build.tenant_id, build.build_id) == done


@pytest.mark.timeout(3600)  # with --thorough
async def test_builds_end_whatever_is_killed(
    world: BuildWorld, fleet: Fleet, tmp_path: Path, url: str, *, thorough: bool
) -> None:
    if not (url or thorough):
        pytest.skip("on SQLite with --thorough only: it is the same code")
    chance, kills = SystemEntropy(), 50 if thorough else 2
    lives = {"one": 1, "two": 1}
    for name in lives:
        await fleet.start(name)
    for number in range(kills):
        open_builds = len(await world.builds.unended())
        for n in range(max(0, 6 - open_builds)):
            files = _random_files(int(chance.uniform(0, 5)) ** 2)
            reference = world.image(f"{number}-{n}", os.urandom(9), *files)
            await world.create(reference, tenant_id=TENANTS[n % 3])
        name = "one" if chance.uniform(0, 1) < 0.5 else "two"
        await fleet.ready(name, lives[name])
        await asyncio.sleep(chance.uniform(0, 2.5))
        fleet.kill(name)
        lives[name] += 1
        await fleet.start(name)
    done = await ended(world)
    attempts = max(build.attempt_count for build in done)
    states = Counter(build.state.value for build in done)
    sys.stdout.write(f"{kills} kills: {dict(states)}, at most {attempts} attempts at a build\n")
    for build in done:
        assert build.state is BuildState.COMPLETED or (
            build.failure is not None and "worker died" in build.failure.message
        )
    await clean(tmp_path)


def _random_files(count: int) -> list[File]:
    return [File(name=f"f{n}", data=os.urandom(1 << 20)) for n in range(count)]
