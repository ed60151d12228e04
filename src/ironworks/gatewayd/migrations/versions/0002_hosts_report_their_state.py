"""What a host says of itself."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Until a host has reported, it says that it takes VMs."""
    op.add_column(
        "hosts",
        sa.Column("reported", sa.String(16), nullable=False, server_default=sa.text("'ready'")),
    )
