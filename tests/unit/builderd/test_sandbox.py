"""What a program in the sandbox can reach: run for real."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from ironworks.builderd.flatten.plan import Layer, Limits, Plan
from ironworks.builderd.sandbox import Sandbox, died, run_flatten
from ironworks.model.errors import FailedPrecondition, Internal, InvalidRequest
from ironworks.runtime.process import Completed, run


async def inside(sandbox: Sandbox, *command: str) -> Completed:
    return await run(sandbox.argv(command), timeout_seconds=20, check=False)


async def test_only_its_own_is_there(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "blob").write_text("blob")
    sandbox = Sandbox(
        readable={"/blobs/0": tmp_path / "blob"}, writable={"/scratch": tmp_path / "scratch"}
    )
    listed = await inside(sandbox, "ls", "-1", "/")
    names = set(listed.stdout.decode().split())
    assert names == {"bin", "blobs", "dev", "lib", "lib64", "proc", "sbin", "scratch", "tmp", "usr"}
    done = await inside(sandbox, "sh", "-c", "cat /blobs/0 > /scratch/copy && echo x > /blobs/0")
    assert done.status != 0
    assert (tmp_path / "scratch" / "copy").read_text() == "blob"
    assert (tmp_path / "blob").read_text() == "blob"
    assert (await inside(sandbox, "touch", "/usr/evil")).status != 0
    assert (await inside(sandbox, "env")).stdout.decode().count("IRONWORKS") == 0


async def test_there_is_no_network_and_no_capability() -> None:
    script = "cat /proc/net/dev | tail -n +3 | cut -d: -f1; grep CapEff /proc/self/status; id -u"
    done = await inside(Sandbox(), "sh", "-c", script)
    interfaces, capabilities, user = done.stdout.decode().split("\n")[:3]
    assert interfaces.strip() == "lo"
    assert capabilities.split()[1] == "0" * 16
    assert user == "65534"


async def test_an_attacker_inside_finds_nothing(tmp_path: Path) -> None:
    """What a program that took the flattener over could try."""
    mine, other = tmp_path / "bld_1", tmp_path / "bld_2"
    for scratch in (mine, other):
        scratch.mkdir()
        (scratch / "secret").write_text(scratch.name)
    (tmp_path / "blob").write_text("blob")
    sandbox = Sandbox(readable={"/blobs/0": tmp_path / "blob"}, writable={"/scratch": mine})
    attempts = {
        "host files": "cat /etc/shadow /etc/passwd",
        "platform's files": f"cat {other}/secret || ls {tmp_path}",
        "other scratch, by link": f"ln -s {other}/secret /scratch/l && cat /scratch/l",
        "other scratch, upwards": "ls /scratch/../../../bld_2",
        "host root by proc": "cd /proc/1/root && cat etc/shadow",
        "other processes": f"kill -9 {os.getpid()}",
        "the network": "exec 3<>/dev/tcp/127.0.0.1/22",
        "raw devices": "cat /dev/sda /dev/vda /dev/kmsg /dev/mem 2>&1 | grep -v No",
        "new devices": "mknod /scratch/sda b 8 0",
        "mounts": "mount -t tmpfs none /scratch || unshare -rm mount --bind /usr /blobs",
        # Harmless where it succeeds: what was there is written again.
        "the kernel": "x=$(cat /proc/sys/kernel/panic) && echo $x > /proc/sys/kernel/panic",
        "all of /proc": "find /proc -writable -type f ! -path '/proc/[0-9]*' | grep .",
        "its own record": "echo 0 > /proc/self/oom_score_adj",
        "cgroups": "ls /sys/fs/cgroup",
        "programs": "echo evil > /usr/bin/true || rm -f /usr/bin/true",
        "the blobs": "echo evil > /blobs/0 || rm /blobs/0",
    }
    for what, command in attempts.items():
        done = await inside(sandbox, "bash", "-c", command)
        assert done.status != 0, what
        assert done.stdout == b"", what
    seen = await inside(sandbox, "sh", "-c", "ls -d /proc/[0-9]* | wc -l")
    assert int(seen.stdout) <= 4
    assert (other / "secret").read_text() == "bld_2"
    assert (tmp_path / "blob").read_text() == "blob"


async def test_files_are_bounded(tmp_path: Path) -> None:
    sandbox = Sandbox(writable={"/scratch": tmp_path}, file_bytes=1000)
    done = await inside(sandbox, "dd", "if=/dev/zero", "of=/scratch/big", "bs=4096", "count=1")
    assert done.status != 0
    assert (tmp_path / "big").stat().st_size <= 1000


def plan(layers: Sequence[Layer]) -> Plan:
    return Plan(
        layers=tuple(layers),
        output="/scratch/rootfs",
        scratch="/scratch",
        limits=Limits(free_bytes=0),
    )


async def test_a_refusal_comes_out_as_it_was_said(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "blob").write_bytes(b"not a tar" * 100)
    layer = Layer(path="/blobs/0", digest="sha256:0", size_bytes=900, diff_id="sha256:0")
    with pytest.raises(InvalidRequest, match="not what the manifest says"):
        await run_flatten(
            plan([layer]),
            blobs=[tmp_path / "blob"],
            scratch=tmp_path / "scratch",
            on_step=lambda _step, _done, _total: None,
        )


async def test_a_process_that_dies_is_a_fault_of_ours(tmp_path: Path) -> None:
    with pytest.raises(Internal, match="died") as caught:
        await run_flatten(
            plan([]),
            blobs=[tmp_path / "absent"],
            scratch=tmp_path,
            on_step=lambda _step, _done, _total: None,
        )
    assert "absent" in str(caught.value.context["stderr"])
    assert "absent" not in str(caught.value)


def test_a_machine_without_user_namespaces_is_said_so() -> None:
    said = "bwrap: No permissions to create new namespace, likely because the kernel does not allow"
    refused = died(1, said)
    assert isinstance(refused, FailedPrecondition)
    assert "user namespaces" in refused.message
    assert isinstance(died(-9, "Killed"), Internal)
