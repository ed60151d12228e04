"""gatewayd's tables; `migrations/versions` makes the same ones, which a test proves."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    text,
)

from ironworks.storage.idempotency import idempotency_table
from ironworks.storage.sql import NAMING_CONVENTION

METADATA = MetaData(naming_convention=NAMING_CONVENTION)

TENANTS = Table(
    "tenants",
    METADATA,
    Column("tenant_id", String(40), primary_key=True),
    Column("name", String(63), nullable=False, unique=True),
    Column("display_name", String(200), nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", String(500), nullable=False),
    Column("labels", Text, nullable=False),
    Column("created_at_ns", BigInteger, nullable=False),
    Column("updated_at_ns", BigInteger, nullable=False),
)

API_KEYS = Table(
    "api_keys",
    METADATA,
    Column("api_key_id", String(40), primary_key=True),
    Column("tenant_id", String(40), ForeignKey("tenants.tenant_id"), nullable=True, index=True),
    Column("name", String(63), nullable=False),
    Column("roles", String(200), nullable=False),
    Column("hint", String(16), nullable=False),
    Column("secret_sha256", String(64), nullable=False, unique=True),
    Column("created_at_ns", BigInteger, nullable=False),
    Column("expires_at_ns", BigInteger, nullable=False),
    Column("revoked_at_ns", BigInteger, nullable=False),
    Column("last_used_at_ns", BigInteger, nullable=False),
)
"""The secret has 256 random bits, so a plain SHA-256 of it can be neither guessed nor inverted, and
is found by index; a slow hash protects only what people choose."""

DEPLOYMENTS = Table(
    "deployments",
    METADATA,
    Column("deployment_id", String(40), primary_key=True),
    Column("tenant_id", String(40), ForeignKey("tenants.tenant_id"), nullable=False),
    Column("name", String(63), nullable=False),
    Column("spec", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("host_label", String(63), nullable=False),
    Column("image_digest", String(80), nullable=False),
    Column("build_id", String(40), nullable=False),
    Column("rootfs_asset_id", String(40), nullable=False),
    Column("build_ms", BigInteger, nullable=False),
    Column("build_reused", Boolean, nullable=False),
    Column("argv", Text, nullable=False),
    Column("port", Integer, nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("job_id", String(40), nullable=False),
    Column("labels", Text, nullable=False),
    Column("created_at_ns", BigInteger, nullable=False),
    Column("updated_at_ns", BigInteger, nullable=False),
    Index("ix_deployments_page", "tenant_id", "created_at_ns", "deployment_id"),
    Index(
        "uq_deployments_living_name",
        "tenant_id",
        "name",
        unique=True,
        sqlite_where=text("state != 'deleted'"),
        postgresql_where=text("state != 'deleted'"),
    ),
)

REPLICAS = Table(
    "replicas",
    METADATA,
    Column("vm_id", String(40), primary_key=True),
    Column("deployment_id", String(40), ForeignKey("deployments.deployment_id"), nullable=False),
    Column("tenant_id", String(40), nullable=False, index=True),
    Column("place", Integer, nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("host_id", String(40), nullable=False, index=True),
    Column("zone", String(63), nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("reason", Text, nullable=False),
    Column("address", String(64), nullable=False),
    Column("vcpus", Integer, nullable=False),
    Column("memory_bytes", BigInteger, nullable=False),
    Column("disk_bytes", BigInteger, nullable=False),
    Column("boot_ordered_at_ns", BigInteger, nullable=False),
    Column("boot_ms", BigInteger, nullable=False),
    Index("uq_replicas_place", "deployment_id", "generation", "place", unique=True),
)

JOBS = Table(
    "jobs",
    METADATA,
    Column("job_id", String(40), primary_key=True),
    Column("tenant_id", String(40), nullable=True),
    Column("kind", String(24), nullable=False),
    Column("resource_id", String(40), nullable=False, index=True),
    Column("state", String(16), nullable=False, index=True),
    Column("stages", Text, nullable=False),
    Column("result", Text, nullable=True),
    Column("failure", Text, nullable=True),
    Column("request_id", String(64), nullable=False),
    Column("grace_ms", Integer, nullable=False),
    Column("created_at_ns", BigInteger, nullable=False),
    Column("updated_at_ns", BigInteger, nullable=False),
    Column("ended_at_ns", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    Index("ix_jobs_page", "tenant_id", "created_at_ns", "job_id"),
)

HOSTS = Table(
    "hosts",
    METADATA,
    Column("host_id", String(40), primary_key=True),
    Column("name", String(63), nullable=False, unique=True),
    Column("metald_url", String(255), nullable=False),
    Column("zone", String(63), nullable=False),
    Column("region", String(63), nullable=False),
    Column("architecture", String(16), nullable=False),
    Column("driver", String(16), nullable=False),
    Column("acceleration", String(16), nullable=False),
    Column("capacity", Text, nullable=False),
    Column("allocated", Text, nullable=False),
    Column("labels", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("version", String(64), nullable=False),
    Column("registered_at_ns", BigInteger, nullable=False),
    Column("last_heartbeat_at_ns", BigInteger, nullable=False),
    Column("reported", String(16), nullable=False, server_default=text("'ready'")),
)

IDEMPOTENCY = idempotency_table(METADATA)
