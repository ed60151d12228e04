"""Builds with labels and log lines, idempotency keys."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    _builds()
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


def _builds() -> None:
    op.create_table(
        "builds",
        sa.Column("build_id", sa.String(40), nullable=False),
        sa.Column("tenant_id", sa.String(40), nullable=False),
        sa.Column("image", sa.Text, nullable=False),
        sa.Column("image_digest", sa.String(80), nullable=False),
        sa.Column("format", sa.String(16), nullable=False),
        sa.Column("builder_version", sa.String(32), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reused_build_id", sa.String(40), nullable=False),
        sa.Column("created_at_ns", sa.BigInteger, nullable=False),
        sa.Column("updated_at_ns", sa.BigInteger, nullable=False),
        sa.Column("ended_at_ns", sa.BigInteger, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("record", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("build_id", name="pk_builds"),
    )
    op.create_index("ix_builds_tenant_id_build_id", "builds", ["tenant_id", "build_id"])
    op.create_index("ix_builds_state", "builds", ["state"])
    op.create_index("ix_builds_image_digest", "builds", ["image_digest"])
    op.create_table(
        "build_labels",
        sa.Column("build_id", sa.String(40), nullable=False),
        sa.Column("key", sa.String(128), nullable=False),
        sa.Column("value", sa.String(128), nullable=False),
        sa.PrimaryKeyConstraint("build_id", "key", name="pk_build_labels"),
        sa.ForeignKeyConstraint(
            ["build_id"], ["builds.build_id"], name="fk_build_labels_build_id_builds"
        ),
    )
    op.create_index("ix_build_labels_key_value", "build_labels", ["key", "value"])
    op.create_table(
        "build_log_lines",
        sa.Column("build_id", sa.String(40), nullable=False),
        sa.Column("sequence", sa.Integer, nullable=False),
        sa.Column("at_ns", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("build_id", "sequence", name="pk_build_log_lines"),
        sa.ForeignKeyConstraint(
            ["build_id"], ["builds.build_id"], name="fk_build_log_lines_build_id_builds"
        ),
    )
