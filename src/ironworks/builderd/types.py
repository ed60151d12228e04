"""Values of builderd. Sizes are bytes, times UTC nanoseconds."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from pydantic import Field

from ironworks.model.units import GIB
from ironworks.runtime.settings import Settings

BUILDER_VERSION = "2"
"""Changes whenever the same image would become other bytes."""

MAX_IMAGE_CHARS = 1024
MAX_LABELS = 64
MAX_TEXT_CHARS = 128
MAX_LOG_LINES = 10_000
MAX_LOG_CHARS = 2000


class BuildState(StrEnum):
    """Where a build stands."""

    QUEUED = "queued"
    RESOLVING = "resolving"
    PULLING = "pulling"
    BUILDING = "building"
    VALIDATING = "validating"
    REGISTERING = "registering"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = frozenset({BuildState.COMPLETED, BuildState.FAILED, BuildState.CANCELLED})


class RootfsFormat(StrEnum):
    """The file system that a build writes."""

    SQUASHFS = "squashfs"
    EXT4 = "ext4"


class Transport(StrEnum):
    """Where an image is."""

    REGISTRY = "docker"
    LAYOUT = "oci"
    OCI_ARCHIVE = "oci-archive"
    DOCKER_ARCHIVE = "docker-archive"
    PATH = "path"
    UPLOAD = "upload"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReference:
    """A reference, taken apart.

    Attributes:
        transport: Where to look.
        location: Registry, repository, tag and digest; or an absolute path on the host.
        name: Which of the images of a layout or archive; empty: the only one.
    """

    transport: Transport
    location: str
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheck:
    """How an image says that its health is to be checked; see `common.v1.HealthCheck`."""

    test: tuple[str, ...] = ()
    interval_ns: int = 0
    timeout_ns: int = 0
    start_period_ns: int = 0
    retries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """How to run an image; see `common.v1.ImageConfig`."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    user: str = ""
    working_directory: str = ""
    exposed_ports: tuple[str, ...] = ()
    stop_signal: str = ""
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    health_check: HealthCheck | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """What one document says of another: its type, digest `sha256:…` and length."""

    media_type: str
    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One image: its configuration and its layers, lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """What a reference means.

    Attributes:
        digest: Of the manifest for this platform.
        index_digest: Of the index that led to it; empty if there was none.
    """

    digest: str
    index_digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """An image that is on this machine: its manifest, and the directory of its blobs.

    Of a registry's image the blobs may not be here yet.
    """

    manifest: bytes
    blobs: Path = Path()


class PolicyOutcome(StrEnum):
    """What a rule found, or all of them."""

    PASSED = "passed"
    CHANGED = "changed"
    REFUSED = "refused"
    NOT_EVALUATED = "not_evaluated"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLine:
    """What one rule of a policy found; see `builderd.v1.PolicyLine`."""

    rule: str
    outcome: PolicyOutcome
    message: str
    paths: tuple[str, ...] = ()
    path_count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyReport:
    """What a policy found in an image: one line for each rule.

    Attributes:
        policy_digest: SHA-256 of the policy's canonical form, 64 hexadecimal digits.
    """

    lines: tuple[PolicyLine, ...]
    policy_digest: str

    @property
    def outcome(self) -> PolicyOutcome:
        """The worst of all lines."""
        worst = (
            PolicyOutcome.REFUSED,
            PolicyOutcome.NOT_EVALUATED,
            PolicyOutcome.CHANGED,
        )
        found = {line.outcome for line in self.lines}
        return next((outcome for outcome in worst if outcome in found), PolicyOutcome.PASSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """An installed package that an image declares; `manager` is dpkg, apk or rpm."""

    manager: str
    name: str
    version: str
    architecture: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a build failed: a code of the error taxonomy, a sentence, and when."""

    code: str
    message: str
    state: BuildState


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Time that a build spent in one state; `ended_at_ns` 0 while it lasts."""

    state: BuildState
    started_at_ns: int
    ended_at_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far the present state has come; `total_bytes` 0 if not known."""

    done_bytes: int = 0
    total_bytes: int = 0
    step: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """An asset that a build's bytes are, and what assetmanagerd found them to be."""

    asset_id: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildResult:
    """What a build made."""

    asset_id: str
    sha256: str
    size_bytes: int
    unpacked_bytes: int
    file_count: int
    layer_count: int
    image_config: ImageConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """One job: image → rootfs.

    Attributes:
        turn: The queue's run that has it; empty while it waits.
        policy_digest: Of the policy that was in force when a worker took it up.
    """

    build_id: str
    tenant_id: str
    image: str
    format: RootfsFormat
    state: BuildState
    created_at_ns: int
    updated_at_ns: int
    timeout_seconds: int
    priority: int = 2
    force: bool = False
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    image_digest: str = ""
    index_digest: str = ""
    platform: str = ""
    builder_version: str = BUILDER_VERSION
    result: BuildResult | None = None
    failure: Failure | None = None
    reused_build_id: str = ""
    stages: tuple[Stage, ...] = ()
    attempt_count: int = 0
    worker: str = ""
    turn: str = ""
    policy_digest: str = ""
    policy_report: PolicyReport | None = None
    started_at_ns: int = 0
    ended_at_ns: int = 0
    revision: int = 1

    @property
    def ended(self) -> bool:
        """Whether nothing happens to it any more."""
        return self.state in ENDED


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildFilter:
    """Selects builds; what is empty selects all."""

    states: tuple[BuildState, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    image_digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One line of a build's log."""

    sequence: int
    at_ns: int
    state: BuildState
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Figures about builds; times are durations in nanoseconds."""

    queued_count: int = 0
    running_count: int = 0
    oldest_queued_age_ns: int = 0
    completed_count: int = 0
    reused_count: int = 0
    failed_count: int = 0
    cancelled_count: int = 0
    median_duration_ns: int = 0
    p95_duration_ns: int = 0
    written_bytes: int = 0


class BuilderSettings(Settings):
    """Limits of builderd."""

    builderd_database_url: str = Field(
        default="",
        description=(
            "PostgreSQL URL of builds and their queue, for builderd on many machines; empty: "
            "SQLite files in the data directory."
        ),
    )
    builderd_worker: str = Field(
        default="",
        pattern="^[a-z0-9-]{0,63}$",
        description=(
            "Name of this builderd among several on one database; empty: it is the only one, or "
            "the machine's host name with PostgreSQL."
        ),
    )
    builderd_lease_seconds: float = Field(
        default=15.0, gt=0, description="After this long without a sign of life a worker is dead."
    )

    build_timeout_seconds: int = Field(
        default=1200, ge=1, description="Longest time that a build may take."
    )
    max_builds: int = Field(default=2, ge=1, description="Builds at once of one worker.")
    max_builds_per_tenant: int = Field(
        default=2, ge=1, description="Builds at once of a tenant, on all workers."
    )
    max_build_attempts: int = Field(
        default=10, ge=1, description="How often a build is taken up whose worker dies each time."
    )
    max_queued_builds_per_tenant: int = Field(
        default=100, ge=1, description="Builds of a tenant that may wait."
    )
    max_unpacked_bytes: int = Field(
        default=16 * GIB, ge=1, description="Bytes that an image may unpack to."
    )
    max_packed_bytes: int = Field(
        default=16 * GIB, ge=1, description="Bytes of an image's blobs together."
    )
    max_image_files: int = Field(
        default=1_000_000, ge=1, description="Entries that an image may have."
    )
    max_image_layers: int = Field(default=128, ge=1, description="Layers of an image.")
    max_path_bytes: int = Field(default=4095, ge=1, description="Longest path in an image.")
    min_free_bytes: int = Field(
        default=GIB // 4, ge=0, description="Free disk that assets and builds leave alone."
    )
    build_processors: int = Field(default=2, ge=1, description="Processors that a build uses.")
    build_memory_bytes: int = Field(
        default=GIB, ge=GIB // 4, description="Memory of a build, with the file-system writer's."
    )
    build_processes: int = Field(
        default=256, ge=32, description="Processes and threads of a build."
    )
    build_cgroups: bool = Field(
        default=True,
        description="Builds have cgroups, which needs root; without, less is bounded.",
    )
    local_image_roots: list[Path] = Field(
        default_factory=list[Path],
        description=(
            "Directories on builderd's machine below which layouts and archives may be named. "
            "Default: data_dir/images, which only the operator can write to."
        ),
    )
    insecure_registries: list[str] = Field(
        default_factory=list[str], description="Registries that are spoken to without TLS."
    )
    registry_mirrors: dict[str, list[str]] = Field(
        default_factory=dict[str, list[str]],
        description=(
            "Registry → registries that have its images too and are asked first, for example "
            '{"docker.io": ["mirror.example.com"]}.'
        ),
    )
    default_registry: str = Field(
        default="docker.io", description="Registry of image references that name none."
    )
    private_registries: list[str] = Field(
        default_factory=list[str],
        description=(
            "Registries, and hosts that they send their clients on to, that may be at addresses "
            "which are not public, such as 10.0.0.0/8. Insecure registries and mirrors may be."
        ),
    )
    registry_stall_seconds: float = Field(
        default=60.0,
        gt=0,
        description="A registry that sends next to nothing (1 KiB a second) so long is given up.",
    )
    max_cache_bytes: int = Field(
        default=40 * GIB,
        ge=0,
        description="Bytes of pulled layers kept for next builds; the least lately used go.",
    )
    max_upload_bytes_per_tenant: int = Field(
        default=32 * GIB, ge=0, description="Bytes of uploaded archives kept for a tenant."
    )
    upload_ttl_seconds: int = Field(
        default=86400, ge=60, description="How long an uploaded archive is kept after its last use."
    )
    credentials_key_file: Path | None = Field(
        default=None,
        description=(
            "Keys with which passwords of registries are encrypted; builderds on several machines "
            "need the same. Default: credentials.keys in builderd's directory, made at first start."
        ),
    )

    @property
    def shared(self) -> bool:
        """Whether several builderds serve one queue."""
        return bool(self.builderd_database_url or self.builderd_worker)

    @property
    def worker_name(self) -> str:
        """What this builderd is called among several."""
        if self.builderd_worker or not self.shared:
            return self.builderd_worker or "builderd"
        return re.sub("[^a-z0-9-]", "-", socket.gethostname().lower())[:63]

    @property
    def builder_dir(self) -> Path:
        """State of builderd."""
        return self.data_dir / "builderd"

    @property
    def key_file(self) -> Path:
        """Keys with which passwords of registries are encrypted."""
        return self.credentials_key_file or self.builder_dir / "credentials.keys"

    @property
    def uploads_dir(self) -> Path:
        """Where archives are that clients have sent."""
        return self.builder_dir / "uploads"

    @property
    def staging_dir(self) -> Path:
        """Where assetmanagerd takes bytes over."""
        return self.data_dir / "assets" / "staging"

    def image_roots(self) -> tuple[Path, ...]:
        """Directories below which images on this machine may be named."""
        return tuple(self.local_image_roots) or (self.data_dir / "images",)
