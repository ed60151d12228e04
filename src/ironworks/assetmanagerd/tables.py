"""Tables of assetmanagerd; the newest migration makes the same."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

from ironworks.storage.idempotency import idempotency_table
from ironworks.storage.sql import NAMING_CONVENTION

METADATA = MetaData(naming_convention=NAMING_CONVENTION)

ASSETS = Table(
    "assets",
    METADATA,
    Column("asset_id", String(40), primary_key=True),
    Column("tenant_id", String(40), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("format", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False, index=True),
    Column("media_type", String(128), nullable=False),
    Column("architecture", String(128), nullable=False),
    Column("source_digest", String(256), nullable=False, index=True),
    Column("build_id", String(128), nullable=False),
    Column("image_config", Text, nullable=False),
    Column("labels", Text, nullable=False),
    Column("staged_name", String(128), nullable=False),
    # The staging area that has it: of several assetmanagerd, only its own takes that file up.
    Column("staged_by", String(64), nullable=False, server_default=""),
    # Records of the same bytes share one object. Once none is left its name is never used again:
    # a removal, however late it comes to the store, hits nothing that anybody needs.
    Column("object_name", String(128), nullable=False, server_default="", index=True),
    Column("damage", Text, nullable=False),
    Column("created_at_ns", BigInteger, nullable=False),
    Column("updated_at_ns", BigInteger, nullable=False),
    Column("last_used_at_ns", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
    # How many ACTIVE leases hold it: changes in the transaction that changes the leases.
    Column("lease_count", Integer, nullable=False, server_default="0"),
    # `owner:sha256`, and a hash of the image's configuration if there is one, while the record
    # stands for bytes; NULL once it is FAILED or DELETED. One owner has the same bytes, run in the
    # same way, once.
    Column("live_key", String(128), nullable=True, unique=True),
    Index("ix_assets_tenant_id_asset_id", "tenant_id", "asset_id"),
    Index("ix_assets_tenant_id_state_asset_id", "tenant_id", "state", "asset_id"),
    Index("ix_assets_state_asset_id", "state", "asset_id"),
)

LABELS = Table(
    "asset_labels",
    METADATA,
    Column("asset_id", String(40), ForeignKey("assets.asset_id"), primary_key=True),
    Column("key", String(128), primary_key=True),
    Column("value", String(128), nullable=False),
    Index("ix_asset_labels_key_value", "key", "value"),
)

EVENTS = Table(
    "asset_events",
    METADATA,
    Column(
        "sequence",
        BigInteger().with_variant(Integer, "sqlite"),
        primary_key=True,
        autoincrement=True,
    ),
    Column("asset_id", String(40), ForeignKey("assets.asset_id"), nullable=False, index=True),
    Column("at_ns", BigInteger, nullable=False),
    Column("from_state", String(16), nullable=False),
    Column("to_state", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("actor", String(128), nullable=False),
    # A sequence number is never used twice, even after its row is gone: watchers resume by it.
    sqlite_autoincrement=True,
)

LEASES = Table(
    "leases",
    METADATA,
    Column("lease_id", String(40), primary_key=True),
    Column("tenant_id", String(40), nullable=False),
    Column("owner", String(64), nullable=False),
    Column("holder", String(128), nullable=False, index=True),
    Column("purpose", String(256), nullable=False),
    Column("state", String(16), nullable=False),
    Column("created_at_ns", BigInteger, nullable=False),
    Column("expires_at_ns", BigInteger, nullable=False),
    Column("ended_at_ns", BigInteger, nullable=False),
    # Time that its owner asked for when it was last renewed.
    Column("ttl_ns", BigInteger, nullable=False, server_default="60000000000"),
    Index("ix_leases_state_expires_at_ns", "state", "expires_at_ns"),
)

LEASED = Table(
    "leased_assets",
    METADATA,
    Column("lease_id", String(40), ForeignKey("leases.lease_id"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("asset_id", String(40), ForeignKey("assets.asset_id"), nullable=False, index=True),
)

UPLOADS = Table(
    "uploads",
    METADATA,
    Column("upload_id", String(40), primary_key=True),
    Column("tenant_id", String(40), nullable=False),
    Column("facts", Text, nullable=False),
    Column("idempotency_key", String(128), nullable=False),
    Column("expires_at_ns", BigInteger, nullable=False, index=True),
    Column("asset_id", String(40), nullable=False),
    Index("ix_uploads_tenant_id_idempotency_key", "tenant_id", "idempotency_key", unique=True),
)

DOOMED = Table(
    "doomed_objects",
    METADATA,
    # Bytes that no record stands for any more: to be removed.
    Column("object_name", String(128), primary_key=True),
    Column("at_ns", BigInteger, nullable=False),
)

HORIZON = Table(
    "event_horizon",
    METADATA,
    # One row: the history is complete after this entry, and before it entries have been forgotten.
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("sequence", BigInteger, nullable=False),
)

POSITION_KEY = Table(
    "position_key",
    METADATA,
    # One row: what positions of watches are sealed with.
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("key", LargeBinary, nullable=False),
)

IDEMPOTENCY = idempotency_table(METADATA)
