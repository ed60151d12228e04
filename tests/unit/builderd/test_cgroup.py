"""A build's program has a share of the machine, and nothing of it outlives the build."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ironworks.builderd.cgroup import PARENT, BuildGroup, BuildGroups, BuildLimits
from ironworks.builderd.sandbox import Sandbox
from ironworks.model.errors import FailedPrecondition, ResourceExhausted
from ironworks.model.units import MIB
from ironworks.runtime.cgroup_layout import Layout, read_layout
from ironworks.runtime.clock import SystemClock
from ironworks.runtime.process import run
from ironworks.runtime.settings import tag_of

LIMITS = BuildLimits(memory_bytes=96 * MIB, processors=1.5, process_count=40)


def groups(place: Path) -> BuildGroups:
    return BuildGroups(read_layout(), tag_of(place), LIMITS, SystemClock())


def left(place: Path) -> list[Path]:
    return [
        path for root in read_layout().roots if (path := root / PARENT / tag_of(place)).exists()
    ]


@asynccontextmanager
async def caged(place: Path) -> AsyncGenerator[tuple[BuildGroup, Sandbox]]:
    async with groups(place).held("bld_1.flatten") as group:
        yield group, Sandbox(writable={"/scratch": place}, join_paths=group.join_paths)


@pytest.mark.root
async def test_all_that_runs_in_the_sandbox_is_in_its_cgroup(tmp_path: Path) -> None:
    async with caged(tmp_path) as (group, sandbox):
        process = await asyncio.create_subprocess_exec(
            *sandbox.argv(["sh", "-c", "sleep 1000 & echo started; wait"]),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"started\n"
        for path in group.join_paths:
            members = {int(line) for line in path.read_text().split()}
            assert process.pid in members
            assert len(members) >= 4  # two of bubblewrap, sh, sleep
    await process.communicate()
    assert left(tmp_path) == []


@pytest.mark.root
async def test_a_fork_bomb_stays_in_its_sandbox_and_ends_with_it(tmp_path: Path) -> None:
    bomb = "i=0; while [ $i -lt 500 ]; do sleep 1000 & i=$((i+1)); done; echo all; wait"
    async with caged(tmp_path) as (group, sandbox):
        process = await asyncio.create_subprocess_exec(
            *sandbox.argv(["sh", "-c", bomb]),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stderr is not None
        said = await process.stderr.readline()
        assert b"fork" in said.lower()
        pids = (group.directories[-1] / "cgroup.procs").read_text().split()
        assert 0 < len(pids) <= LIMITS.process_count
        # The context's end kills what is left.
    await process.communicate()
    assert left(tmp_path) == []


@pytest.mark.root
async def test_too_much_memory_ends_the_program_and_is_said(tmp_path: Path) -> None:
    eater = "x = bytearray(300 << 20); print(len(x))"
    async with caged(tmp_path) as (group, sandbox):
        group.check_memory()
        argv = sandbox.argv(["/usr/bin/python3", "-I", "-c", eater])
        done = await run(argv, timeout_seconds=30, check=False)
        assert done.status != 0
        with pytest.raises(ResourceExhausted, match="memory that a build has"):
            group.check_memory()


@pytest.mark.root
async def test_what_an_earlier_life_left_is_ended(tmp_path: Path) -> None:
    holder = groups(tmp_path).held("bld_2.flatten")
    group = await holder.__aenter__()
    argv = Sandbox(join_paths=group.join_paths).argv(["sh", "-c", "echo started; sleep 1000"])
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    await process.stdout.readline()
    groups(tmp_path).sweep()
    await process.communicate()
    for _ in range(200):
        groups(tmp_path).sweep()
        if not left(tmp_path):
            break
        await asyncio.sleep(0.02)
    assert left(tmp_path) == []
    await holder.__aexit__(None, None, None)


async def test_a_machine_that_allows_no_cgroups_is_said_so(tmp_path: Path) -> None:
    # `/proc` may not be written to, not by root either.
    nowhere = BuildGroups(Layout(unified=Path("/proc")), "tag", LIMITS, SystemClock())
    with pytest.raises((FailedPrecondition, OSError)):
        async with nowhere.held("bld_3"):
            pass
    assert list(tmp_path.iterdir()) == []
