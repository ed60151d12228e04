"""A database that was upgraded step by step is the one that the tables in the code describe."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, MetaData, inspect

from ironworks.storage.migrate import difference, upgrade
from ironworks.storage.sql import NAMING_CONVENTION, make_engine, sqlite_url
from ironworks.testkit.postgres import Postgres

PACKAGES = Path(__file__).parents[2] / "src/ironworks"
SERVICES = sorted(path.parent.parent.name for path in PACKAGES.glob("*/migrations/versions"))


def metadata_of(service: str) -> MetaData:
    """The `METADATA` of the service's `tables.py` or `store.py`."""
    for name in ("tables", "store"):
        if (PACKAGES / service / f"{name}.py").exists():
            found: object = getattr(import_module(f"ironworks.{service}.{name}"), "METADATA", None)
            if isinstance(found, MetaData):
                return found
    pytest.fail(f"{service} has migrations and no METADATA in tables.py or store.py")


def revisions(service: str) -> list[str]:
    directory = PACKAGES / service / "migrations"
    scripts = ScriptDirectory(str(directory), version_locations=[str(directory / "versions")])
    return [script.revision for script in scripts.walk_revisions()][::-1]


def schema(engine: Engine) -> dict[str, object]:
    """All that can be told of a schema, in an order of its own."""
    inspector = inspect(engine)
    return {
        table: {
            "columns": sorted(
                (
                    column["name"],
                    str(column["type"]),
                    column["nullable"],
                    str(column["default"]),
                )
                for column in inspector.get_columns(table)
            ),
            "primary_key": inspector.get_pk_constraint(table)["constrained_columns"],
            "foreign_keys": sorted(
                (
                    str(key["constrained_columns"]),
                    str(key["referred_table"]),
                    str(key.get("options")),
                )
                for key in inspector.get_foreign_keys(table)
            ),
            "unique": sorted(
                str(one["column_names"]) for one in inspector.get_unique_constraints(table)
            ),
            "checks": sorted(str(one["sqltext"]) for one in inspector.get_check_constraints(table)),
            "indexes": sorted(
                (
                    str(one["name"]),
                    str(one["column_names"]),
                    bool(one["unique"]),
                    str({key: str(text) for key, text in one.get("dialect_options", {}).items()}),
                )
                for one in inspector.get_indexes(table)
            ),
        }
        for table in inspector.get_table_names()
        if table != "alembic_version"
    }


def assert_fresh_equals_migrated(service: str, fresh: Engine, migrated: Engine) -> None:
    for revision in revisions(service):
        upgrade(migrated, f"ironworks.{service}.migrations", to=revision)
    metadata_of(service).create_all(fresh)
    found, expected = schema(migrated), schema(fresh)
    assert found.keys() == expected.keys()
    for table, description in found.items():
        assert description == expected[table], table
    assert difference(migrated, metadata_of(service)) == []
    fresh.dispose()
    migrated.dispose()


@pytest.mark.parametrize("service", SERVICES)
def test_fresh_equals_migrated(service: str, tmp_path: Path) -> None:
    fresh, migrated = (sqlite_url(tmp_path / name) for name in ("fresh.db", "migrated.db"))
    assert_fresh_equals_migrated(service, make_engine(fresh), make_engine(migrated))


@pytest.mark.parametrize("service", SERVICES)
def test_fresh_equals_migrated_on_postgresql(service: str, postgres_server: Postgres) -> None:
    with postgres_server.database() as fresh, postgres_server.database() as migrated:
        assert_fresh_equals_migrated(service, make_engine(fresh), make_engine(migrated))


@pytest.mark.parametrize("service", SERVICES)
def test_revisions_are_one_row_of_numbers(service: str) -> None:
    found = revisions(service)
    assert found == [f"{number:04d}" for number in range(1, len(found) + 1)]
    files = sorted((PACKAGES / service / "migrations/versions").glob("*.py"))
    assert [path.name[:4] for path in files if path.stem != "__init__"] == found


@pytest.mark.parametrize("service", SERVICES)
def test_constraints_have_names_that_later_migrations_can_use(service: str) -> None:
    assert metadata_of(service).naming_convention == NAMING_CONVENTION
