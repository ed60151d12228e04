"""Frozen values of metald: what a VM is, what was asked for, what the host can give."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from ironworks.metald.drivers.driver import Evidence, ExitReport, RateLimits
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
MAX_PATH_CHARS = 2000
MAX_THRESHOLD = 20
MAX_BACKOFF_SECONDS = 3600.0
MAX_RESTARTS = 1000
MAX_EGRESS_RULES = 64
MAX_PUBLISHED_PORTS = 64
MAX_NAMESERVERS = 3
MAX_RESERVATION_ID_CHARS = 64


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
    DRAINING = "draining"
    """It ends the VMs that it has."""
    DRAINED = "drained"
    """It has none left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What the guest's init runs; empty fields follow the rootfs asset's image configuration."""

    argv: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    user: str = ""
    working_directory: str = ""
    stop_signal: str = ""
    stop_grace_seconds: float = 10.0
    image_init: bool = False
    """The image's own `/sbin/init` is process 1 of the guest, with `argv` as its arguments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """The VM is ready when a port of the guest answers: a connection, or an HTTP request on it."""

    port: int
    http_path: str = ""
    """Empty: a TCP connection is enough."""
    expected_status: int = 0
    """HTTP status; 0: any from 200 to 399."""
    period_seconds: float = 1.0
    """Between two tries once the VM is ready; until then it is asked more often."""
    timeout_seconds: float = 1.0
    failure_threshold: int = 3
    """Tries in a row that must fail before a ready VM is not ready."""
    success_threshold: int = 1
    """Tries in a row that must pass before a VM is ready."""


class RestartMode(StrEnum):
    """When a VM whose workload ended is booted again by itself."""

    NEVER = "never"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """Whether, after which wait and how often a VM is booted again by itself."""

    mode: RestartMode = RestartMode.NEVER
    min_backoff_seconds: float = 1.0
    max_backoff_seconds: float = 60.0
    max_restarts: int = 10
    """Within an hour; after that it is FAILED for good."""


class Protocol(StrEnum):
    """Of a port."""

    ANY = "any"
    TCP = "tcp"
    UDP = "udp"


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressRule:
    """Connections that the guest may open."""

    cidr: str
    first_port: int = 0
    """0: every port."""
    last_port: int = 0
    """0: `first_port`."""
    protocol: Protocol = Protocol.ANY


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedPort:
    """A port of the guest that is reachable at an address of the host."""

    host_port: int
    """0: metald chooses a free one."""
    guest_port: int
    protocol: Protocol = Protocol.TCP


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSpec:
    """What a VM may say on the network; nothing but replies unless it is written here."""

    egress: tuple[EgressRule, ...] = ()
    published_ports: tuple[PublishedPort, ...] = ()
    nameservers: tuple[str, ...] = ()


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
    disk_bytes: int = 0
    """Of a disk that takes what the guest writes over its root; 0: that stays in guest memory."""
    readiness: Readiness | None = None
    restart: RestartPolicy = field(default_factory=RestartPolicy)
    network: NetworkSpec = field(default_factory=NetworkSpec)
    rate_limits: RateLimits = field(default_factory=RateLimits)
    cpu_weight: int = 0
    deployment_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """One line of a VM's history; `before` is None in the first, and `after` in a mere note."""

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
class ImageDefaults:
    """What the rootfs asset says of how to run it; OCI image configuration."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    user: str = ""
    working_directory: str = ""
    stop_signal: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The reference on its assets that is held for a VM, and what a fresh VMM must know of them."""

    lease_id: str
    """Empty while it is only intended: the acquire call may or may not have arrived."""
    rootfs_asset_id: str
    kernel_asset_id: str = ""
    """Empty for a driver that boots no kernel; so with the initrd."""
    initrd_asset_id: str = ""
    rootfs_format: str = ""
    image: ImageDefaults = field(default_factory=ImageDefaults)

    @property
    def asset_ids(self) -> tuple[str, ...]:
        """Those that are named, the rootfs first."""
        named = (self.rootfs_asset_id, self.kernel_asset_id, self.initrd_asset_id)
        return tuple(asset_id for asset_id in named if asset_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """An amount of what VMs use."""

    vcpus: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    vms: int = 0

    def __add__(self, other: "Resources") -> "Resources":
        """Both together."""
        return Resources(
            vcpus=self.vcpus + other.vcpus,
            memory_bytes=self.memory_bytes + other.memory_bytes,
            disk_bytes=self.disk_bytes + other.disk_bytes,
            vms=self.vms + other.vms,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class VmmSize:
    """What a VMM was started with; the spec may have changed since."""

    vcpus: int
    memory_bytes: int


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
    committed: Resources = field(default_factory=Resources)
    """What it counts for in admission: the VMM's own share of memory and disk included."""
    vmm: VmmSize | None = None
    """Size of its present or last VMM."""
    restarts: int = 0
    """Times that it was booted again by its restart policy."""
    recent_restarts: tuple[int, ...] = ()
    """When, those of the last hour, UTC nanoseconds."""
    restart_at_ns: int = 0
    """When it is to get a fresh VMM while it is RUNNING; 0: it has the one that it should have."""
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


VmKey: TypeAlias = tuple[str, int, int]
"""Id, time of creation and generation: what was committed under them is one VM in one state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VmPage:
    """A page of VMs.

    Attributes:
        keys: Those of all, in their order.
        vms: Those that were not known to whoever asked.
        after: The sort keys after which the next page begins; None: this is the last.
    """

    keys: Sequence[VmKey]
    vms: Mapping[VmKey, Vm]
    after: tuple[int, str] | None


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
    drain: "Drain | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """An order to end every VM of the host."""

    started_at_ns: int
    timeout_seconds: float
    """How long each guest may take before it is ended by force."""
    vms_at_start: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Capacity that is set aside for VMs to come."""

    reservation_id: str
    tenant_id: str
    resources: Resources
    """As it was asked for."""
    committed: Resources
    """What it counts for: the VMMs' own shares included."""
    created_at_ns: int
    expires_at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one VM may have at most on this host, and all of them together."""

    capacity: Resources
    """Overcommit ratios applied."""
    largest: Resources
    """Without overcommit: a VM cannot have more than the machine."""
