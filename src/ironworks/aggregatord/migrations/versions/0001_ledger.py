"""The ledger of batches and windows, the quarantine, dirty hours, price plans."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    _ledger()
    _work()
    _prices()


def _ledger() -> None:
    op.create_table(
        "batches",
        sa.Column("batch_id", sa.String(64), nullable=False),
        sa.Column("host_id", sa.String(64), nullable=False),
        sa.Column("content_sha256", sa.String(64), nullable=False),
        sa.Column("accepted_at_ns", sa.BigInteger, nullable=False),
        sa.Column("windows_accepted", sa.Integer, nullable=False),
        sa.Column("windows_quarantined", sa.Integer, nullable=False),
        sa.Column("samples_accepted", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("batch_id", name="pk_batches"),
    )
    op.create_table(
        "windows",
        sa.Column("window_id", sa.String(64), nullable=False),
        sa.Column("content_sha256", sa.String(64), nullable=False),
        sa.Column("batch_id", sa.String(64), nullable=False),
        sa.Column("tenant_id", sa.String(64), nullable=False),
        sa.Column("vm_id", sa.String(64), nullable=False),
        sa.Column("deployment_id", sa.String(64), nullable=False),
        sa.Column("boot_epoch", sa.BigInteger, nullable=False),
        sa.Column("attached_seq", sa.BigInteger, nullable=False),
        sa.Column("first_seq", sa.BigInteger, nullable=False),
        sa.Column("last_seq", sa.BigInteger, nullable=False),
        sa.Column("sample_count", sa.Integer, nullable=False),
        sa.Column("partial_count", sa.Integer, nullable=False),
        sa.Column("start_at_ns", sa.BigInteger, nullable=False),
        sa.Column("end_at_ns", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("window_id", name="pk_windows"),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.batch_id"], name="fk_windows_batch_id"),
    )
    op.create_index("ix_windows_tenant_id_start_at_ns", "windows", ["tenant_id", "start_at_ns"])
    op.create_index(
        "ix_windows_vm_id_boot_epoch_first_seq", "windows", ["vm_id", "boot_epoch", "first_seq"]
    )
    op.create_table(
        "quarantine",
        sa.Column("window_id", sa.String(64), nullable=False),
        sa.Column("content_sha256", sa.String(64), nullable=False),
        sa.Column("batch_id", sa.String(64), nullable=False),
        sa.Column("tenant_id", sa.String(64), nullable=False),
        sa.Column("vm_id", sa.String(64), nullable=False),
        sa.Column("deployment_id", sa.String(64), nullable=False),
        sa.Column("boot_epoch", sa.BigInteger, nullable=False),
        sa.Column("attached_seq", sa.BigInteger, nullable=False),
        sa.Column("first_seq", sa.BigInteger, nullable=False),
        sa.Column("last_seq", sa.BigInteger, nullable=False),
        sa.Column("sample_count", sa.Integer, nullable=False),
        sa.Column("start_at_ns", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Integer, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("received_at_ns", sa.BigInteger, nullable=False),
        sa.Column("state", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("window_id", "content_sha256", name="pk_quarantine"),
    )
    op.create_index(
        "ix_quarantine_tenant_id_start_at_ns", "quarantine", ["tenant_id", "start_at_ns"]
    )


def _work() -> None:
    op.create_table(
        "vms",
        sa.Column("vm_id", sa.String(64), nullable=False),
        sa.Column("tenant_id", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("vm_id", name="pk_vms"),
    )
    op.create_table(
        "dirty_hours",
        sa.Column("vm_id", sa.String(64), nullable=False),
        sa.Column("boot_epoch", sa.BigInteger, nullable=False),
        sa.Column("hour_ns", sa.BigInteger, nullable=False),
        sa.Column("tenant_id", sa.String(64), nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("vm_id", "boot_epoch", "hour_ns", name="pk_dirty_hours"),
    )
    op.create_table(
        "counters",
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("value", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_counters"),
    )


def _prices() -> None:
    op.create_table(
        "price_plans",
        sa.Column("price_plan_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("currency", sa.String(3), nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("is_default", sa.Boolean(name="is_default"), nullable=False),
        sa.Column("archived_at_ns", sa.BigInteger, nullable=False),
        sa.Column("created_at_ns", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("price_plan_id", name="pk_price_plans"),
        sa.UniqueConstraint("name", name="uq_price_plans_name"),
    )
    op.create_table(
        "price_versions",
        sa.Column("price_version_id", sa.String(64), nullable=False),
        sa.Column("price_plan_id", sa.String(64), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("effective_at_ns", sa.BigInteger, nullable=False),
        sa.Column("prices", sa.Text, nullable=False),
        sa.Column("minimum_charge_nanos", sa.BigInteger, nullable=False),
        sa.Column("commitment_nanos", sa.BigInteger, nullable=False),
        sa.Column("created_at_ns", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("price_version_id", name="pk_price_versions"),
        sa.ForeignKeyConstraint(
            ["price_plan_id"], ["price_plans.price_plan_id"], name="fk_price_versions_price_plan_id"
        ),
        sa.UniqueConstraint(
            "price_plan_id", "version", name="uq_price_versions_price_plan_id_version"
        ),
    )
    op.create_table(
        "price_assignments",
        sa.Column("tenant_id", sa.String(64), nullable=False),
        sa.Column("effective_at_ns", sa.BigInteger, nullable=False),
        sa.Column("price_plan_id", sa.String(64), nullable=False),
        sa.Column("created_at_ns", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "effective_at_ns", name="pk_price_assignments"),
        sa.ForeignKeyConstraint(
            ["price_plan_id"],
            ["price_plans.price_plan_id"],
            name="fk_price_assignments_price_plan_id",
        ),
    )
