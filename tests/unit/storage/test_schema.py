"""A service's schema is brought up to date when it starts, outside of its process."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from ironworks.model.errors import DataLoss, FailedPrecondition
from ironworks.storage.schema import current_revision, ensure_current, newest_revision
from ironworks.storage.sql import make_engine, sqlite_url

PACKAGE = "ironworks.metald.migrations"


@pytest.fixture
def engine(database_url: str) -> Engine:
    return make_engine(database_url)


def test_an_empty_database_gets_everything_once(engine: Engine) -> None:
    assert current_revision(engine) is None
    ensure_current(engine, PACKAGE)
    assert current_revision(engine) == newest_revision(PACKAGE)
    ensure_current(engine, PACKAGE)
    engine.dispose()


def test_a_database_of_a_newer_version_is_refused_in_a_sentence(engine: Engine) -> None:
    ensure_current(engine, PACKAGE)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(FailedPrecondition, match="written by a newer Ironworks"):
        ensure_current(engine, PACKAGE)
    engine.dispose()


def test_a_damaged_database_is_said_so(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(b"not a database, but long enough to have a header" * 100)
    engine = make_engine(sqlite_url(path))
    with pytest.raises(DataLoss, match="Restore it from a backup"):
        ensure_current(engine, PACKAGE)
    engine.dispose()
