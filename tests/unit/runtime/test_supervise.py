"""The supervisor: keeps children alive, ends them, leaves none behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ironworks.runtime.clock import SystemClock
from ironworks.runtime.settings import BadSettings
from ironworks.runtime.supervise import (
    LONGEST_WAIT_SECONDS,
    Child,
    Supervisor,
    bound_log,
    restart_wait_seconds,
)
from ironworks.runtime.tasks import Tasks

SLEEP = (sys.executable, "-c", "import time; print('here', flush=True); time.sleep(60)")


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.02)
    pytest.fail("it did not happen")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


@asynccontextmanager
async def supervised(
    tmp_path: Path, *children: Child
) -> AsyncGenerator[tuple[Supervisor, asyncio.Event]]:
    supervisor = Supervisor(children, log_dir=tmp_path, clock=SystemClock())
    stop, ready = asyncio.Event(), asyncio.Event()
    async with Tasks() as tasks:
        running = tasks.start(supervisor.run(stop, ready.set), name="supervisor")
        yield supervisor, ready
        stop.set()
        await running


async def test_children_run_log_and_end_with_the_supervisor(tmp_path: Path) -> None:
    async with supervised(tmp_path, Child(name="a", argv=SLEEP)) as (supervisor, ready):
        await ready.wait()
        await until(lambda: "a" in supervisor.pids)
        pid = supervisor.pids["a"]
        await until(lambda: (tmp_path / "a.log").read_text() == "here\n")
    assert not alive(pid)


async def test_a_killed_child_is_started_again(tmp_path: Path) -> None:
    async with supervised(tmp_path, Child(name="a", argv=SLEEP)) as (supervisor, _):
        await until(lambda: "a" in supervisor.pids)
        first = supervisor.pids["a"]
        os.kill(first, signal.SIGKILL)
        await until(lambda: supervisor.pids.get("a", first) != first)


async def test_not_ready_before_every_child_is(tmp_path: Path) -> None:
    answers = iter([False, False])

    async def readiness() -> bool:
        return next(answers, True)

    child = Child(name="a", argv=SLEEP, ready=readiness)
    async with supervised(tmp_path, child) as (_, ready):
        await ready.wait()
    assert next(answers, None) is None


async def test_a_child_that_waits_for_a_file_starts_when_it_is_there(tmp_path: Path) -> None:
    needed = tmp_path / "needed"
    async with supervised(tmp_path, Child(name="a", argv=SLEEP, needs_file=needed)) as (one, _):
        await asyncio.sleep(0.2)
        assert one.pids == {}
        needed.touch()
        await until(lambda: "a" in one.pids)


def test_no_service_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    script = f"""
import asyncio, sys
from pathlib import Path
from ironworks.runtime.clock import SystemClock
from ironworks.runtime.supervise import Child, Supervisor
children = [Child(name="a", argv=(sys.executable, "-c", "import time; time.sleep(60)"))]
supervisor = Supervisor(children, log_dir=Path({str(tmp_path)!r}), clock=SystemClock())
async def main():
    stop = asyncio.Event()
    async def say():
        while "a" not in supervisor.pids:
            await asyncio.sleep(0.02)
        # Linger until setpriv has become the child, so that what dies is what was supervised.
        comm = Path(f"/proc/{{supervisor.pids['a']}}/comm")
        while comm.read_text() == "setpriv\\n":
            await asyncio.sleep(0.02)
        print(supervisor.pids["a"], flush=True)
    await asyncio.gather(supervisor.run(stop, lambda: None), say())
asyncio.run(main())
"""
    read_end, write_end = os.pipe()
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", script],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, write_end, 1)],
    )
    os.close(write_end)
    with os.fdopen(read_end) as said:
        child = int(said.readline())
        assert alive(child)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        # The pipe's other end is the child's, too: end of file means that it has ended.
        assert said.read() == ""
    for _ in range(100):
        if not alive(child):
            break
        signal.sigtimedwait([], 0.05)
    assert not alive(child)


async def test_settings_that_a_child_refuses_stop_the_start(tmp_path: Path) -> None:
    refusal = "import sys; print('metald: max_vms is too small.'); sys.exit(78)"

    async def never() -> bool:
        return False

    refusing = Child(name="a", argv=(sys.executable, "-c", refusal), ready=never)
    running = Child(name="b", argv=SLEEP)
    supervisor = Supervisor([running, refusing], log_dir=tmp_path, clock=SystemClock())
    with pytest.raises(BadSettings, match=r"metald: max_vms is too small\."):
        await supervisor.run(asyncio.Event(), lambda: None)
    assert supervisor.pids == {}


def test_restart_waits_grow_to_a_bound() -> None:
    waits = [restart_wait_seconds(count) for count in range(40)]
    assert waits == sorted(waits)
    assert waits[0] < 1
    assert waits[-1] == LONGEST_WAIT_SECONDS


def test_a_long_log_is_moved_and_its_writer_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    with path.open("ab", buffering=0) as writer:
        writer.write(b"x" * 100)
        assert bound_log(path, max_bytes=50)
        writer.write(b"after")
    assert path.read_bytes() == b"after"
    assert (tmp_path / "a.log.1").read_bytes() == b"x" * 100
    assert not bound_log(path, max_bytes=50)
    assert not bound_log(tmp_path / "absent", max_bytes=50)
