"""metald's tables; `migrations/versions` makes the same ones, which a test proves."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    text,
)

from ironworks.storage.idempotency import idempotency_table
from ironworks.storage.sql import NAMING_CONVENTION

METADATA = MetaData(naming_convention=NAMING_CONVENTION)

HOST = Table(
    "host",
    METADATA,
    Column("id", String(40), primary_key=True),
    Column("tag", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", String(255), nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("default_kernel_asset_id", String(40), nullable=False),
    Column("default_initrd_asset_id", String(40), nullable=False),
    Column("drain", Text, nullable=True),
)
"""One row: this machine."""

VMS = Table(
    "vms",
    METADATA,
    Column("id", String(40), primary_key=True),
    Column("tenant_id", String(40), nullable=False),
    Column("name", String(63), nullable=False),
    Column("deployment_id", String(40), nullable=False),
    Column("spec", Text, nullable=False),
    Column("vcpus", Integer, nullable=False),
    Column("committed_memory_bytes", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("created_at_ns", BigInteger, nullable=False),
    Column("state_changed_at_ns", BigInteger, nullable=False),
    Column("slot", Integer, nullable=True, unique=True),
    Column("boot_epoch", BigInteger, nullable=False),
    Column("ready", Boolean, nullable=False),
    Column("driver", String(16), nullable=False),
    Column("accel", String(16), nullable=False),
    Column("evidence", Text, nullable=True),
    Column("exit", Text, nullable=True),
    Column("exit_at_ns", BigInteger, nullable=False),
    Column("drift", Text, nullable=False),
    Column("committed_disk_bytes", BigInteger, nullable=False, server_default=text("0")),
    Column("vmm", Text, nullable=True),
    Column("restarts", Integer, nullable=False, server_default=text("0")),
    Column("recent_restarts", Text, nullable=False, server_default=text("'[]'")),
    Column("restart_at_ns", BigInteger, nullable=False, server_default=text("0")),
    Index("ix_vms_page", "created_at_ns", "id"),
    Index("ix_vms_state", "state"),
    Index("ix_vms_tenant_page", "tenant_id", "created_at_ns", "id"),
    Index("ix_vms_restart_at_ns", "restart_at_ns"),
)

LABELS = Table(
    "vm_labels",
    METADATA,
    Column("vm_id", String(40), ForeignKey("vms.id", ondelete="CASCADE"), primary_key=True),
    Column("key", String(63), primary_key=True),
    Column("value", String(255), nullable=False),
    Index("ix_vm_labels_key_value", "key", "value"),
)

HISTORY = Table(
    "vm_history",
    METADATA,
    Column("vm_id", String(40), ForeignKey("vms.id", ondelete="CASCADE"), primary_key=True),
    Column("generation", BigInteger, primary_key=True),
    Column("before", String(16), nullable=False),
    Column("after", String(16), nullable=False),
    Column("at_ns", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
)

TIMINGS = Table(
    "vm_timings",
    METADATA,
    Column("vm_id", String(40), ForeignKey("vms.id", ondelete="CASCADE"), primary_key=True),
    Column("step", String(32), primary_key=True),
    Column("started_at_ns", BigInteger, nullable=False),
    Column("duration_ns", BigInteger, nullable=False),
)

LEASES = Table(
    "vm_leases",
    METADATA,
    Column("vm_id", String(40), ForeignKey("vms.id", ondelete="CASCADE"), primary_key=True),
    Column("lease_id", String(40), nullable=False),
    Column("rootfs_asset_id", String(40), nullable=False),
    Column("kernel_asset_id", String(40), nullable=False),
    Column("initrd_asset_id", String(40), nullable=False),
    Column("rootfs_format", String(16), nullable=False, server_default=text("''")),
    Column("image", Text, nullable=False, server_default=text("'{}'")),
)

RESERVATIONS = Table(
    "reservations",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("tenant_id", String(40), nullable=False),
    Column("resources", Text, nullable=False),
    Column("vcpus", Integer, nullable=False),
    Column("memory_bytes", BigInteger, nullable=False),
    Column("disk_bytes", BigInteger, nullable=False),
    Column("vms", Integer, nullable=False),
    Column("created_at_ns", BigInteger, nullable=False),
    Column("expires_at_ns", BigInteger, nullable=False),
    Index("ix_reservations_page", "created_at_ns", "id"),
    Index("ix_reservations_tenant_id", "tenant_id"),
)
"""`resources` is what was asked for, the columns are what it counts for."""

QUOTAS = Table(
    "tenant_quotas",
    METADATA,
    Column("tenant_id", String(40), primary_key=True),
    Column("resources", Text, nullable=False),
)

IDEMPOTENCY = idempotency_table(METADATA)
