from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ironworks.model.errors import DeadlineExceeded, FailedPrecondition, Internal
from ironworks.runtime.process import (
    FIRST_NICE,
    MAX_OUTPUT_BYTES,
    go_first,
    run,
)
from ironworks.runtime.tasks import Tasks

_OPEN_MANY = """
import resource
from ironworks.runtime.process import open_many_files
print(open_many_files(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


async def shell(script: str, timeout_seconds: float = 20.0) -> bytes:
    return (await run(["sh", "-c", script], timeout_seconds=timeout_seconds)).stdout


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def gone(pid: int) -> bool:
    for _ in range(500):
        if not alive(pid):
            return True
        await asyncio.sleep(0.01)
    return False


async def pid_in(path: Path) -> int:
    for _ in range(500):
        if (written := await asyncio.to_thread(read, path)).endswith("\n"):
            return int(written)
        await asyncio.sleep(0.01)
    pytest.fail("the program wrote no pid")


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


async def test_a_program_is_run_to_its_end() -> None:
    done = await run(["sh", "-c", "echo out; echo err >&2"], timeout_seconds=20)
    assert (done.status, done.stdout, done.stderr) == (0, b"out\n", b"err\n")
    assert done.stderr_tail == "err"


async def test_arguments_go_through_no_shell() -> None:
    done = await run(["echo", "$HOME; false && `x`"], timeout_seconds=20)
    assert done.stdout == b"$HOME; false && `x`\n"


async def test_standard_input_is_what_was_given_or_empty() -> None:
    done = await run(["cat"], timeout_seconds=20, stdin=b"x" * 1_000_000)
    assert done.stdout == b"x" * 1_000_000
    assert (await run(["cat"], timeout_seconds=20)).stdout == b""


async def test_a_program_that_reads_nothing_of_its_input_is_no_failure() -> None:
    done = await run(["true"], timeout_seconds=20, stdin=b"x" * 1_000_000)
    assert done.status == 0


async def test_the_environment_and_the_directory_are_those_given(tmp_path: Path) -> None:
    done = await run(
        ["/bin/sh", "-c", "pwd; env"], timeout_seconds=20, env={"ONLY": "this"}, cwd=tmp_path
    )
    lines = done.stdout.decode().splitlines()
    assert lines[0] == str(tmp_path)
    assert "ONLY=this" in lines
    assert not [line for line in lines if line.startswith("HOME=")]


async def test_a_failure_carries_what_the_program_said_but_not_to_the_public() -> None:
    with pytest.raises(Internal, match="sh failed with status 3") as caught:
        await shell("echo secret reason >&2; exit 3")
    assert caught.value.context["stderr"] == "secret reason"
    assert "secret" not in str(caught.value)


async def test_a_failure_that_is_expected_is_an_answer() -> None:
    done = await run(["sh", "-c", "exit 3"], timeout_seconds=20, check=False)
    assert done.status == 3


async def test_death_by_a_signal_is_a_negative_status() -> None:
    done = await run(["sh", "-c", "kill -9 $$"], timeout_seconds=20, check=False)
    assert done.status == -9


@pytest.mark.parametrize("program", ["no-such-program-here", "/etc"])
async def test_a_missing_program_is_said_with_what_to_do(program: str) -> None:
    with pytest.raises(FailedPrecondition, match=r"is not installed.*iron setup"):
        await run([program], timeout_seconds=20)


async def test_a_missing_directory_is_not_mistaken_for_a_missing_program(tmp_path: Path) -> None:
    with pytest.raises(Internal, match="no directory"):
        await run(["true"], timeout_seconds=20, cwd=tmp_path / "absent")


async def test_output_is_read_to_its_end_but_kept_only_to_its_bound() -> None:
    done = await run(
        ["head", "-c", str(MAX_OUTPUT_BYTES + 999_999), "/dev/zero"], timeout_seconds=60
    )
    assert (done.status, len(done.stdout)) == (0, MAX_OUTPUT_BYTES)


async def test_a_program_that_does_not_end_is_killed_with_all_it_started(tmp_path: Path) -> None:
    script = f"sleep 1000 & echo $! > {tmp_path}/pid; wait"
    with pytest.raises(DeadlineExceeded, match=r"sh did not end within 0\.3 seconds"):
        await shell(script, timeout_seconds=0.3)
    assert await gone(await pid_in(tmp_path / "pid"))


async def test_what_outlives_the_program_and_holds_its_output_is_killed_too(tmp_path: Path) -> None:
    script = f"sleep 1000 & echo $! > {tmp_path}/pid"
    with pytest.raises(DeadlineExceeded):
        await shell(script, timeout_seconds=0.3)
    assert await gone(await pid_in(tmp_path / "pid"))


async def test_giving_up_the_call_kills_the_program(tmp_path: Path) -> None:
    async with Tasks() as tasks:
        call = tasks.start(shell(f"echo $$ > {tmp_path}/pid; exec sleep 1000"), name="call")
        pid = await pid_in(tmp_path / "pid")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert await gone(pid)
    assert pid != os.getpid()


@pytest.mark.root
def test_a_thread_that_goes_first_starts_others_that_do_not() -> None:
    nice: dict[str, int] = {}

    def first() -> None:
        assert go_first()
        nice["thread"] = os.getpriority(os.PRIO_PROCESS, 0)
        child = subprocess.run(["nice"], capture_output=True, check=True)
        nice["child"] = int(child.stdout)

    before = os.getpriority(os.PRIO_PROCESS, 0)
    thread = threading.Thread(target=first)
    thread.start()
    thread.join()
    assert nice == {"thread": FIRST_NICE, "child": 0}
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


@pytest.mark.parametrize("allowed", [1024, 5000])
def test_a_service_takes_the_descriptors_that_it_may_have(allowed: int) -> None:
    said = subprocess.run(
        ["prlimit", f"--nofile=1024:{allowed}", sys.executable, "-c", _OPEN_MANY],
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    assert said.split() == [str(allowed)] * 2
