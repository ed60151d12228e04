from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest
from sqlalchemy import Column, Engine, ForeignKey, Integer, MetaData, String, Table, inspect

from ironworks.model.errors import DataLoss, FailedPrecondition
from ironworks.storage.migrate import difference, upgrade
from ironworks.storage.sql import NAMING_CONVENTION, make_engine, sqlite_url

PACKAGE = "migrated.somed.migrations"
FIRST = """
    op.create_table(
        "rows", sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String(20))
    )
    op.create_table(
        "parts",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("row_id", sa.Integer, sa.ForeignKey("rows.id", ondelete="CASCADE")),
    )
"""
SECOND = """
    with op.batch_alter_table("rows", recreate="always") as rows:
        rows.alter_column("name", nullable=False, server_default="")
"""


class Service:
    """A service's package of migrations on disk, and its database."""

    def __init__(self, root: Path, engine: Engine) -> None:
        self.versions = root / "migrated" / "somed" / "migrations" / "versions"
        self.versions.mkdir(parents=True)
        self.versions.with_name("__init__.py").write_text("")
        self.engine = engine

    def add(self, number: int, body: str) -> None:
        before = repr(f"{number - 1:04d}") if number > 1 else "None"
        head = f'revision = "{number:04d}"\ndown_revision = {before}\n'
        imports = "import sqlalchemy as sa\nfrom alembic import op\n"
        body = dedent(body).strip().replace("\n", "\n    ")
        (self.versions / f"{number:04d}_step.py").write_text(
            f"{imports}{head}\n\ndef upgrade() -> None:\n    {body}\n"
        )

    def execute(self, statement: str) -> None:
        with self.engine.execution_options(iw_write=True).begin() as connection:
            connection.exec_driver_sql(statement)

    def rows(self, statement: str) -> list[tuple[object, ...]]:
        with self.engine.begin() as connection:
            return [tuple(row) for row in connection.exec_driver_sql(statement)]


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    engine = make_engine(sqlite_url(tmp_path / "store.db"))
    service = Service(tmp_path, engine)
    service.add(1, FIRST)
    yield service
    engine.dispose()
    for name in [name for name in sys.modules if name.startswith("migrated")]:
        del sys.modules[name]


def test_a_fresh_database_gets_everything(service: Service) -> None:
    service.add(2, SECOND)
    upgrade(service.engine, PACKAGE)
    assert set(inspect(service.engine).get_table_names()) == {"rows", "parts", "alembic_version"}
    assert service.rows("SELECT version_num FROM alembic_version") == [("0002",)]


def test_step_by_step_ends_where_a_fresh_database_begins(service: Service, tmp_path: Path) -> None:
    service.add(2, SECOND)
    upgrade(service.engine, PACKAGE, to="0001")
    upgrade(service.engine, PACKAGE)
    fresh = make_engine(sqlite_url(tmp_path / "fresh.db"))
    upgrade(fresh, PACKAGE)
    schema = "SELECT type, name, sql FROM sqlite_master ORDER BY name"
    with fresh.begin() as connection:
        expected = [tuple(row) for row in connection.exec_driver_sql(schema)]
    fresh.dispose()
    assert service.rows(schema) == expected


def test_upgrading_again_changes_nothing(service: Service) -> None:
    upgrade(service.engine, PACKAGE)
    service.execute("INSERT INTO rows VALUES (1, 'kept')")
    upgrade(service.engine, PACKAGE)
    assert service.rows("SELECT * FROM rows") == [(1, "kept")]


def test_the_data_of_a_newer_version_is_left_alone(service: Service) -> None:
    upgrade(service.engine, PACKAGE)
    service.execute("UPDATE alembic_version SET version_num = '0099'")
    with pytest.raises(FailedPrecondition, match=r"somed was written by a newer Ironworks"):
        upgrade(service.engine, PACKAGE)
    assert service.rows("SELECT version_num FROM alembic_version") == [("0099",)]


def test_rebuilding_a_table_keeps_the_rows_that_refer_to_it(service: Service) -> None:
    upgrade(service.engine, PACKAGE)
    service.execute("INSERT INTO rows VALUES (1, 'kept')")
    service.execute("INSERT INTO parts VALUES (1, 1)")
    service.add(2, SECOND)
    upgrade(service.engine, PACKAGE)
    assert service.rows("SELECT * FROM parts") == [(1, 1)]
    with pytest.raises(Exception, match="FOREIGN KEY"):
        service.execute("INSERT INTO parts VALUES (2, 9)")


def test_a_step_that_fails_leaves_the_database_as_it_was(service: Service) -> None:
    upgrade(service.engine, PACKAGE)
    service.execute("INSERT INTO rows VALUES (1, 'kept')")
    service.add(2, 'op.execute("DELETE FROM rows")')
    service.add(3, 'raise RuntimeError("half way")')
    with pytest.raises(RuntimeError, match="half way"):
        upgrade(service.engine, PACKAGE)
    assert service.rows("SELECT * FROM rows") == [(1, "kept")]
    assert service.rows("SELECT version_num FROM alembic_version") == [("0001",)]


def test_a_step_that_breaks_references_is_undone(service: Service) -> None:
    upgrade(service.engine, PACKAGE)
    service.execute("INSERT INTO rows VALUES (1, 'kept')")
    service.execute("INSERT INTO parts VALUES (1, 1)")
    service.add(2, 'op.execute("DELETE FROM rows")')
    with pytest.raises(DataLoss, match="Nothing was changed"):
        upgrade(service.engine, PACKAGE)
    assert service.rows("SELECT * FROM rows") == [(1, "kept")]
    assert service.rows("SELECT version_num FROM alembic_version") == [("0001",)]


def test_a_difference_between_tables_and_migrations_is_found(service: Service) -> None:
    metadata = MetaData(naming_convention=NAMING_CONVENTION)
    Table("rows", metadata, Column("id", Integer, primary_key=True), Column("name", String(20)))
    Table(
        "parts",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("row_id", Integer, ForeignKey("rows.id", ondelete="CASCADE")),
    )
    upgrade(service.engine, PACKAGE)
    assert difference(service.engine, metadata) == []
    Table("forgotten", metadata, Column("id", Integer, primary_key=True))
    assert "forgotten" in str(difference(service.engine, metadata))
