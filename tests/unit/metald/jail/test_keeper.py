"""The keeper with real programs."""

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from ironworks.metald.guest.build import DEFAULT_DIR
from ironworks.metald.jail import keeper as module
from ironworks.metald.jail.keeper import (
    Kept,
    build_keeper,
    find_keepers,
    keeper_argv,
    kill_group,
    spawn_keeper,
)
from ironworks.model.errors import FailedPrecondition

UID = 1_900_003


def kept_in(directory: Path) -> Kept:
    return Kept(
        cgroup_join_paths=(),
        netns_path=None,
        tap=None,
        uid=UID,
        gid=UID,
        console_path=directory / "console.log",
        console_max_bytes=64 * 1024,
        errors_path=directory / "errors.log",
    )


async def run_kept(kept: Kept, script: str, descriptors: dict[int, int] | None = None) -> int:
    keeper = await build_keeper(DEFAULT_DIR)
    argv = keeper_argv(keeper, kept, ["/bin/sh", "-c", script])
    pid = spawn_keeper(argv, errors_path=kept.errors_path, descriptors=descriptors or {})
    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    return os.waitstatus_to_exitcode(status)


def test_the_command_line_has_all_that_is_kept(tmp_path: Path) -> None:
    kept = replace(
        kept_in(tmp_path),
        cgroup_join_paths=(Path("/a/procs"), Path("/b/procs")),
        netns_path=Path("/run/netns/x"),
        tap="tap0",
    )
    argv = keeper_argv(Path("/keeper"), kept, ["/prog", "--flag"])
    assert argv[:5] == ["/keeper", "--cgroup", "/a/procs", "--cgroup", "/b/procs"]
    assert argv[argv.index("--netns") + 1] == "/run/netns/x"
    assert argv[argv.index("--tap") + 1] == "tap0"
    assert argv[argv.index("--") :] == ["--", "/prog", "--flag"]


@pytest.mark.root
async def test_output_status_and_descriptors_go_through(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    script = "echo out; echo err >&2; echo through >&7; cat; ulimit -c; pwd; exit 41"
    status = await run_kept(kept_in(tmp_path), script, {7: write_end})
    os.close(write_end)
    with os.fdopen(read_end) as reader:
        assert reader.read() == "through\n"
    assert status == 41
    assert (tmp_path / "console.log").read_text() == "out\n0\n/\n"
    assert (tmp_path / "errors.log").read_text() == "err\n"
    assert (tmp_path / "console.log").stat().st_mode & 0o777 == 0o600


@pytest.mark.root
async def test_a_signal_is_told_as_shells_do(tmp_path: Path) -> None:
    assert await run_kept(kept_in(tmp_path), "kill -9 $$") == 128 + signal.SIGKILL


@pytest.mark.root
async def test_a_flood_stays_bounded_and_its_end_is_kept(tmp_path: Path) -> None:
    script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done"
    assert await run_kept(kept_in(tmp_path), script) == 0
    text = (tmp_path / "console.log").read_text()
    assert len(text) <= 64 * 1024
    assert text.endswith("line 19998\nline 19999\n")
    numbers = [int(line.split()[1]) for line in text.splitlines()[1:]]
    assert numbers == list(range(numbers[0], 20000))


@pytest.mark.root
async def test_what_cannot_be_joined_or_started_is_said(tmp_path: Path) -> None:
    kept = kept_in(tmp_path)
    for changed, sentence in (
        (replace(kept, netns_path=tmp_path / "none"), "network namespace"),
        (replace(kept, cgroup_join_paths=(tmp_path / "none",)), "cgroup"),
        (replace(kept, tap="no-such-tap-" * 4), "tap's name"),
    ):
        assert await run_kept(changed, "true") == 125
        assert sentence in kept.errors_path.read_text().splitlines()[-1]


@pytest.mark.root
async def test_a_keeper_is_unprivileged_is_found_and_takes_its_program_along(
    tmp_path: Path,
) -> None:
    kept = kept_in(tmp_path)
    keeper = await build_keeper(DEFAULT_DIR)
    argv = keeper_argv(keeper, kept, ["/bin/sh", "-c", "echo up; sleep 1000"])
    pid = spawn_keeper(argv, errors_path=kept.errors_path, descriptors={})
    await asyncio.to_thread(wait_up, kept.console_path)
    assert find_keepers(kept.console_path) == [pid]
    assert find_keepers(tmp_path / "other.log") == []
    status = Path(f"/proc/{pid}/status").read_text()
    assert f"Uid:\t{UID}\t{UID}\t{UID}\t{UID}" in status
    assert "CapEff:\t0000000000000000" in status
    assert os.getsid(pid) == pid
    members = group_of(pid)
    assert len(members) >= 2
    await kill_group(pid)
    assert find_keepers(kept.console_path) == []
    await asyncio.to_thread(wait_gone, members)
    await kill_group(pid)


def wait_up(console: Path) -> None:
    while not console.exists() or "up" not in console.read_text():
        os.sched_yield()


def state_of(pid: int) -> tuple[str, int]:
    """State and process group; gone is `X`."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "X", 0
    return fields[0], int(fields[2])


def group_of(leader: int) -> list[int]:
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    return [pid for pid in pids if state_of(pid)[1] == leader]


def wait_gone(pids: list[int]) -> None:
    while any(state_of(pid)[0] not in {"X", "Z"} for pid in pids):
        os.sched_yield()


async def test_it_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await build_keeper(tmp_path)
    assert os.access(first, os.X_OK)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert await build_keeper(tmp_path) == first
    with pytest.raises(FailedPrecondition):
        await build_keeper(tmp_path / "elsewhere")
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    with pytest.raises(FailedPrecondition, match="cannot be written"):
        await build_keeper(tmp_path / "file" / "below")
    assert module.SOURCE.exists()
