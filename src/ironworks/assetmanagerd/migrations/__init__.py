"""Alembic versions of the asset registry."""
