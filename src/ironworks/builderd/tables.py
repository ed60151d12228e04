"""Tables of builderd; the newest migration makes the same."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from ironworks.storage.idempotency import idempotency_table
from ironworks.storage.sql import NAMING_CONVENTION

METADATA = MetaData(naming_convention=NAMING_CONVENTION)

BUILDS = Table(
    "builds",
    METADATA,
    Column("build_id", String(40), primary_key=True),
    Column("tenant_id", String(40), nullable=False),
    Column("image", Text, nullable=False),
    Column("image_digest", String(80), nullable=False),
    Column("format", String(16), nullable=False),
    Column("builder_version", String(32), nullable=False),
    Column("state", String(16), nullable=False),
    Column("reused_build_id", String(40), nullable=False),
    Column("created_at_ns", BigInteger, nullable=False),
    Column("updated_at_ns", BigInteger, nullable=False),
    Column("ended_at_ns", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("priority", Integer, nullable=False, server_default="2"),
    Column("turn", String(80), nullable=False, server_default=""),
    Column("policy_digest", String(64), nullable=False, server_default=""),
    # How far the present state has come, as JSON; changes without the record.
    Column("progress", Text, nullable=False, server_default=""),
    # The whole record as JSON; the columns beside it are what is searched for.
    Column("record", Text, nullable=False),
    Index("ix_builds_tenant_id_build_id", "tenant_id", "build_id"),
    Index("ix_builds_state", "state"),
    Index("ix_builds_image_digest", "image_digest"),
    Index("ix_builds_turn", "turn"),
)

LABELS = Table(
    "build_labels",
    METADATA,
    Column("build_id", String(40), ForeignKey("builds.build_id"), primary_key=True),
    Column("key", String(128), primary_key=True),
    Column("value", String(128), nullable=False),
    Index("ix_build_labels_key_value", "key", "value"),
)

LOG_LINES = Table(
    "build_log_lines",
    METADATA,
    Column("build_id", String(40), ForeignKey("builds.build_id"), primary_key=True),
    Column("sequence", Integer, primary_key=True),
    Column("at_ns", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),
    Column("text", Text, nullable=False),
)

SERVED = Table(
    "served_tenants",
    METADATA,
    Column("tenant_id", String(40), primary_key=True),
    # When a worker last took up one of its builds.
    Column("served_at_ns", BigInteger, nullable=False),
)

LOCKS = Table(
    "build_locks",
    METADATA,
    # What builds must share for one result to serve all.
    Column("key", String(64), primary_key=True),
    Column("build_id", String(40), nullable=False),
    Column("until_ns", BigInteger, nullable=False),
)

PACKAGES = Table(
    "build_packages",
    METADATA,
    Column("build_id", String(40), ForeignKey("builds.build_id"), primary_key=True),
    Column("packages", Text, nullable=False),
)

POLICIES = Table(
    "policies",
    METADATA,
    # A tenant's id, or `platform`.
    Column("owner", String(40), primary_key=True),
    Column("revision", BigInteger, nullable=False),
    Column("policy", Text, nullable=False),
    Column("updated_at_ns", BigInteger, nullable=False),
)

CREDENTIALS = Table(
    "registry_credentials",
    METADATA,
    Column("tenant_id", String(40), primary_key=True),
    Column("scope", String(256), primary_key=True),
    Column("username", String(256), nullable=False),
    # Encrypted; the key is not in the database.
    Column("secret", Text, nullable=False),
    Column("updated_at_ns", BigInteger, nullable=False),
    Column("last_used_at_ns", BigInteger, nullable=False),
)

UPLOADS = Table(
    "image_uploads",
    METADATA,
    Column("upload_id", String(40), primary_key=True),
    Column("tenant_id", String(40), nullable=False),
    Column("key", String(128), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("complete", Integer, nullable=False),
    Column("expires_at_ns", BigInteger, nullable=False),
    UniqueConstraint("tenant_id", "key"),
    Index("ix_image_uploads_expires_at_ns", "expires_at_ns"),
)

IDEMPOTENCY = idempotency_table(METADATA)
