"""Restarts, sizes of VMMs, drains, reservations, quotas, and what a fresh VMM must know."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns and tables."""
    op.add_column("host", sa.Column("drain", sa.Text, nullable=True))
    zero, nothing = sa.text("0"), sa.text("''")
    for column in (
        sa.Column("committed_disk_bytes", sa.BigInteger, nullable=False, server_default=zero),
        sa.Column("vmm", sa.Text, nullable=True),
        sa.Column("restarts", sa.Integer, nullable=False, server_default=zero),
        sa.Column("recent_restarts", sa.Text, nullable=False, server_default=sa.text("'[]'")),
        sa.Column("restart_at_ns", sa.BigInteger, nullable=False, server_default=zero),
    ):
        op.add_column("vms", column)
    op.create_index("ix_vms_restart_at_ns", "vms", ["restart_at_ns"])
    for column in (
        sa.Column("rootfs_format", sa.String(16), nullable=False, server_default=nothing),
        sa.Column("image", sa.Text, nullable=False, server_default=sa.text("'{}'")),
    ):
        op.add_column("vm_leases", column)
    op.create_table(
        "reservations",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("tenant_id", sa.String(40), nullable=False),
        sa.Column("resources", sa.Text, nullable=False),
        sa.Column("vcpus", sa.Integer, nullable=False),
        sa.Column("memory_bytes", sa.BigInteger, nullable=False),
        sa.Column("disk_bytes", sa.BigInteger, nullable=False),
        sa.Column("vms", sa.Integer, nullable=False),
        sa.Column("created_at_ns", sa.BigInteger, nullable=False),
        sa.Column("expires_at_ns", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_reservations"),
    )
    op.create_index("ix_reservations_page", "reservations", ["created_at_ns", "id"])
    op.create_index("ix_reservations_tenant_id", "reservations", ["tenant_id"])
    op.create_table(
        "tenant_quotas",
        sa.Column("tenant_id", sa.String(40), nullable=False),
        sa.Column("resources", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", name="pk_tenant_quotas"),
    )
