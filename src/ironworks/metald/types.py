"""Frozen values of metald: what a VM is, what was asked for, what the host can give."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from ironworks.metald.drivers.driver import Evidence, ExitReport
from ironworks.model.units import GIB, MIB

MIN_VCPUS = 1
MAX_VCPUS = 32
MIN_MEMORY_BYTES = 64 * MIB
MAX_MEMORY_BYTES = 64 * GIB
MAX_ARGV = 1024
MAX_ARGV_BYTES = 128 * 1024
MAX_ENV = 1024
MAX_LABELS = 32
MAX_LABEL_FILTERS = 8
MAX_HISTORY = 100
MAX_REASON_CHARS = 255
MIN_CPU_WEIGHT = 1
MAX_CPU_WEIGHT = 10_000
CPU_WEIGHT_PER_VCPU = 100
MAX_PORT = 65_535


class VmState(StrEnum):
    """Where a VM stands; `decide.TABLE` says what may follow what."""

    REQUESTED = "requested"
    CREATING = "creating"
    CREATED = "created"
    BOOTING = "booting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    STOPPED = "stopped"
    DELETING = "deleting"
    DELETED = "deleted"
    FAILED = "failed"


class HostState(StrEnum):
    """Whether the host takes new VMs."""

    ACTIVE = "active"
    CORDONED = "cordoned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What the guest's init runs; empty fields follow the rootfs asset's image configuration."""

    argv: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    user: str = ""
    working_directory: str = ""
    stop_signal: str = ""
    stop_grace_seconds: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """The VM is ready when this TCP port of the guest accepts a connection."""

    tcp_port: int
    period_seconds: float = 0.1
    timeout_seconds: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class VmSpec:
    """All that a caller decides about a VM, defaults filled in."""

    name: str
    vcpus: int
    memory_bytes: int
    rootfs_asset_id: str
    kernel_asset_id: str = ""
    initrd_asset_id: str = ""
    workload: Workload = field(default_factory=Workload)
    readiness: Readiness | None = None
    cpu_weight: int = 0
    deployment_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """One line of a VM's history; `before` is None in the first."""

    before: VmState | None
    after: VmState
    at_ns: int
    reason: str
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTiming:
    """How long a named step took."""

    step: str
    started_at_ns: int
    duration_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The reference on its assets that is held for a VM."""

    lease_id: str
    """Empty while it is only intended: the acquire call may or may not have arrived."""
    rootfs_asset_id: str
    kernel_asset_id: str = ""
    """Empty for a driver that boots no kernel; so with the initrd."""
    initrd_asset_id: str = ""

    @property
    def asset_ids(self) -> tuple[str, ...]:
        """Those that are named, the rootfs first."""
        named = (self.rootfs_asset_id, self.kernel_asset_id, self.initrd_asset_id)
        return tuple(asset_id for asset_id in named if asset_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vm:
    """A VM as the store knows it."""

    vm_id: str
    tenant_id: str
    spec: VmSpec
    state: VmState
    reason: str
    generation: int
    created_at_ns: int
    state_changed_at_ns: int
    slot: int | None
    """Number of its network slot, uid and fabric address; None before and after it has one."""
    boot_epoch: int = 0
    ready: bool = False
    driver: str = ""
    accel: str = ""
    committed_memory_bytes: int = 0
    """What it counts for in admission: guest memory and the VMM's own share."""
    evidence: Evidence | None = None
    exit: ExitReport | None = None
    exit_at_ns: int = 0
    drift: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VmFilter:
    """Which VMs; every field that is set must hold. No states: all but DELETED."""

    states: tuple[VmState, ...] = ()
    name: str = ""
    deployment_id: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    tenant_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """An amount of what VMs use."""

    vcpus: int = 0
    memory_bytes: int = 0
    vms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The machine that this metald runs on."""

    host_id: str
    tag: str
    """Six hexadecimal digits that are part of the name of all that is ours on the machine."""
    state: HostState
    reason: str
    generation: int
    default_kernel_asset_id: str = ""
    default_initrd_asset_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one VM may have at most on this host, and all of them together."""

    capacity: Resources
    """Overcommit ratios applied."""
    largest: Resources
    """Without overcommit: a VM cannot have more than the machine."""
