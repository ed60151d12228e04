"""Values of the asset registry. Sizes are bytes, times UTC nanoseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from pydantic import Field, SecretStr

from ironworks.model.errors import InvalidRequest
from ironworks.model.units import GIB, NS_PER_SECOND
from ironworks.runtime.settings import Settings
from ironworks.storage.objects import Bucket
from ironworks.storage.sql import sqlite_url

MAX_LABELS = 64
MAX_TEXT_CHARS = 128
MAX_LEASED_ASSETS = 16
MAX_RENEWED_LEASES = 1000
MIN_TTL_SECONDS = 1
MAX_TTL_SECONDS = 3600
MAX_VERDICTS = 1000
MIN_UNUSED_SECONDS = 60


class AssetKind(StrEnum):
    """What an asset is for."""

    KERNEL = "kernel"
    INITRD = "initrd"
    ROOTFS = "rootfs"
    SNAPSHOT = "snapshot"


class AssetFormat(StrEnum):
    """How the bytes are laid out."""

    BZIMAGE = "bzimage"
    ELF = "elf"
    ARM64_IMAGE = "arm64_image"
    CPIO = "cpio"
    CPIO_GZIP = "cpio_gzip"
    CPIO_ZSTD = "cpio_zstd"
    SQUASHFS = "squashfs"
    EXT4 = "ext4"
    VM_SNAPSHOT = "vm_snapshot"


KIND_OF_FORMAT: Mapping[AssetFormat, AssetKind] = {
    AssetFormat.BZIMAGE: AssetKind.KERNEL,
    AssetFormat.ELF: AssetKind.KERNEL,
    AssetFormat.ARM64_IMAGE: AssetKind.KERNEL,
    AssetFormat.CPIO: AssetKind.INITRD,
    AssetFormat.CPIO_GZIP: AssetKind.INITRD,
    AssetFormat.CPIO_ZSTD: AssetKind.INITRD,
    AssetFormat.SQUASHFS: AssetKind.ROOTFS,
    AssetFormat.EXT4: AssetKind.ROOTFS,
    AssetFormat.VM_SNAPSHOT: AssetKind.SNAPSHOT,
}


class AssetState(StrEnum):
    """Where an asset stands."""

    REGISTERED = "registered"
    AVAILABLE = "available"
    IN_USE = "in_use"
    ARCHIVED = "archived"
    FAILED = "failed"
    DELETED = "deleted"


class LeaseState(StrEnum):
    """Where a lease stands."""

    ACTIVE = "active"
    RELEASED = "released"
    EXPIRED = "expired"


class PrepareMethod(StrEnum):
    """How a file came into a directory."""

    HARD_LINK = "hard_link"
    REFLINK = "reflink"
    COPY = "copy"


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
    """How to run what is in a rootfs, as the image says; see `common.v1.ImageConfig`."""

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
class Facts:
    """What the registrant says of bytes; `format` None: to be found out."""

    kind: AssetKind
    sha256: str
    size_bytes: int
    format: AssetFormat | None = None
    media_type: str = ""
    architecture: str = ""
    source_digest: str = ""
    build_id: str = ""
    image_config: ImageConfig | None = None
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    platform: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """One record of the registry.

    Attributes:
        tenant_id: Whose it is; empty: the platform's.
        staged_name: File of the staging area that will become its bytes; empty: none any more.
        staged_by: The staging area that has it, by `Staging.identity`.
        object_name: Name of its bytes where they are kept; empty: their SHA-256.
    """

    asset_id: str
    tenant_id: str
    kind: AssetKind
    format: AssetFormat | None
    state: AssetState
    size_bytes: int
    sha256: str
    reason: str = ""
    media_type: str = ""
    architecture: str = ""
    source_digest: str = ""
    build_id: str = ""
    image_config: ImageConfig | None = None
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    staged_name: str = ""
    staged_by: str = ""
    object_name: str = ""
    lease_count: int = 0
    created_at_ns: int = 0
    updated_at_ns: int = 0
    last_used_at_ns: int = 0
    revision: int = 1
    damage: str = ""

    @property
    def stored_as(self) -> str:
        """Name of its bytes where they are kept."""
        return self.object_name or self.sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetEvent:
    """One entry of an asset's history; `from_state` None: its first."""

    asset_id: str
    sequence: int
    at_ns: int
    from_state: AssetState | None
    to_state: AssetState
    reason: str
    actor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetFilter:
    """Selects assets; what is empty selects all, but no DELETED ones."""

    kind: AssetKind | None = None
    states: tuple[AssetState, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    source_digest: str = ""
    architecture: str = ""
    sha256: str = ""
    format: AssetFormat | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A reference on assets: `owner` is the service that has it, `holder` what it has it for."""

    lease_id: str
    tenant_id: str
    asset_ids: tuple[str, ...]
    owner: str
    holder: str
    purpose: str
    state: LeaseState
    created_at_ns: int
    expires_at_ns: int
    ended_at_ns: int = 0
    ttl_ns: int = 60 * NS_PER_SECOND


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseFilter:
    """Selects leases; what is empty selects all."""

    owner: str = ""
    asset_id: str = ""
    holder: str = ""
    state: LeaseState | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """Bytes that are on their way; `asset_id` is what they have become."""

    upload_id: str
    tenant_id: str
    facts: Facts
    idempotency_key: str
    expires_at_ns: int
    asset_id: str = ""
    offset_bytes: int = 0

    @property
    def staged_name(self) -> str:
        """Its file in the staging area."""
        return f"{self.upload_id}.part"


@dataclass(frozen=True, slots=True, kw_only=True)
class Who:
    """Who asks, and what that lets them see.

    Attributes:
        actor: For the history: a service's name, a key's id, `gc`.
        tenant_id: The tenant that it is for; empty: the platform.
        is_service: A service, not a person.
        sees_all: An operator without a tenant sees everything.
    """

    actor: str
    tenant_id: str = ""
    is_service: bool = False
    sees_all: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a pass of garbage collection decided about one asset."""

    asset_id: str
    collected: bool
    reason: str
    freed_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What garbage is at one moment.

    Attributes:
        now_ns: The time.
        ttl_seconds: Time that an asset may go unused.
        failed_ttl_seconds: Time that the record of a failure is kept.
        needed: The platform's newest of their kinds: VMs to come boot with them.
    """

    now_ns: int
    ttl_seconds: int
    failed_ttl_seconds: int
    needed: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """What a pass of garbage collection did: all of it counted, the first of each kind told."""

    collected: tuple[Verdict, ...] = ()
    kept: tuple[Verdict, ...] = ()
    collected_count: int = 0
    kept_count: int = 0
    freed_bytes: int = 0

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """At most `MAX_VERDICTS`, collected ones first."""
        return (*self.collected, *self.kept)[:MAX_VERDICTS]

    def plus(self, verdicts: Sequence[Verdict]) -> Collection:
        """With some more."""
        taken = tuple(one for one in verdicts if one.collected)
        left = tuple(one for one in verdicts if not one.collected)
        return Collection(
            collected=(*self.collected, *taken)[:MAX_VERDICTS],
            kept=(*self.kept, *left)[:MAX_VERDICTS],
            collected_count=self.collected_count + len(taken),
            kept_count=self.kept_count + len(left),
            freed_bytes=self.freed_bytes + sum(one.freed_bytes for one in taken),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """One file that was placed in a directory."""

    asset_id: str
    file_name: str
    method: PrepareMethod
    size_bytes: int


def _read_secret(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}.") from None


class AssetSettings(Settings):
    """Limits of assetmanagerd."""

    asset_ttl_seconds: int = Field(
        default=7 * 86400, ge=60, description="Unused assets are collected after this."
    )
    failed_asset_ttl_seconds: int = Field(
        default=3600, ge=1, description="Records of failed registrations go after this."
    )
    asset_history_seconds: int = Field(
        default=30 * 86400,
        ge=86400,
        description="Records of deleted assets, and changes that only leases made, go after this.",
    )
    assetmanagerd_database_url: str = Field(
        default="", description="PostgreSQL URL; empty: a SQLite file in the data directory."
    )
    upload_ttl_seconds: int = Field(
        default=86400, ge=60, description="Uploads that stand still are removed after this."
    )
    lease_ttl_seconds: int = Field(
        default=60, ge=MIN_TTL_SECONDS, le=MAX_TTL_SECONDS, description="Default time of a lease."
    )
    asset_gc_period_seconds: float = Field(
        default=3600.0, gt=0, description="Time between two passes of garbage collection."
    )
    asset_repair_period_seconds: float = Field(
        default=86400.0, gt=0, description="Time between two comparisons of registry and bytes."
    )
    max_asset_bytes: int = Field(default=64 * GIB, ge=1, description="Largest asset.")
    min_free_bytes: int = Field(
        default=GIB // 4, ge=0, description="Free disk that assets and builds leave alone."
    )
    prepare_roots: list[Path] = Field(
        default_factory=list[Path],
        description="Directories below which assets are placed; default: data_dir/jails.",
    )

    asset_bucket: str = Field(
        default="", description="S3 bucket that keeps assets; empty: the data directory does."
    )
    asset_bucket_endpoint: str = Field(
        default="", description="URL of the S3; empty: AWS, in the region."
    )
    asset_bucket_region: str = Field(default="us-east-1", description="Region of the bucket.")
    asset_bucket_prefix: str = Field(default="", description="Before every key in the bucket.")
    asset_bucket_access_key_id: str = Field(
        default="", description="Who we are there; empty: AWS's environment or instance role."
    )
    asset_bucket_secret_key: SecretStr | None = Field(
        default=None, description="Secret of the access key; better in a file."
    )
    asset_bucket_secret_key_file: Path | None = Field(
        default=None, description="File with the secret of the access key."
    )
    asset_bucket_timeout_seconds: float = Field(
        default=10.0, gt=0, description="How long the S3 may be silent."
    )
    asset_cache_bytes: int = Field(
        default=32 * GIB, ge=1, description="Copies on this host of what the bucket keeps."
    )

    @property
    def database_url(self) -> str:
        """Where the registry is."""
        return self.assetmanagerd_database_url or sqlite_url(
            self.data_dir / "assetmanagerd" / "assetmanagerd.db"
        )

    @property
    def asset_dir(self) -> Path:
        """Where bytes are on this host."""
        return self.data_dir / "assets"

    def bucket(self) -> Bucket | None:
        """Where assets are kept; None: in the data directory.

        Raises:
            InvalidRequest: the file with the secret cannot be read, or has none.
        """
        if not self.asset_bucket:
            return None
        given = self.asset_bucket_secret_key
        secret = given.get_secret_value() if given is not None else ""
        if self.asset_bucket_secret_key_file is not None:
            secret = _read_secret(self.asset_bucket_secret_key_file)
        if self.asset_bucket_access_key_id and not secret:
            raise InvalidRequest("asset_bucket_access_key_id is set, and its secret is not.")
        return Bucket(
            name=self.asset_bucket,
            endpoint=self.asset_bucket_endpoint,
            region=self.asset_bucket_region,
            prefix=self.asset_bucket_prefix,
            access_key_id=self.asset_bucket_access_key_id,
            secret_access_key=secret,
            timeout_seconds=self.asset_bucket_timeout_seconds,
        )

    @property
    def staging_dir(self) -> Path:
        """Where bytes are on their way in."""
        return self.asset_dir / "staging"

    def roots(self) -> tuple[Path, ...]:
        """Directories below which assets may be placed."""
        return tuple(self.prepare_roots) or (self.data_dir / "jails",)
