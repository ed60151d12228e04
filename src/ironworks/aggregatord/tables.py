"""Tables of aggregatord's relational store: the ledger, the quarantine's states, prices."""

from __future__ import annotations

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
    UniqueConstraint,
)

from ironworks.storage.sql import NAMING_CONVENTION

METADATA = MetaData(naming_convention=NAMING_CONVENTION)

BATCHES = Table(
    "batches",
    METADATA,
    Column("batch_id", String(64), primary_key=True),
    Column("host_id", String(64), nullable=False),
    Column("content_sha256", String(64), nullable=False),
    Column("accepted_at_ns", BigInteger, nullable=False),
    Column("windows_accepted", Integer, nullable=False),
    Column("windows_quarantined", Integer, nullable=False),
    Column("samples_accepted", BigInteger, nullable=False),
    Column("windows_late", Integer, nullable=False, server_default="0"),
)

WINDOWS = Table(
    "windows",
    METADATA,
    Column("window_id", String(64), primary_key=True),
    Column("content_sha256", String(64), nullable=False),
    Column("batch_id", String(64), ForeignKey("batches.batch_id"), nullable=False),
    Column("tenant_id", String(64), nullable=False),
    Column("vm_id", String(64), nullable=False),
    Column("deployment_id", String(64), nullable=False),
    Column("boot_epoch", BigInteger, nullable=False),
    Column("attached_seq", BigInteger, nullable=False),
    Column("first_seq", BigInteger, nullable=False),
    Column("last_seq", BigInteger, nullable=False),
    Column("sample_count", Integer, nullable=False),
    Column("partial_count", Integer, nullable=False),
    Column("start_at_ns", BigInteger, nullable=False),
    Column("end_at_ns", BigInteger, nullable=False),
    Index("ix_windows_vm_id_boot_epoch_first_seq", "vm_id", "boot_epoch", "first_seq"),
    Index("ix_windows_tenant_id_start_at_ns", "tenant_id", "start_at_ns"),
)

QUARANTINE = Table(
    "quarantine",
    METADATA,
    Column("window_id", String(64), primary_key=True),
    Column("content_sha256", String(64), primary_key=True),
    Column("batch_id", String(64), nullable=False),
    Column("tenant_id", String(64), nullable=False),
    Column("vm_id", String(64), nullable=False),
    Column("deployment_id", String(64), nullable=False),
    Column("boot_epoch", BigInteger, nullable=False),
    Column("attached_seq", BigInteger, nullable=False),
    Column("first_seq", BigInteger, nullable=False),
    Column("last_seq", BigInteger, nullable=False),
    Column("sample_count", Integer, nullable=False),
    Column("start_at_ns", BigInteger, nullable=False),
    Column("reason", Integer, nullable=False),
    Column("detail", Text, nullable=False),
    Column("received_at_ns", BigInteger, nullable=False),
    Column("state", Integer, nullable=False),
    Column("note", Text, nullable=False, server_default=""),
    Column("resolved_by", String(256), nullable=False, server_default=""),
    Column("resolved_at_ns", BigInteger, nullable=False, server_default="0"),
    Index("ix_quarantine_tenant_id_start_at_ns", "tenant_id", "start_at_ns"),
)

VMS = Table(
    "vms",
    METADATA,
    Column("vm_id", String(64), primary_key=True),
    Column("tenant_id", String(64), nullable=False),
    Column("host_id", String(64), nullable=False, server_default=""),
)

HOSTS = Table(
    "hosts",
    METADATA,
    Column("credential", String(64), primary_key=True),
    Column("host_id", String(64), nullable=False),
)

EPOCHS = Table(
    "epochs",
    METADATA,
    Column("vm_id", String(64), primary_key=True),
    Column("boot_epoch", BigInteger, primary_key=True),
    Column("last_seq", BigInteger, nullable=False),
    Column("end_at_ns", BigInteger, nullable=False),
    Column("baseline", Text, nullable=False),
    Index("ix_epochs_end_at_ns", "end_at_ns"),
)

DECISIONS = Table(
    "decisions",
    METADATA,
    Column("idempotency_key", String(64), primary_key=True),
    Column("window_id", String(64), nullable=False),
    Column("content_sha256", String(64), nullable=False),
    Column("state", Integer, nullable=False),
    Column("note", Text, nullable=False),
    Column("decided_by", String(256), nullable=False),
    Column("decided_at_ns", BigInteger, nullable=False),
)

ADJUSTMENTS = Table(
    "adjustments",
    METADATA,
    Column("vm_id", String(64), primary_key=True),
    Column("boot_epoch", BigInteger, primary_key=True),
    Column("day_ns", BigInteger, primary_key=True),
    Column("meter", Integer, primary_key=True),
    Column("tenant_id", String(64), nullable=False),
    Column("deployment_id", String(64), nullable=False),
    Column("settled", Text, nullable=False),
    Column("adjustment", Text, nullable=False),
    Column("adjusted_at_ns", BigInteger, nullable=False),
    Index("ix_adjustments_tenant_id_day_ns", "tenant_id", "day_ns"),
)

DIRTY_HOURS = Table(
    "dirty_hours",
    METADATA,
    Column("vm_id", String(64), primary_key=True),
    Column("boot_epoch", BigInteger, primary_key=True),
    Column("hour_ns", BigInteger, primary_key=True),
    Column("tenant_id", String(64), nullable=False),
    Column("generation", BigInteger, nullable=False),
)

COUNTERS = Table(
    "counters",
    METADATA,
    Column("name", String(32), primary_key=True),
    Column("value", BigInteger, nullable=False),
)

PRICE_PLANS = Table(
    "price_plans",
    METADATA,
    Column("price_plan_id", String(64), primary_key=True),
    Column("name", String(63), nullable=False, unique=True),
    Column("currency", String(3), nullable=False),
    Column("description", Text, nullable=False),
    Column("is_default", Boolean(name="is_default"), nullable=False),
    Column("archived_at_ns", BigInteger, nullable=False),
    Column("created_at_ns", BigInteger, nullable=False),
)

PRICE_VERSIONS = Table(
    "price_versions",
    METADATA,
    Column("price_version_id", String(64), primary_key=True),
    Column("price_plan_id", String(64), ForeignKey("price_plans.price_plan_id"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("effective_at_ns", BigInteger, nullable=False),
    Column("prices", Text, nullable=False),
    Column("minimum_charge_nanos", BigInteger, nullable=False),
    Column("commitment_nanos", BigInteger, nullable=False),
    Column("created_at_ns", BigInteger, nullable=False),
    UniqueConstraint("price_plan_id", "version"),
)

PRICE_ASSIGNMENTS = Table(
    "price_assignments",
    METADATA,
    Column("tenant_id", String(64), primary_key=True),
    Column("effective_at_ns", BigInteger, primary_key=True),
    Column("price_plan_id", String(64), ForeignKey("price_plans.price_plan_id"), nullable=False),
    Column("created_at_ns", BigInteger, nullable=False),
)
