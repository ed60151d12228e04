"""Turns, locks and progress of builds; policies, credentials and uploads."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    with op.batch_alter_table("builds") as builds:
        builds.add_column(sa.Column("priority", sa.Integer, nullable=False, server_default="2"))
        builds.add_column(sa.Column("turn", sa.String(80), nullable=False, server_default=""))
        builds.add_column(
            sa.Column("policy_digest", sa.String(64), nullable=False, server_default="")
        )
        builds.add_column(sa.Column("progress", sa.Text, nullable=False, server_default=""))
    op.create_index("ix_builds_turn", "builds", ["turn"])
    _queue()
    _tenants()


def _queue() -> None:
    op.create_table(
        "served_tenants",
        sa.Column("tenant_id", sa.String(40), nullable=False),
        sa.Column("served_at_ns", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", name="pk_served_tenants"),
    )
    op.create_table(
        "build_locks",
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("build_id", sa.String(40), nullable=False),
        sa.Column("until_ns", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_build_locks"),
    )
    op.create_table(
        "build_packages",
        sa.Column("build_id", sa.String(40), nullable=False),
        sa.Column("packages", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("build_id", name="pk_build_packages"),
        sa.ForeignKeyConstraint(
            ["build_id"], ["builds.build_id"], name="fk_build_packages_build_id_builds"
        ),
    )


def _tenants() -> None:
    op.create_table(
        "policies",
        sa.Column("owner", sa.String(40), nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("policy", sa.Text, nullable=False),
        sa.Column("updated_at_ns", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("owner", name="pk_policies"),
    )
    op.create_table(
        "registry_credentials",
        sa.Column("tenant_id", sa.String(40), nullable=False),
        sa.Column("scope", sa.String(256), nullable=False),
        sa.Column("username", sa.String(256), nullable=False),
        sa.Column("secret", sa.Text, nullable=False),
        sa.Column("updated_at_ns", sa.BigInteger, nullable=False),
        sa.Column("last_used_at_ns", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "scope", name="pk_registry_credentials"),
    )
    op.create_table(
        "image_uploads",
        sa.Column("upload_id", sa.String(40), nullable=False),
        sa.Column("tenant_id", sa.String(40), nullable=False),
        sa.Column("key", sa.String(128), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("complete", sa.Integer, nullable=False),
        sa.Column("expires_at_ns", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("upload_id", name="pk_image_uploads"),
        sa.UniqueConstraint("tenant_id", "key", name="uq_image_uploads_tenant_id_key"),
    )
    op.create_index("ix_image_uploads_expires_at_ns", "image_uploads", ["expires_at_ns"])
