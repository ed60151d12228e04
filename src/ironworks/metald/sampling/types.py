"""Frozen values of the sampler."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import IntEnum

TICK_NS = 100_000_000
"""Length of a tick."""


class Counter(IntEnum):
    """One reading of a sample; the values are those of `ironworks.billaged.v1.Counter`."""

    CPU = 1
    MEMORY = 2
    DISK_READ = 3
    DISK_WRITE = 4
    NETWORK_RECEIVE = 5
    NETWORK_TRANSMIT = 6
    NETWORK_INTERNAL = 7


class AbsenceReason(IntEnum):
    """Why a reading is missing; the values are those of `ironworks.billaged.v1.AbsenceReason`."""

    NO_SOURCE = 1
    GONE = 2
    TIMEOUT = 3
    UNREADABLE = 4
    MALFORMED = 5


class LossReason(IntEnum):
    """Why whole ticks are missing; the values are those of `ironworks.billaged.v1.GapReason`."""

    SAMPLER_LATE = 1
    STREAM_OVERFLOW = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockCounters:
    """What the guest has read from and written to all its disks since the VMM began, in bytes."""

    read_bytes: int
    write_bytes: int


BlockReader = Callable[[], Awaitable[BlockCounters]]
"""Asks the VMM. May raise anything: the reading is then absent. The sampler bounds its time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupFiles:
    """The files of a VM's cgroup, as the host has them.

    Attributes:
        cpu: `cpu.stat` of a v2 group (its `usage_usec` is read), or `cpuacct.usage` of a v1 group
            (one number of nanoseconds).
        memory: `memory.current` (v2) or `memory.usage_in_bytes` (v1); one number of bytes.
    """

    cpu: str
    memory: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VmSource:
    """What the sampler must know of a VM to read it.

    Attributes:
        vm_id: The VM.
        tenant_id: Who is charged.
        deployment_id: The deployment it belongs to; empty if none.
        boot_epoch: Grows by one whenever the VM's counters begin anew: new VMM process, new
            cgroup, snapshot resume, clone. The same after a restart of metald alone.
        vcpus: vCPUs provisioned.
        memory_bytes: Memory provisioned.
        disk_bytes: Disk provisioned (writable and read-only disks together).
        cgroup: Where CPU time and memory stand.
        netns: Name of the VM's network namespace below /run/netns; empty if it has no network.
        tap: Name of its tap in that namespace.
        read_blocks: Asks the VMM for its block counters; None if the VM has no disk.
        paused: Whether its vCPUs stand still: a VM that is paused or resumed is attached anew.
    """

    vm_id: str
    tenant_id: str
    boot_epoch: int
    vcpus: int
    memory_bytes: int
    cgroup: CgroupFiles
    deployment_id: str = ""
    disk_bytes: int = 0
    netns: str = ""
    tap: str = ""
    read_blocks: BlockReader | None = None
    paused: bool = False
