"""A tenant's pages are read in their order, not sorted each time."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Put the order of pages into the index by tenant."""
    op.create_index("ix_vms_tenant_page", "vms", ["tenant_id", "created_at_ns", "id"])
    op.drop_index("ix_vms_tenant_id", "vms")
