"""Frozen values of gatewayd."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from ironworks.model.units import GIB, MIB

NO_TEXT: Mapping[str, str] = {}


class TenantState(Enum):
    """What a tenant may do."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    DELETING = "deleting"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """A customer."""

    tenant_id: str
    name: str
    display_name: str
    state: TenantState
    reason: str
    labels: Mapping[str, str]
    created_at_ns: int
    updated_at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """An API key without its secret; `tenant_id` None: an operator's; times 0: not (yet)."""

    api_key_id: str
    tenant_id: str | None
    name: str
    roles: tuple[str, ...]
    hint: str
    created_at_ns: int
    expires_at_ns: int
    revoked_at_ns: int
    last_used_at_ns: int


class RestartMode(Enum):
    """What happens when the application ends."""

    NEVER = "never"
    ON_FAILURE = "on_failure"
    ALWAYS = "always"


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """When a replica gets traffic; an empty path: when its port accepts a connection."""

    http_path: str = ""
    http_status: int = 0
    """That is wanted; 0: any from 200 to 399."""
    period_ms: int = 1_000
    timeout_ms: int = 1_000
    failure_threshold: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressRule:
    """Connections out of a VM that are allowed; no ports: all."""

    cidr: str
    ports: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentSpec:
    """What shall run; defaults filled in. `port` 0: what the image exposes."""

    image: str
    replicas: int = 1
    vcpus: int = 1
    memory_bytes: int = 256 * MIB
    disk_bytes: int = 0
    port: int = 0
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    entrypoint: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    restart: RestartMode = RestartMode.NEVER
    readiness: Readiness = field(default_factory=Readiness)
    egress: tuple[EgressRule, ...] = ()
    zones: tuple[str, ...] = ()
    host_labels: Mapping[str, str] = field(default_factory=dict[str, str])
    kernel_asset_id: str = ""
    boot_timeout_ms: int = 120_000


class DeploymentState(Enum):
    """Where a deployment stands; see the package's diagram."""

    DEPLOYING = "deploying"
    RUNNING = "running"
    DEGRADED = "degraded"
    UPDATING = "updating"
    FAILED = "failed"
    DELETING = "deleting"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """N replicas behind one endpoint; an empty `argv` means what the image says."""

    deployment_id: str
    tenant_id: str
    name: str
    spec: DeploymentSpec
    state: DeploymentState
    reason: str
    host_label: str
    image_digest: str
    build_id: str
    rootfs_asset_id: str
    build_ms: int
    build_reused: bool
    argv: tuple[str, ...]
    port: int
    generation: int
    job_id: str
    labels: Mapping[str, str]
    created_at_ns: int
    updated_at_ns: int


class ReplicaState(Enum):
    """Where one VM of a deployment stands, as gatewayd sees it."""

    PLACED = "placed"
    CREATED = "created"
    BOOTING = "booting"
    READY = "ready"
    UNREADY = "unready"
    FAILED = "failed"
    DELETING = "deleting"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """An amount of what VMs use."""

    vcpus: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    vms: int = 0

    def __add__(self, other: Resources) -> Resources:
        return Resources(
            vcpus=self.vcpus + other.vcpus,
            memory_bytes=self.memory_bytes + other.memory_bytes,
            disk_bytes=self.disk_bytes + other.disk_bytes,
            vms=self.vms + other.vms,
        )

    def __sub__(self, other: Resources) -> Resources:
        return Resources(
            vcpus=self.vcpus - other.vcpus,
            memory_bytes=self.memory_bytes - other.memory_bytes,
            disk_bytes=self.disk_bytes - other.disk_bytes,
            vms=self.vms - other.vms,
        )

    def at_least(self, other: Resources) -> Resources:
        """The greater of each amount."""
        return Resources(
            vcpus=max(self.vcpus, other.vcpus),
            memory_bytes=max(self.memory_bytes, other.memory_bytes),
            disk_bytes=max(self.disk_bytes, other.disk_bytes),
            vms=max(self.vms, other.vms),
        )

    def holds(self, other: Resources) -> bool:
        """Whether `other` fits in this."""
        return (
            other.vcpus <= self.vcpus
            and other.memory_bytes <= self.memory_bytes
            and other.disk_bytes <= self.disk_bytes
            and other.vms <= self.vms
        )


def shape_of(spec: DeploymentSpec) -> Resources:
    """What one replica takes."""
    return Resources(
        vcpus=spec.vcpus, memory_bytes=spec.memory_bytes, disk_bytes=spec.disk_bytes, vms=1
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One VM of a deployment.

    Attributes:
        address: Where its port is, on the fabric; empty before its VM is created.
        boot_ordered_at_ns: When the order to boot was given; 0 before.
    """

    vm_id: str
    deployment_id: str
    tenant_id: str
    index: int
    generation: int
    host_id: str
    zone: str
    state: ReplicaState
    reason: str
    address: str
    resources: Resources
    boot_ordered_at_ns: int
    boot_ms: int


class JobKind(Enum):
    """What a job does."""

    CREATE_DEPLOYMENT = "create_deployment"
    UPDATE_DEPLOYMENT = "update_deployment"
    SCALE_DEPLOYMENT = "scale_deployment"
    DELETE_DEPLOYMENT = "delete_deployment"
    DELETE_TENANT = "delete_tenant"
    DRAIN_HOST = "drain_host"


class JobState(Enum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


JOB_ENDED = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED})


class StageKind(Enum):
    """A part of a job."""

    RESOLVING = "resolving"
    BUILDING = "building"
    PLACING = "placing"
    CREATING = "creating"
    BOOTING = "booting"
    ROUTING = "routing"
    STOPPING = "stopping"
    DELETING = "deleting"
    UNDOING = "undoing"


class StageState(Enum):
    """Where a stage stands."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One part of a job; times 0: not yet."""

    kind: StageKind
    state: StageState = StageState.PENDING
    started_at_ns: int = 0
    ended_at_ns: int = 0
    detail: str = ""
    items_total: int = 0
    items_done: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """Outcome of a job that ended well; which fields count follows from its kind."""

    endpoint: str = ""
    image_digest: str = ""
    build_id: str = ""
    rootfs_asset_id: str = ""
    build_ms: int = 0
    build_reused: bool = False
    boot_ms: int = 0
    vm_ids: tuple[str, ...] = ()
    vms_deleted: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFailure:
    """Why a job failed: a code of the taxonomy, a sentence, and the stage; public."""

    code: str
    message: str
    stage: StageKind | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A piece of long-running work.

    Attributes:
        grace_ms: For deletions: time that applications get to end by themselves.
    """

    job_id: str
    tenant_id: str | None
    kind: JobKind
    resource_id: str
    state: JobState
    stages: tuple[Stage, ...]
    result: JobResult | None
    failure: JobFailure | None
    request_id: str
    grace_ms: int
    created_at_ns: int
    updated_at_ns: int
    ended_at_ns: int
    version: int


class HostState(Enum):
    """Whether a host gets VMs; Down is not stored, it follows from the time."""

    READY = "ready"
    CORDONED = "cordoned"
    DRAINING = "draining"
    DOWN = "down"


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A machine that runs metald, as it announced itself."""

    host_id: str
    name: str
    metald_url: str
    zone: str
    region: str
    architecture: str
    driver: str
    acceleration: str
    capacity: Resources
    allocated: Resources
    labels: Mapping[str, str]
    state: HostState
    """What the directory was told of it; `decide.host_state` says what counts."""
    version: str
    registered_at_ns: int
    last_heartbeat_at_ns: int
    reported: HostState = HostState.READY
    """What its own metald says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantLimits:
    """Bounds of what one tenant uses."""

    requests_per_second: int = 100
    request_burst: int = 200
    deployments: int = 100
    vms: int = 200
    vcpus: int = 400
    memory_bytes: int = 512 * GIB
    concurrent_jobs: int = 4
    api_keys: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A route that the data plane shall have.

    Attributes:
        host_label: First label of the host name: `<host_label>.<domain>`.
        addresses: `(address, port)` of each replica that is ready; empty: nothing answers, 503.
    """

    host_label: str
    addresses: tuple[tuple[str, int], ...]
