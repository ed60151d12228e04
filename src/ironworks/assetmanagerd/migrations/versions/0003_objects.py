"""What is kept has names that are never used twice; a staged file belongs to one staging area."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the names; bytes that are kept already stay under their SHA-256."""
    for name, length in (("staged_by", 64), ("object_name", 128)):
        op.add_column(
            "assets", sa.Column(name, sa.String(length), nullable=False, server_default="")
        )
    op.execute("UPDATE assets SET object_name = sha256")
    op.create_index("ix_assets_object_name", "assets", ["object_name"])
    op.create_table(
        "doomed_objects",
        sa.Column("object_name", sa.String(128), nullable=False),
        sa.Column("at_ns", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("object_name", name="pk_doomed_objects"),
    )
    op.execute("INSERT INTO doomed_objects SELECT sha256, at_ns FROM doomed_bytes")
    op.drop_table("doomed_bytes")
