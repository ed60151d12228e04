"""The host, its VMs with labels, history, timings and leases, and idempotency keys."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    _host_and_vms()
    _vm_children()
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


def _host_and_vms() -> None:
    op.create_table(
        "host",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("tag", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(255), nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("default_kernel_asset_id", sa.String(40), nullable=False),
        sa.Column("default_initrd_asset_id", sa.String(40), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_host"),
    )
    op.create_table(
        "vms",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("tenant_id", sa.String(40), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("deployment_id", sa.String(40), nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("vcpus", sa.Integer, nullable=False),
        sa.Column("committed_memory_bytes", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("created_at_ns", sa.BigInteger, nullable=False),
        sa.Column("state_changed_at_ns", sa.BigInteger, nullable=False),
        sa.Column("slot", sa.Integer, nullable=True),
        sa.Column("boot_epoch", sa.BigInteger, nullable=False),
        sa.Column("ready", sa.Boolean, nullable=False),
        sa.Column("driver", sa.String(16), nullable=False),
        sa.Column("accel", sa.String(16), nullable=False),
        sa.Column("evidence", sa.Text, nullable=True),
        sa.Column("exit", sa.Text, nullable=True),
        sa.Column("exit_at_ns", sa.BigInteger, nullable=False),
        sa.Column("drift", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_vms"),
        sa.UniqueConstraint("slot", name="uq_vms_slot"),
    )
    op.create_index("ix_vms_page", "vms", ["created_at_ns", "id"])
    op.create_index("ix_vms_state", "vms", ["state"])
    op.create_index("ix_vms_tenant_id", "vms", ["tenant_id"])


def _vm_children() -> None:
    def vm_id(table: str) -> tuple[sa.Column[str], sa.ForeignKeyConstraint]:
        return sa.Column("vm_id", sa.String(40), nullable=False), sa.ForeignKeyConstraint(
            ["vm_id"], ["vms.id"], ondelete="CASCADE", name=f"fk_{table}_vm_id_vms"
        )

    op.create_table(
        "vm_labels",
        *vm_id("vm_labels"),
        sa.Column("key", sa.String(63), nullable=False),
        sa.Column("value", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint("vm_id", "key", name="pk_vm_labels"),
    )
    op.create_index("ix_vm_labels_key_value", "vm_labels", ["key", "value"])
    op.create_table(
        "vm_history",
        *vm_id("vm_history"),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("before", sa.String(16), nullable=False),
        sa.Column("after", sa.String(16), nullable=False),
        sa.Column("at_ns", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("vm_id", "generation", name="pk_vm_history"),
    )
    op.create_table(
        "vm_timings",
        *vm_id("vm_timings"),
        sa.Column("step", sa.String(32), nullable=False),
        sa.Column("started_at_ns", sa.BigInteger, nullable=False),
        sa.Column("duration_ns", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("vm_id", "step", name="pk_vm_timings"),
    )
    op.create_table(
        "vm_leases",
        *vm_id("vm_leases"),
        sa.Column("lease_id", sa.String(40), nullable=False),
        sa.Column("rootfs_asset_id", sa.String(40), nullable=False),
        sa.Column("kernel_asset_id", sa.String(40), nullable=False),
        sa.Column("initrd_asset_id", sa.String(40), nullable=False),
        sa.PrimaryKeyConstraint("vm_id", name="pk_vm_leases"),
    )
