"""What holds for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

from ironworks.storage.sql import sqlite_url
from ironworks.testkit.postgres import NoPostgres, Postgres, postgres
from ironworks.testkit.seaweed import Seaweed, seaweed

# Machines are shared and slow: a deadline would measure them, not us.
settings.register_profile("ironworks", deadline=None, print_blob=True)
settings.load_profile("ironworks")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`./iron test --thorough`: before a release."""
    parser.addoption(
        "--thorough",
        action="store_true",
        help="as many kills, steps and sizes as a release needs: takes hours, not minutes",
    )


@pytest.fixture(scope="session")
def thorough(request: pytest.FixtureRequest) -> bool:
    """Whether this run does as much as a release needs."""
    return bool(request.config.getoption("--thorough"))


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """A PostgreSQL for all tests that ask."""
    try:
        with postgres() as server:
            yield server
    except NoPostgres as error:
        pytest.skip(str(error))


@pytest.fixture
def postgres_url(postgres_server: Postgres) -> Iterator[str]:
    """The URL of a fresh PostgreSQL database."""
    with postgres_server.database() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a fresh database: the test runs on SQLite and on PostgreSQL."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "store.db")
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture(scope="session")
def s3() -> Iterator[Seaweed]:
    """An S3 for all tests that ask."""
    with seaweed() as server:
        yield server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need root say so when they are left out."""
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture(autouse=True)
def _quiet_logs() -> Iterator[None]:
    """No test inherits what another one bound to its log lines or how it configured them."""
    yield
    structlog.contextvars.clear_contextvars()
    if structlog.is_configured():
        structlog.reset_defaults()
