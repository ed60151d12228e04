"""Registries for the tests: SQLite and PostgreSQL, migrated once and copied for each test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ironworks.storage.sql import make_engine, sqlite_url
from ironworks.testkit.assets import ensure_migrated
from ironworks.testkit.postgres import Postgres


def migrate(url: str) -> None:
    """Make the tables, and leave nobody connected."""
    engine = make_engine(url)
    ensure_migrated(engine)
    engine.dispose()


@pytest.fixture(scope="session")
def registry_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with all tables."""
    path = tmp_path_factory.mktemp("registry") / "assets.db"
    migrate(sqlite_url(path))
    return path


@pytest.fixture(scope="session")
def registry_template(postgres_server: Postgres) -> str:
    """Name of a PostgreSQL database with all tables."""
    name = postgres_server.create()
    migrate(postgres_server.url(name))
    return name


@pytest.fixture
def postgres_url(postgres_server: Postgres, registry_template: str) -> Iterator[str]:
    """A PostgreSQL database with all tables."""
    with postgres_server.database(registry_template) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database with all tables: the test runs on SQLite and on PostgreSQL."""
    if request.param == "postgresql":
        url: str = request.getfixturevalue("postgres_url")
        return url
    template: Path = request.getfixturevalue("registry_file")
    return sqlite_url(Path(shutil.copy(template, tmp_path / "store.db")))
