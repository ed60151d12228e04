"""The queue of builds on the real engine, with a worker that only notes what it is told."""

from __future__ import annotations

import asyncio
from pathlib import Path

from ironworks.builderd.queue import enqueue, make_workflows, top_up
from ironworks.builderd.types import Build, BuilderSettings, BuildState, RootfsFormat
from ironworks.runtime.workflows import Workflows


def build(number: int, tenant_id: str = "tnt_acme") -> Build:
    return Build(
        build_id=f"bld_{number}",
        tenant_id=tenant_id,
        image="app",
        format=RootfsFormat.SQUASHFS,
        state=BuildState.QUEUED,
        created_at_ns=1,
        updated_at_ns=1,
        timeout_seconds=60,
    )


async def idle(workflows: Workflows) -> None:
    async with asyncio.timeout(30):
        while True:
            if not await workflows.unfinished():
                return
            await asyncio.sleep(0.05)


async def test_every_build_brings_one_turn_and_a_worker_serves_so_many(
    tmp_path: Path, database_url: str
) -> None:
    url = database_url if database_url.startswith("postgresql") else ""
    settings = BuilderSettings(data_dir=tmp_path, max_builds=2, builderd_database_url=url)
    served: list[str] = []
    running: set[str] = set()
    most = 0
    both, finished = asyncio.Event(), asyncio.Event()

    async def serve(turn: str) -> None:
        nonlocal most
        running.add(turn)
        most = max(most, len(running))
        if most == 2:
            both.set()
        await both.wait()
        running.discard(turn)
        served.append(turn)
        if len(served) == 3:
            finished.set()

    workflows = make_workflows(settings, serve)
    await workflows.start()
    try:
        for number in (1, 2, 2, 3, 1):
            await enqueue(workflows, build(number))
        async with asyncio.timeout(30):
            await finished.wait()
        await enqueue(workflows, build(1))
        await idle(workflows)
        assert sorted(served) == ["bld_1", "bld_2", "bld_3"]
        assert most == 2
        # A build that has not ended, and whose turn has: it gets another.
        finished.clear()
        served.clear()
        assert await top_up(workflows, [build(1)]) == 1
        await idle(workflows)
        assert served == ["bld_1.1"]
    finally:
        await workflows.stop()
