"""Tables of builderd; the newest migration makes the same."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, MetaData, String, Table, Text

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
    # The whole record as JSON; the columns beside it are what is searched for.
    Column("record", Text, nullable=False),
    Index("ix_builds_tenant_id_build_id", "tenant_id", "build_id"),
    Index("ix_builds_state", "state"),
    Index("ix_builds_image_digest", "image_digest"),
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

IDEMPOTENCY = idempotency_table(METADATA)
