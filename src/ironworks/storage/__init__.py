"""Engines only: SQL, objects, ClickHouse. No table of a service stands here."""
