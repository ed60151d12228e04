"""What the jailer is told, and what it starts."""

from pathlib import Path

from ironworks.metald.drivers.driver import VmmSpec
from ironworks.metald.drivers.firecracker import machine
from ironworks.metald.drivers.firecracker.files import VmFiles, jailer_id
from ironworks.metald.drivers.firecracker.probe import Binaries
from ironworks.metald.drivers.kept import NETNS_DIRECTORY
from ironworks.metald.jail.seal import build_seal
from ironworks.model.units import MIB

UNSHARE = "/usr/bin/unshare"
OPEN_FILES = 1024
FILE_BYTES = 64 * MIB
"""The largest file that a VMM may write, besides its disk."""


async def sealed_firecracker(directory: Path) -> Path:
    """The program that the jailer starts: it gives up system calls, then becomes Firecracker.

    Firecracker filters by itself only from the guest's start on, and not at all where it was built
    for glibc. The jailer wants a name with Firecracker's in it.

    Raises:
        FailedPrecondition: it cannot be built below `directory`.
    """
    return await build_seal(directory, name="firecracker-sealed", vmm=f"/{machine.VMM}")


def cgroup_arguments(join_paths: tuple[Path, ...], mounts: str) -> list[str]:
    """Which hierarchy the jailer is to find the VM's cgroup in, and where.

    The keeper has joined every hierarchy before; the jailer makes no cgroup of its own, and is told
    of the one that is there.

    Args:
        join_paths: `VmmSpec.cgroup_join_paths`.
        mounts: Content of `/proc/self/mounts`.
    """
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < len(("what", "where", "type")) or fields[2] != "cgroup2":
            continue
        for path in join_paths:
            if path.is_relative_to(fields[1]):
                parent = path.parent.relative_to(fields[1])
                return ["--cgroup-version", "2", "--parent-cgroup", str(parent)]
    return ["--cgroup-version", "1"]


def jailer_argv(
    spec: VmmSpec, files: VmFiles, binaries: Binaries, *, cgroup: list[str]
) -> list[str]:
    """Command line of Firecracker in its jail; a pure function. It must be run as root.

    Args:
        spec: The VM.
        files: Where its chroot is.
        binaries: The programs.
        cgroup: From `cgroup_arguments`.
    """
    largest = max(FILE_BYTES, spec.scratch_bytes)
    return [
        # What the jailer leaves as the host has it.
        *(UNSHARE, "--ipc", "--uts", "--cgroup", "--"),
        str(binaries.jailer),
        *("--id", jailer_id(spec.vm_id)),
        *("--exec-file", str(binaries.firecracker)),
        *("--uid", str(spec.uid), "--gid", str(spec.gid)),
        *("--chroot-base-dir", str(files.chroot_base)),
        *("--netns", str(NETNS_DIRECTORY / spec.netns)),
        *cgroup,
        *("--resource-limit", f"no-file={OPEN_FILES}"),
        *("--resource-limit", f"fsize={largest}"),
        "--new-pid-ns",
        "--",
        *("--api-sock", machine.API),
        *("--log-path", machine.LOG, "--level", "Warn", "--show-level"),
    ]
