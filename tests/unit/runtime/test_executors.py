from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from ironworks.runtime.executors import Executors, Heartbeat
from ironworks.runtime.workflows import ENDED, Json, Outcome, Queue, Run, Workflows

LEASE_SECONDS = 1.0
POLL_SECONDS = 0.02


def leases(url: str, name: str, lease_seconds: float) -> Executors:
    return Executors(url, "public", name, lease_seconds)


def test_who_does_not_renew_is_dead_until_it_comes_back(database_url: str) -> None:
    ours = leases(database_url, "ours", 60)
    other = leases(database_url, "other", -1)
    assert not ours.renew()
    assert ours.renew()
    assert not other.renew()
    assert ours.dead() == ["other"]
    assert other.dead() == []
    back = leases(database_url, "other", 60)
    assert not back.renew()
    assert ours.dead() == []
    ours.bury("other")
    assert back.renew()
    back.end()
    assert ours.dead() == ["other"]
    ours.bury("other")
    assert ours.dead() == []
    for one in (ours, other, back):
        one.close()


def test_a_heartbeat_takes_over_once_and_knows_when_it_was_late(database_url: str) -> None:
    done: list[str] = []

    def recover(executor_id: str) -> int:
        done.append(executor_id)
        return 0

    beating = Heartbeat(
        leases(database_url, "ours", 60), 60, lost=lambda: done.append("lost"), recover=recover
    )
    beating.start()
    beating.beat()
    assert done == []
    dead = leases(database_url, "dead", -1)
    dead.renew()
    beating.beat()
    beating.beat()
    assert done == ["dead"]
    ours = leases(database_url, "ours", 60)
    ours.end()
    beating.beat()
    assert done == ["dead", "lost", "ours"]
    beating.stop()
    beating.end()
    for one in (dead, ours):
        one.close()


OTHER = textwrap.dedent("""
    import asyncio, sys
    from ironworks.runtime.workflows import Queue, Workflows

    async def long(run, argument):
        async def effect():
            print("begun", flush=True)
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                print("given up", flush=True)
                raise
        return await run.step("long", effect)

    async def main():
        workflows = Workflows(
            name="test",
            database_url=sys.argv[1],
            queues=[Queue(name="work", per_process=1)],
            executor_id="other",
            poll_seconds=0.02,
            lease_seconds=1.0,
        )
        workflows.register("long", long)
        await workflows.start()
        await workflows.submit("long", "one", None, queue="work", partition="a")
        await asyncio.sleep(3600)

    asyncio.run(main())
""")


async def _ended(workflows: Workflows, workflow_id: str) -> Outcome:
    async with asyncio.timeout(30):
        while True:
            outcome = await workflows.outcome(workflow_id)
            if outcome.state in ENDED:
                return outcome
            await asyncio.sleep(POLL_SECONDS)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_run_goes_on_elsewhere(
    database_url: str, how: signal.Signals, tmp_path: Path
) -> None:
    with (tmp_path / "said").open("w+b") as said:
        other = subprocess.Popen([sys.executable, "-c", OTHER, database_url], stdout=said)
        try:
            await _until(lambda: (tmp_path / "said").read_text() == "begun\n")

            async def long(run: Run, _: Json) -> Json:
                async def effect() -> Json:
                    return "elsewhere"

                return await run.step("long", effect)

            workflows = Workflows(
                name="test",
                database_url=database_url,
                queues=[Queue(name="work", per_process=1)],
                executor_id="ours",
                poll_seconds=POLL_SECONDS,
                lease_seconds=LEASE_SECONDS,
            )
            workflows.register("long", long)
            await workflows.start()
            try:
                os.kill(other.pid, how)
                assert (await _ended(workflows, "one")).answer == "elsewhere"
                if how is signal.SIGSTOP:
                    os.kill(other.pid, signal.SIGCONT)
                    await _until(lambda: "given up" in (tmp_path / "said").read_text())
                    assert (await workflows.outcome("one")).answer == "elsewhere"
            finally:
                await workflows.stop()
        finally:
            other.kill()
            other.wait()


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while True:
            if holds():
                return
            await asyncio.sleep(POLL_SECONDS)
