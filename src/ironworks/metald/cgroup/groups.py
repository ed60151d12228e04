"""Makes, reads and removes the cgroups of VMs."""

import asyncio
import contextlib
import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ironworks.model.errors import FailedPrecondition, Internal
from ironworks.runtime import cgroup_removal
from ironworks.runtime.cgroup_layout import Layout
from ironworks.runtime.clock import Clock

PARENT = "ironworks"
CPU_PERIOD_US = 100_000
_V1_SHARES_OF_WEIGHT_100 = 1024
_MIN_V1_SHARES = 2
_CREATE_TRIES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLimits:
    """What a VM's processes may use together."""

    memory_bytes: int
    """Guest memory and the VMM's own share; beyond it the kernel kills the VMM."""
    cpus: float
    """CPUs' worth of time, guest and VMM."""
    cpu_weight: int
    """1 to 10,000, relative to other VMs; 100 is one v1 default share of 1,024."""
    pids: int
    disk_bytes_per_second: int = 0
    """Read, and as many written, of `disk_device`; 0: no limit."""
    disk_operations_per_second: int = 0
    disk_device: str = ""
    """`MAJOR:MINOR` of the disk; empty where the files are on none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Where a VM's cgroup is."""

    directories: tuple[Path, ...]
    """One in each hierarchy."""
    cpu_file: Path
    """`cpu.stat` (v2) or `cpuacct.usage` (v1)."""
    memory_file: Path
    """`memory.current` (v2) or `memory.usage_in_bytes` (v1)."""
    oom_file: Path
    """`memory.events` (v2) or `memory.oom_control` (v1); both have a line `oom_kill N`."""

    @property
    def join_paths(self) -> tuple[Path, ...]:
        """Files that a process writes its pid into to join."""
        return tuple(directory / "cgroup.procs" for directory in self.directories)


class Groups(Protocol):
    """What the rest of metald calls."""

    def group(self, vm_id: str) -> Group:
        """Where a VM's cgroup is, or would be."""
        ...

    async def create(self, vm_id: str, limits: GroupLimits) -> Group:
        """Make it with its limits; all of it or nothing. Idempotent."""
        ...

    async def enter(self, group: Group, pid: int) -> None:
        """Put a process and all that descend from it into it."""
        ...

    async def remove(self, vm_id: str) -> None:
        """Kill what is in it, wait until it is empty, remove it. Idempotent."""
        ...

    async def present(self) -> frozenset[str]:
        """VM ids of this platform of which a cgroup is there in any hierarchy."""
        ...

    def missing(self, vm_id: str) -> tuple[str, ...]:
        """What of a VM's cgroup is gone, each a sentence."""
        ...

    def oom_kills(self, vm_id: str) -> int:
        """How often the kernel killed for lack of memory in it; 0 if that cannot be read."""
        ...


class HostGroups:
    """The cgroups of one platform on this machine."""

    def __init__(self, layout: Layout, tag: str, clock: Clock) -> None:
        """Work below `ironworks/<tag>` and nowhere else."""
        self._layout = layout
        self._tag = tag
        self._clock = clock

    def group(self, vm_id: str) -> Group:
        """Where a VM's cgroup is, or would be."""
        place = Path(PARENT) / self._tag / vm_id
        v1, unified = self._layout.v1, self._layout.unified
        directories = tuple(root / place for root in self._layout.roots)
        if not v1 and unified is not None:
            at = unified / place
            return Group(
                directories=directories,
                cpu_file=at / "cpu.stat",
                memory_file=at / "memory.current",
                oom_file=at / "memory.events",
            )
        memory = v1["memory"] / place
        if "cpuacct" in v1:
            cpu_file = v1["cpuacct"] / place / "cpuacct.usage"
        elif unified is not None:
            cpu_file = unified / place / "cpu.stat"
        else:
            raise FailedPrecondition("This host has neither cpuacct nor cgroup v2.")
        return Group(
            directories=directories,
            cpu_file=cpu_file,
            memory_file=memory / "memory.usage_in_bytes",
            oom_file=memory / "memory.oom_control",
        )

    async def create(self, vm_id: str, limits: GroupLimits) -> Group:
        """Make it with its limits; all of it or nothing. Idempotent."""
        group = self.group(vm_id)
        for left in reversed(range(_CREATE_TRIES)):
            try:
                await asyncio.to_thread(self._create, vm_id, group, limits)
            except FileNotFoundError as error:
                # Another VM's removal took the empty parents away in between.
                if left == 0:
                    raise Internal("The cgroup of the VM could not be made.") from error
            except OSError as error:
                await self.remove(vm_id)
                raise _explained(error) from error
            else:
                break
        return group

    def _create(self, vm_id: str, group: Group, limits: GroupLimits) -> None:
        for directory in group.directories:
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        if self._layout.v1:
            self._limit_v1(vm_id, limits)
        elif self._layout.unified is not None:
            _limit_v2(self._layout.unified, group.directories[0], limits)

    def _limit_v1(self, vm_id: str, limits: GroupLimits) -> None:
        place = Path(PARENT) / self._tag / vm_id
        v1 = self._layout.v1
        shares = limits.cpu_weight * _V1_SHARES_OF_WEIGHT_100 // 100
        quota_us = int(limits.cpus * CPU_PERIOD_US)
        for path, value in (
            (v1["memory"] / place / "memory.limit_in_bytes", limits.memory_bytes),
            (v1["cpu"] / place / "cpu.shares", max(_MIN_V1_SHARES, shares)),
            (v1["cpu"] / place / "cpu.cfs_period_us", CPU_PERIOD_US),
            (v1["cpu"] / place / "cpu.cfs_quota_us", quota_us),
            (v1["pids"] / place / "pids.max", limits.pids),
        ):
            path.write_text(str(value), encoding="ascii")
        if "blkio" in v1 and limits.disk_device:
            for name, value in (
                ("bps", limits.disk_bytes_per_second),
                ("iops", limits.disk_operations_per_second),
            ):
                for way in ("read", "write"):
                    path = v1["blkio"] / place / f"blkio.throttle.{way}_{name}_device"
                    # 0 takes the limit away.
                    path.write_text(f"{limits.disk_device} {value}", encoding="ascii")

    async def enter(self, group: Group, pid: int) -> None:
        """Put a process and all that descend from it into it."""
        await asyncio.to_thread(_enter, group, pid)

    async def remove(self, vm_id: str) -> None:
        """Kill what is in it, wait until it is empty, remove it. Idempotent.

        Raises:
            Internal: a process in it does not die (it hangs in the kernel).
        """
        group = self.group(vm_id)
        if not await cgroup_removal.remove(group.directories, self._clock):
            raise Internal(
                "A process of the VM does not end.", context={"cgroup": str(group.directories[0])}
            )
        parents = [
            parent
            for root in self._layout.roots
            for parent in (root / PARENT / self._tag, root / PARENT)
        ]
        await asyncio.to_thread(cgroup_removal.remove_empty, parents)

    async def present(self) -> frozenset[str]:
        """VM ids of this platform of which a cgroup is there in any hierarchy."""
        return await asyncio.to_thread(self._present)

    def _present(self) -> frozenset[str]:
        found: set[str] = set()
        for root in self._layout.roots:
            place = root / PARENT / self._tag
            with contextlib.suppress(FileNotFoundError), os.scandir(place) as entries:
                found.update(entry.name for entry in entries if entry.is_dir())
        return frozenset(found)

    def missing(self, vm_id: str) -> tuple[str, ...]:
        """What of a VM's cgroup is gone, each a sentence."""
        return tuple(
            f"Its cgroup {directory} is gone."
            for directory in self.group(vm_id).directories
            if not directory.is_dir()
        )

    def oom_kills(self, vm_id: str) -> int:
        """How often the kernel killed for lack of memory in it; 0 if that cannot be read."""
        with contextlib.suppress(OSError, ValueError):
            for line in self.group(vm_id).oom_file.read_text(encoding="ascii").splitlines():
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    return int(value)
        return 0


def _explained(error: OSError) -> Exception:
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return FailedPrecondition(
            "metald may not make cgroups on this host.", hint="Run it as root."
        )
    return Internal("The cgroup of the VM could not be made.", context={"os_error": str(error)})


def _limit_v2(root: Path, directory: Path, limits: GroupLimits) -> None:
    has_io = "io" in (root / "cgroup.controllers").read_text(encoding="ascii").split()
    wanted = "+cpu +memory +pids" + (" +io" if has_io else "")
    for parent in (root, root / PARENT, directory.parent):
        (parent / "cgroup.subtree_control").write_text(wanted, encoding="ascii")
    quota_us = int(limits.cpus * CPU_PERIOD_US)
    for name, value in (
        ("memory.max", str(limits.memory_bytes)),
        ("cpu.weight", str(limits.cpu_weight)),
        ("cpu.max", f"{quota_us} {CPU_PERIOD_US}"),
        ("pids.max", str(limits.pids)),
    ):
        (directory / name).write_text(value, encoding="ascii")
    if has_io and limits.disk_device:
        (directory / "io.max").write_text(_io_max(limits), encoding="ascii")


def _io_max(limits: GroupLimits) -> str:
    """A line of `io.max`."""
    words = [limits.disk_device]
    for name, value in (
        ("bps", limits.disk_bytes_per_second),
        ("iops", limits.disk_operations_per_second),
    ):
        words += [f"{way}{name}={value or 'max'}" for way in ("r", "w")]
    return " ".join(words)


def disk_of(path: Path) -> str:
    """`MAJOR:MINOR` of the whole disk that a file is on; empty if it is on none, such as a tmpfs.

    The kernel limits disks, not their partitions.
    """
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    known = Path("/sys/dev/block") / number
    if not known.exists():
        return ""
    if (known / "partition").exists():
        return (known.resolve().parent / "dev").read_text(encoding="ascii").strip()
    return number


def _enter(group: Group, pid: int) -> None:
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text(encoding="ascii", errors="replace")
                parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    for path in group.join_paths:
        for member in sorted(family):
            # One that has ended meanwhile needs no place.
            with contextlib.suppress(ProcessLookupError):
                path.write_text(str(member), encoding="ascii")
