"""Alembic versions of aggregatord's relational store."""
