"""Ends of epochs, hosts and their credentials, audited decisions, adjustments of settled days."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables and columns."""
    _columns()
    _tables()
    _adjustments()


def _columns() -> None:
    late = sa.Column("windows_late", sa.Integer, nullable=False, server_default="0")
    op.add_column("batches", late)
    host = sa.Column("host_id", sa.String(64), nullable=False, server_default="")
    op.add_column("vms", host)
    for column in (
        sa.Column("note", sa.Text, nullable=False, server_default=""),
        sa.Column("resolved_by", sa.String(256), nullable=False, server_default=""),
        sa.Column("resolved_at_ns", sa.BigInteger, nullable=False, server_default="0"),
    ):
        op.add_column("quarantine", column)


def _tables() -> None:
    op.create_table(
        "hosts",
        sa.Column("credential", sa.String(64), nullable=False),
        sa.Column("host_id", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("credential", name="pk_hosts"),
    )
    op.create_table(
        "epochs",
        sa.Column("vm_id", sa.String(64), nullable=False),
        sa.Column("boot_epoch", sa.BigInteger, nullable=False),
        sa.Column("last_seq", sa.BigInteger, nullable=False),
        sa.Column("end_at_ns", sa.BigInteger, nullable=False),
        sa.Column("baseline", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("vm_id", "boot_epoch", name="pk_epochs"),
    )
    op.create_index("ix_epochs_end_at_ns", "epochs", ["end_at_ns"])
    op.create_table(
        "decisions",
        sa.Column("idempotency_key", sa.String(64), nullable=False),
        sa.Column("window_id", sa.String(64), nullable=False),
        sa.Column("content_sha256", sa.String(64), nullable=False),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("decided_by", sa.String(256), nullable=False),
        sa.Column("decided_at_ns", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("idempotency_key", name="pk_decisions"),
    )


def _adjustments() -> None:
    op.create_table(
        "adjustments",
        sa.Column("vm_id", sa.String(64), nullable=False),
        sa.Column("boot_epoch", sa.BigInteger, nullable=False),
        sa.Column("day_ns", sa.BigInteger, nullable=False),
        sa.Column("meter", sa.Integer, nullable=False),
        sa.Column("tenant_id", sa.String(64), nullable=False),
        sa.Column("deployment_id", sa.String(64), nullable=False),
        sa.Column("settled", sa.Text, nullable=False),
        sa.Column("adjustment", sa.Text, nullable=False),
        sa.Column("adjusted_at_ns", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("vm_id", "boot_epoch", "day_ns", "meter", name="pk_adjustments"),
    )
    op.create_index("ix_adjustments_tenant_id_day_ns", "adjustments", ["tenant_id", "day_ns"])
