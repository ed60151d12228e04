"""Tenants, API keys, deployments with replicas, jobs, hosts, and idempotency keys."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    _tenants_and_keys()
    _deployments()
    _replicas()
    _jobs()
    _hosts()
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


def _tenants_and_keys() -> None:
    op.create_table(
        "tenants",
        sa.Column("tenant_id", sa.String(40), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("display_name", sa.String(200), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(500), nullable=False),
        sa.Column("labels", sa.Text, nullable=False),
        sa.Column("created_at_ns", sa.BigInteger, nullable=False),
        sa.Column("updated_at_ns", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", name="pk_tenants"),
        sa.UniqueConstraint("name", name="uq_tenants_name"),
    )
    op.create_table(
        "api_keys",
        sa.Column("api_key_id", sa.String(40), nullable=False),
        sa.Column("tenant_id", sa.String(40), nullable=True),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("roles", sa.String(200), nullable=False),
        sa.Column("hint", sa.String(16), nullable=False),
        sa.Column("secret_sha256", sa.String(64), nullable=False),
        sa.Column("created_at_ns", sa.BigInteger, nullable=False),
        sa.Column("expires_at_ns", sa.BigInteger, nullable=False),
        sa.Column("revoked_at_ns", sa.BigInteger, nullable=False),
        sa.Column("last_used_at_ns", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("api_key_id", name="pk_api_keys"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.tenant_id"], name="fk_api_keys_tenant_id"),
        sa.UniqueConstraint("secret_sha256", name="uq_api_keys_secret_sha256"),
    )
    op.create_index("ix_api_keys_tenant_id", "api_keys", ["tenant_id"])


def _deployments() -> None:
    op.create_table(
        "deployments",
        sa.Column("deployment_id", sa.String(40), nullable=False),
        sa.Column("tenant_id", sa.String(40), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("host_label", sa.String(63), nullable=False),
        sa.Column("image_digest", sa.String(80), nullable=False),
        sa.Column("build_id", sa.String(40), nullable=False),
        sa.Column("rootfs_asset_id", sa.String(40), nullable=False),
        sa.Column("build_ms", sa.BigInteger, nullable=False),
        sa.Column("build_reused", sa.Boolean, nullable=False),
        sa.Column("argv", sa.Text, nullable=False),
        sa.Column("port", sa.Integer, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("job_id", sa.String(40), nullable=False),
        sa.Column("labels", sa.Text, nullable=False),
        sa.Column("created_at_ns", sa.BigInteger, nullable=False),
        sa.Column("updated_at_ns", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("deployment_id", name="pk_deployments"),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.tenant_id"], name="fk_deployments_tenant_id"
        ),
    )
    op.create_index(
        "ix_deployments_page", "deployments", ["tenant_id", "created_at_ns", "deployment_id"]
    )
    op.create_index(
        "uq_deployments_living_name",
        "deployments",
        ["tenant_id", "name"],
        unique=True,
        sqlite_where=sa.text("state != 'deleted'"),
        postgresql_where=sa.text("state != 'deleted'"),
    )


def _replicas() -> None:
    op.create_table(
        "replicas",
        sa.Column("vm_id", sa.String(40), nullable=False),
        sa.Column("deployment_id", sa.String(40), nullable=False),
        sa.Column("tenant_id", sa.String(40), nullable=False),
        sa.Column("place", sa.Integer, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("host_id", sa.String(40), nullable=False),
        sa.Column("zone", sa.String(63), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("address", sa.String(64), nullable=False),
        sa.Column("vcpus", sa.Integer, nullable=False),
        sa.Column("memory_bytes", sa.BigInteger, nullable=False),
        sa.Column("disk_bytes", sa.BigInteger, nullable=False),
        sa.Column("boot_ordered_at_ns", sa.BigInteger, nullable=False),
        sa.Column("boot_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("vm_id", name="pk_replicas"),
        sa.ForeignKeyConstraint(
            ["deployment_id"], ["deployments.deployment_id"], name="fk_replicas_deployment_id"
        ),
    )
    for column in ("tenant_id", "host_id", "state"):
        op.create_index(f"ix_replicas_{column}", "replicas", [column])
    op.create_index(
        "uq_replicas_place", "replicas", ["deployment_id", "generation", "place"], unique=True
    )


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("job_id", sa.String(40), nullable=False),
        sa.Column("tenant_id", sa.String(40), nullable=True),
        sa.Column("kind", sa.String(24), nullable=False),
        sa.Column("resource_id", sa.String(40), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("stages", sa.Text, nullable=False),
        sa.Column("result", sa.Text, nullable=True),
        sa.Column("failure", sa.Text, nullable=True),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("grace_ms", sa.Integer, nullable=False),
        sa.Column("created_at_ns", sa.BigInteger, nullable=False),
        sa.Column("updated_at_ns", sa.BigInteger, nullable=False),
        sa.Column("ended_at_ns", sa.BigInteger, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("job_id", name="pk_jobs"),
    )
    for column in ("resource_id", "state"):
        op.create_index(f"ix_jobs_{column}", "jobs", [column])
    op.create_index("ix_jobs_page", "jobs", ["tenant_id", "created_at_ns", "job_id"])


def _hosts() -> None:
    op.create_table(
        "hosts",
        sa.Column("host_id", sa.String(40), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("metald_url", sa.String(255), nullable=False),
        sa.Column("zone", sa.String(63), nullable=False),
        sa.Column("region", sa.String(63), nullable=False),
        sa.Column("architecture", sa.String(16), nullable=False),
        sa.Column("driver", sa.String(16), nullable=False),
        sa.Column("acceleration", sa.String(16), nullable=False),
        sa.Column("capacity", sa.Text, nullable=False),
        sa.Column("allocated", sa.Text, nullable=False),
        sa.Column("labels", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("registered_at_ns", sa.BigInteger, nullable=False),
        sa.Column("last_heartbeat_at_ns", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("host_id", name="pk_hosts"),
        sa.UniqueConstraint("name", name="uq_hosts_name"),
    )
