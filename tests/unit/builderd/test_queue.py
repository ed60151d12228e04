"""The queue of builds on the real engine, with a worker that only notes what it is told."""

from __future__ import annotations

import asyncio
from pathlib import Path

from ironworks.builderd.queue import enqueue, make_workflows
from ironworks.builderd.types import Build, BuilderSettings, BuildState, RootfsFormat


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


async def test_every_build_is_run_once_and_no_tenant_takes_all(tmp_path: Path) -> None:
    settings = BuilderSettings(data_dir=tmp_path, max_builds=2, max_builds_per_tenant=1)
    ran: list[str] = []
    running: set[str] = set()
    most = 0
    finished = asyncio.Event()

    async def run(build_id: str) -> None:
        nonlocal most
        running.add(build_id)
        most = max(most, len(running))
        await asyncio.sleep(0.2)
        running.discard(build_id)
        ran.append(build_id)
        if len(ran) == 3:
            finished.set()

    workflows = make_workflows(settings, run)
    await workflows.start()
    try:
        for number in (1, 2, 2, 3, 1):
            await enqueue(workflows, build(number))
        async with asyncio.timeout(30):
            await finished.wait()
        await enqueue(workflows, build(1))
        await asyncio.sleep(0.5)
    finally:
        await workflows.stop()
    assert sorted(ran) == ["bld_1", "bld_2", "bld_3"]
    assert most == 1
