"""Assets with labels and history, leases, uploads, bytes to remove, idempotency keys."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    _assets()
    _children()
    _leases()
    _bytes()


def _assets() -> None:
    op.create_table(
        "assets",
        sa.Column("asset_id", sa.String(40), nullable=False),
        sa.Column("tenant_id", sa.String(40), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("format", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("media_type", sa.String(128), nullable=False),
        sa.Column("architecture", sa.String(128), nullable=False),
        sa.Column("source_digest", sa.String(256), nullable=False),
        sa.Column("build_id", sa.String(128), nullable=False),
        sa.Column("image_config", sa.Text, nullable=False),
        sa.Column("labels", sa.Text, nullable=False),
        sa.Column("staged_name", sa.String(128), nullable=False),
        sa.Column("damage", sa.Text, nullable=False),
        sa.Column("created_at_ns", sa.BigInteger, nullable=False),
        sa.Column("updated_at_ns", sa.BigInteger, nullable=False),
        sa.Column("last_used_at_ns", sa.BigInteger, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("live_key", sa.String(128), nullable=True),
        sa.PrimaryKeyConstraint("asset_id", name="pk_assets"),
        sa.UniqueConstraint("live_key", name="uq_assets_live_key"),
    )
    op.create_index("ix_assets_sha256", "assets", ["sha256"])
    op.create_index("ix_assets_source_digest", "assets", ["source_digest"])
    op.create_index("ix_assets_tenant_id_asset_id", "assets", ["tenant_id", "asset_id"])
    op.create_index("ix_assets_state", "assets", ["state"])


def _children() -> None:
    op.create_table(
        "asset_labels",
        sa.Column("asset_id", sa.String(40), nullable=False),
        sa.Column("key", sa.String(128), nullable=False),
        sa.Column("value", sa.String(128), nullable=False),
        sa.PrimaryKeyConstraint("asset_id", "key", name="pk_asset_labels"),
        sa.ForeignKeyConstraint(
            ["asset_id"], ["assets.asset_id"], name="fk_asset_labels_asset_id_assets"
        ),
    )
    op.create_index("ix_asset_labels_key_value", "asset_labels", ["key", "value"])
    op.create_table(
        "asset_events",
        sa.Column("sequence", sa.Integer, nullable=False, autoincrement=True),
        sa.Column("asset_id", sa.String(40), nullable=False),
        sa.Column("at_ns", sa.BigInteger, nullable=False),
        sa.Column("from_state", sa.String(16), nullable=False),
        sa.Column("to_state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_asset_events"),
        sa.ForeignKeyConstraint(
            ["asset_id"], ["assets.asset_id"], name="fk_asset_events_asset_id_assets"
        ),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_asset_events_asset_id", "asset_events", ["asset_id"])


def _leases() -> None:
    op.create_table(
        "leases",
        sa.Column("lease_id", sa.String(40), nullable=False),
        sa.Column("tenant_id", sa.String(40), nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("holder", sa.String(128), nullable=False),
        sa.Column("purpose", sa.String(256), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created_at_ns", sa.BigInteger, nullable=False),
        sa.Column("expires_at_ns", sa.BigInteger, nullable=False),
        sa.Column("ended_at_ns", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("lease_id", name="pk_leases"),
    )
    op.create_index("ix_leases_holder", "leases", ["holder"])
    op.create_index("ix_leases_state_expires_at_ns", "leases", ["state", "expires_at_ns"])
    op.create_table(
        "leased_assets",
        sa.Column("lease_id", sa.String(40), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("asset_id", sa.String(40), nullable=False),
        sa.PrimaryKeyConstraint("lease_id", "position", name="pk_leased_assets"),
        sa.ForeignKeyConstraint(
            ["lease_id"], ["leases.lease_id"], name="fk_leased_assets_lease_id_leases"
        ),
        sa.ForeignKeyConstraint(
            ["asset_id"], ["assets.asset_id"], name="fk_leased_assets_asset_id_assets"
        ),
    )
    op.create_index("ix_leased_assets_asset_id", "leased_assets", ["asset_id"])


def _bytes() -> None:
    op.create_table(
        "uploads",
        sa.Column("upload_id", sa.String(40), nullable=False),
        sa.Column("tenant_id", sa.String(40), nullable=False),
        sa.Column("facts", sa.Text, nullable=False),
        sa.Column("idempotency_key", sa.String(128), nullable=False),
        sa.Column("expires_at_ns", sa.BigInteger, nullable=False),
        sa.Column("asset_id", sa.String(40), nullable=False),
        sa.PrimaryKeyConstraint("upload_id", name="pk_uploads"),
    )
    op.create_index("ix_uploads_expires_at_ns", "uploads", ["expires_at_ns"])
    op.create_index(
        "ix_uploads_tenant_id_idempotency_key",
        "uploads",
        ["tenant_id", "idempotency_key"],
        unique=True,
    )
    op.create_table(
        "doomed_bytes",
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("at_ns", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("sha256", name="pk_doomed_bytes"),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("scope", sa.String(200), nullable=False),
        sa.Column("key", sa.String(128), nullable=False),
        sa.Column("request_sha256", sa.String(64), nullable=False),
        sa.Column("resource_id", sa.String(64), nullable=False),
        sa.Column("at_ns", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("scope", "key", name="pk_idempotency_keys"),
    )
    op.create_index("ix_idempotency_keys_at_ns", "idempotency_keys", ["at_ns"])
