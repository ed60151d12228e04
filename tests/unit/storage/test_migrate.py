from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest
from sqlalchemy import Column, Engine, ForeignKey, Integer, MetaData, String, Table, inspect

from ironworks.model.errors import DataLoss, FailedPrecondition
from ironworks.storage.migrate import difference, upgrade
from ironworks.storage.schema import URL_VARIABLE
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


STEP = """
    op.add_column("rows", sa.Column("more", sa.String(20), server_default="", nullable=False))
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


def made(root: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr(sys, "path", [str(root), *sys.path])
    engine = make_engine(url)
    service = Service(root, engine)
    service.add(1, FIRST)
    yield service
    engine.dispose()
    for name in [name for name in sys.modules if name.startswith("migrated")]:
        del sys.modules[name]


@pytest.fixture
def service(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Service]:
    yield from made(tmp_path, database_url, monkeypatch)


@pytest.fixture
def on_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    yield from made(tmp_path, sqlite_url(tmp_path / "store.db"), monkeypatch)


@pytest.fixture
def on_postgresql(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Service]:
    yield from made(tmp_path, postgres_url, monkeypatch)


def test_a_fresh_database_gets_everything(service: Service) -> None:
    service.add(2, STEP)
    upgrade(service.engine, PACKAGE)
    assert set(inspect(service.engine).get_table_names()) == {"rows", "parts", "alembic_version"}
    assert service.rows("SELECT version_num FROM alembic_version") == [("0002",)]


def test_processes_that_start_together_migrate_one_after_another(
    on_postgresql: Service, postgres_url: str
) -> None:
    argv = [sys.executable, "-m", "ironworks.storage.migrate", PACKAGE]
    root = str(on_postgresql.versions.parents[3])
    env = {**os.environ, URL_VARIABLE: postgres_url, "PYTHONPATH": root}
    running = [subprocess.Popen(argv, env=env, stderr=subprocess.PIPE) for _ in range(3)]
    assert [(one.communicate()[1], one.returncode) for one in running] == [(b"", 0)] * 3
    assert on_postgresql.rows("SELECT version_num FROM alembic_version") == [("0001",)]


def test_step_by_step_ends_where_a_fresh_database_begins(
    on_sqlite: Service, tmp_path: Path
) -> None:
    on_sqlite.add(2, SECOND)
    upgrade(on_sqlite.engine, PACKAGE, to="0001")
    upgrade(on_sqlite.engine, PACKAGE)
    fresh = make_engine(sqlite_url(tmp_path / "fresh.db"))
    upgrade(fresh, PACKAGE)
    schema = "SELECT type, name, sql FROM sqlite_master ORDER BY name"
    with fresh.begin() as connection:
        expected = [tuple(row) for row in connection.exec_driver_sql(schema)]
    fresh.dispose()
    assert on_sqlite.rows(schema) == expected


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


def test_rebuilding_a_table_keeps_the_rows_that_refer_to_it(on_sqlite: Service) -> None:
    upgrade(on_sqlite.engine, PACKAGE)
    on_sqlite.execute("INSERT INTO rows VALUES (1, 'kept')")
    on_sqlite.execute("INSERT INTO parts VALUES (1, 1)")
    on_sqlite.add(2, SECOND)
    upgrade(on_sqlite.engine, PACKAGE)
    assert on_sqlite.rows("SELECT * FROM parts") == [(1, 1)]
    with pytest.raises(Exception, match="FOREIGN KEY"):
        on_sqlite.execute("INSERT INTO parts VALUES (2, 9)")


def test_a_step_that_fails_leaves_the_database_as_it_was(service: Service) -> None:
    upgrade(service.engine, PACKAGE)
    service.execute("INSERT INTO rows VALUES (1, 'kept')")
    service.add(2, 'op.execute("DELETE FROM rows")')
    service.add(3, 'raise RuntimeError("half way")')
    with pytest.raises(RuntimeError, match="half way"):
        upgrade(service.engine, PACKAGE)
    assert service.rows("SELECT * FROM rows") == [(1, "kept")]
    assert service.rows("SELECT version_num FROM alembic_version") == [("0001",)]


def test_a_step_that_breaks_references_is_undone(on_sqlite: Service) -> None:
    upgrade(on_sqlite.engine, PACKAGE)
    on_sqlite.execute("INSERT INTO rows VALUES (1, 'kept')")
    on_sqlite.execute("INSERT INTO parts VALUES (1, 1)")
    on_sqlite.add(2, 'op.execute("DELETE FROM rows")')
    with pytest.raises(DataLoss, match="Nothing was changed"):
        upgrade(on_sqlite.engine, PACKAGE)
    assert on_sqlite.rows("SELECT * FROM rows") == [(1, "kept")]
    assert on_sqlite.rows("SELECT version_num FROM alembic_version") == [("0001",)]


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
