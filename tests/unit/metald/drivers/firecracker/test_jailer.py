"""The jailer's command line."""

from dataclasses import replace
from pathlib import Path

from ironworks.metald.drivers.firecracker.files import VmFiles
from ironworks.metald.drivers.firecracker.jailer import cgroup_arguments, jailer_argv
from ironworks.metald.drivers.firecracker.probe import Binaries
from ironworks.model.units import MIB

from .test_machine import SPEC

BINARIES = Binaries(firecracker=Path("/opt/firecracker-v1"), jailer=Path("/opt/jailer"))
FILES = VmFiles(Path("/j"), "vm_1", "firecracker-v1")
V2 = "sysfs /sys sysfs rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n"


def option(argv: list[str], name: str) -> list[str]:
    return [argv[index + 1] for index, word in enumerate(argv) if word == name]


def test_all_that_isolates_is_asked_for() -> None:
    argv = jailer_argv(SPEC, FILES, BINARIES, cgroup=["--cgroup-version", "2"])
    ours, theirs = argv[: argv.index("--api-sock") - 1], argv[argv.index("--api-sock") :]
    assert ours[:6] == ["/usr/bin/unshare", "--ipc", "--uts", "--cgroup", "--", "/opt/jailer"]
    assert option(ours, "--id") == ["vm-1"]
    assert option(ours, "--exec-file") == ["/opt/firecracker-v1"]
    assert option(ours, "--uid") == option(ours, "--gid") == ["1000001"]
    assert option(ours, "--netns") == ["/run/netns/iw-x"]
    assert option(ours, "--chroot-base-dir") == ["/j/jail"]
    assert option(ours, "--cgroup-version") == ["2"]
    assert "--new-pid-ns" in ours
    assert f"fsize={64 * MIB}" in option(ours, "--resource-limit")
    assert "--no-seccomp" not in theirs
    assert option(theirs, "--log-path") == ["log.fifo"]


def test_a_disk_may_be_written_whole() -> None:
    spec = replace(SPEC, scratch_bytes=1024 * MIB)
    limits = option(jailer_argv(spec, FILES, BINARIES, cgroup=[]), "--resource-limit")
    assert f"fsize={1024 * MIB}" in limits


def test_the_jailer_finds_the_cgroup_that_is_there() -> None:
    join = (Path("/sys/fs/cgroup/ironworks/t/vm_1/cgroup.procs"),)
    assert cgroup_arguments(join, V2) == [
        "--cgroup-version", "2", "--parent-cgroup", "ironworks/t/vm_1",
    ]  # fmt: skip
    assert cgroup_arguments(join, "") == ["--cgroup-version", "1"]
    assert cgroup_arguments((Path("/elsewhere/cgroup.procs"),), V2) == ["--cgroup-version", "1"]
    hybrid = "c /sys/fs/cgroup/memory cgroup rw,memory 0 0\n" + V2.replace(
        "/sys/fs/cgroup ", "/sys/fs/cgroup/unified "
    )
    both = (
        Path("/sys/fs/cgroup/memory/ironworks/t/vm_1/cgroup.procs"),
        Path("/sys/fs/cgroup/unified/ironworks/t/vm_1/cgroup.procs"),
    )
    assert cgroup_arguments(both, hybrid)[-1] == "ironworks/t/vm_1"
