"""Leases are counted in the asset's row and know their TTL; the history may grow and be cut."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the count, the indices and the horizon."""
    op.add_column(
        "assets", sa.Column("lease_count", sa.Integer, nullable=False, server_default="0")
    )
    op.execute(
        "UPDATE assets SET lease_count = (SELECT count(*) FROM leased_assets "
        "JOIN leases ON leases.lease_id = leased_assets.lease_id "
        "WHERE leased_assets.asset_id = assets.asset_id AND leases.state = 'active')"
    )
    op.add_column(
        "leases",
        sa.Column("ttl_ns", sa.BigInteger, nullable=False, server_default="60000000000"),
    )
    op.drop_index("ix_assets_state", "assets")
    op.create_index("ix_assets_state_asset_id", "assets", ["state", "asset_id"])
    op.create_index(
        "ix_assets_tenant_id_state_asset_id", "assets", ["tenant_id", "state", "asset_id"]
    )
    op.create_table(
        "event_horizon",
        sa.Column("id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_event_horizon"),
    )
    if op.get_bind().dialect.name == "postgresql":
        # On SQLite it has 64 bits already.
        op.alter_column("asset_events", "sequence", type_=sa.BigInteger)
        op.execute("ALTER SEQUENCE asset_events_sequence_seq AS bigint")
