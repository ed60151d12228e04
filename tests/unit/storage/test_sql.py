from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import psycopg
import pytest
from sqlalchemy import (
    Column,
    Connection,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    select,
)
from sqlalchemy.exc import DBAPIError, OperationalError

from ironworks.model.errors import (
    Aborted,
    DataLoss,
    FailedPrecondition,
    Internal,
    InvalidRequest,
    IronError,
    NotFound,
    Unavailable,
)
from ironworks.runtime.tasks import Tasks
from ironworks.storage import sql
from ironworks.storage.sql import NAMING_CONVENTION, Database, make_engine, sqlite_url

METADATA = MetaData(naming_convention=NAMING_CONVENTION)
ROWS = Table("rows", METADATA, Column("id", Integer, primary_key=True), Column("name", String(20)))
PARTS = Table(
    "parts",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("row_id", Integer, ForeignKey("rows.id"), nullable=False),
)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    yield from opened(database_url)


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Database]:
    yield from opened(sqlite_url(tmp_path / "made" / "store.db"))


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[Database]:
    yield from opened(postgres_url)


def opened(url: str) -> Iterator[Database]:
    database = Database(url)
    METADATA.create_all(database.engine)
    yield database
    database.close()


def insert(connection: Connection, row_id: int = 1) -> int:
    connection.execute(ROWS.insert().values(id=row_id, name="a"))
    return row_id


def ids(connection: Connection) -> list[int]:
    return list(connection.execute(select(ROWS.c.id).order_by(ROWS.c.id)).scalars())


def pragma(connection: Connection, name: str) -> object:
    return connection.exec_driver_sql(f"PRAGMA {name}").scalar()


async def test_what_was_written_is_read(database: Database) -> None:
    assert await database.write(insert) == 1
    assert await database.read(ids) == [1]


async def test_a_commit_is_on_disk_before_it_is_answered(sqlite: Database) -> None:
    def settings(connection: Connection) -> list[object]:
        return [pragma(connection, name) for name in ("journal_mode", "synchronous")]

    full = 2
    assert await sqlite.write(settings) == ["wal", full]
    assert await sqlite.read(settings) == ["wal", full]


@pytest.mark.parametrize("error", [NotFound("No such VM."), ValueError("a bug")])
async def test_a_write_that_fails_changes_nothing(database: Database, error: Exception) -> None:
    def fail(connection: Connection) -> None:
        insert(connection)
        raise error

    with pytest.raises(type(error)):
        await database.write(fail)
    assert await database.read(ids) == []


async def test_a_read_sees_one_state_while_others_write(database: Database) -> None:
    began, written = threading.Event(), threading.Event()

    def read(connection: Connection) -> tuple[list[int], list[int]]:
        first = ids(connection)
        began.set()
        assert written.wait(20)
        return first, ids(connection)

    async with Tasks() as tasks:
        reading = tasks.start(database.read(read), name="read")
        await asyncio.to_thread(began.wait, 20)
        await database.write(insert)
        written.set()
        assert await reading == ([], [])
    assert await database.read(ids) == [1]


async def test_nothing_changes_under_a_decision_made_in_a_write(database: Database) -> None:
    def decide(connection: Connection) -> int:
        return insert(connection, max(ids(connection), default=0) + 1)

    async with Tasks() as tasks:
        decisions = [tasks.start(database.write(decide), name="decide") for _ in range(50)]
        assert sorted([await one for one in decisions]) == list(range(1, 51))


async def test_writes_of_several_processes_come_one_after_another_if_wanted(
    postgres: Database, postgres_url: str
) -> None:
    ordered = [Database(postgres_url, order_by="rows") for _ in range(3)]
    runs: list[int] = []

    def decide(connection: Connection) -> int:
        runs.append(1)
        return insert(connection, max(ids(connection), default=0) + 1)

    async with Tasks() as tasks:
        decisions = [
            tasks.start(each.write(decide), name="decide") for each in ordered for _ in range(20)
        ]
        assert sorted([await one for one in decisions]) == list(range(1, 61))
    assert len(runs) == 60, "none had to be run again"
    for each in ordered:
        each.close()


async def test_there_is_one_writer_even_between_processes(sqlite: Database, tmp_path: Path) -> None:
    def write(connection: Connection) -> str:
        insert(connection)
        other = sqlite3.connect(tmp_path / "made" / "store.db", timeout=0, isolation_level=None)
        try:
            other.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            return error.sqlite_errorname
        finally:
            other.close()
        return "began"

    assert await sqlite.write(write) == "SQLITE_BUSY"


async def test_postgresql_commits_to_disk_and_bounds_what_it_waits_for(postgres: Database) -> None:
    def settings(connection: Connection) -> list[object]:
        names = ("synchronous_commit", "transaction_isolation", "statement_timeout")
        return [connection.exec_driver_sql(f"SHOW {name}").scalar() for name in names]

    assert await postgres.write(settings) == ["on", "serializable", "1min"]
    assert await postgres.read(settings) == ["on", "repeatable read", "1min"]


async def test_decisions_of_several_processes_see_nothing_change_under_them(
    postgres: Database, postgres_url: str
) -> None:
    others = [Database(postgres_url) for _ in range(3)]

    def decide(connection: Connection) -> int:
        return insert(connection, max(ids(connection), default=0) + 1)

    async with Tasks() as tasks:
        decisions = [
            tasks.start(each.write(decide), name="decide")
            for each in (postgres, *others)
            for _ in range(10)
        ]
        assert sorted([await one for one in decisions]) == list(range(1, 41))
    for each in others:
        each.close()


async def test_a_decision_on_what_another_one_changes_is_made_again(
    postgres: Database, postgres_url: str
) -> None:
    # Each looks at both rows and deletes one if both are there: neither hits the other's row.
    await postgres.write(lambda it: [insert(it, row_id) for row_id in (1, 2)])
    other = Database(postgres_url)
    together = threading.Barrier(2, timeout=20)
    waits = threading.local()

    def leave_one(row_id: int) -> Callable[[Connection], bool]:
        def decide(connection: Connection) -> bool:
            both = len(ids(connection)) == 2
            if not getattr(waits, "over", False):
                waits.over = True
                together.wait()
            if both:
                connection.execute(ROWS.delete().where(ROWS.c.id == row_id))
            return both

        return decide

    async with Tasks() as tasks:
        ours = tasks.start(postgres.write(leave_one(1)), name="one")
        theirs = tasks.start(other.write(leave_one(2)), name="two")
        assert sorted([await ours, await theirs]) == [False, True]
    assert len(await postgres.read(ids)) == 1
    other.close()


async def test_a_write_that_never_comes_first_gives_up(
    postgres: Database, postgres_url: str
) -> None:
    other = Database(postgres_url)
    await postgres.write(insert)
    tries: list[int] = []

    def rename(connection: Connection, name: str) -> None:
        connection.execute(ROWS.update().values(name=name))

    def overtaken(connection: Connection) -> None:
        ids(connection)
        tries.append(1)
        with other.engine.begin() as faster:
            rename(faster, "faster")
        rename(connection, "late")

    with pytest.raises(Unavailable):
        await postgres.write(overtaken)
    assert len(tries) == sql.WRITE_ATTEMPTS
    other.close()


async def test_a_server_that_went_away_and_came_back_is_used_again(postgres: Database) -> None:
    await postgres.write(insert)
    assert await postgres.read(ids) == [1]
    with psycopg.connect(postgres.engine.url.set(drivername="postgresql").render_as_string()) as it:
        it.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND datname = current_database()"
        )
    assert await postgres.read(ids) == [1]


async def test_a_server_that_is_not_there_or_too_slow_may_be_asked_again(
    tmp_path: Path, postgres: Database
) -> None:
    absent = Database(f"postgresql://somebody@/x?host={tmp_path}")
    with pytest.raises(Unavailable):
        await absent.read(ids)
    absent.close()
    with pytest.raises(Unavailable):
        await postgres.write(
            lambda it: it.exec_driver_sql("SET LOCAL statement_timeout = '1ms'; SELECT pg_sleep(1)")
        )


@pytest.mark.parametrize("text", ["nul \0 in it", "more than twenty characters"])
async def test_a_text_that_postgresql_cannot_store_is_the_callers_fault(
    postgres: Database, text: str
) -> None:
    with pytest.raises(InvalidRequest, match="text"):
        await postgres.write(lambda it: it.execute(ROWS.insert().values(id=1, name=text)))


@pytest.mark.parametrize("url", ["", "nonsense", "mysql://root:secret@x/y", "postgres://a/b"])
def test_a_url_of_nothing_we_know_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(InvalidRequest, match="postgresql://") as caught:
        make_engine(url)
    assert "secret" not in str(caught.value)


async def test_a_read_cannot_write(database: Database) -> None:
    with pytest.raises(FailedPrecondition):
        await database.read(insert)
    await database.write(insert)
    assert await database.read(ids) == [1]


async def test_a_row_that_is_there_already_is_a_lost_race(database: Database) -> None:
    await database.write(insert)
    with pytest.raises(Aborted, match="read again and repeat"):
        await database.write(insert)


async def test_a_row_that_refers_to_none_is_refused(database: Database) -> None:
    with pytest.raises(Aborted):
        await database.write(lambda it: it.execute(PARTS.insert().values(id=1, row_id=9)))


async def test_a_full_disk_is_said_and_over_when_there_is_room(sqlite: Database) -> None:
    def bound(connection: Connection, pages: int) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    def fill(connection: Connection) -> None:
        # The pragma belongs to the connection, and which one a write gets is the pool's affair.
        bound(connection, 1)
        for row_id in range(1, 1000):
            connection.execute(ROWS.insert().values(id=row_id, name="x" * 1000))

    with pytest.raises(FailedPrecondition, match=r"full.*Free space") as caught:
        await sqlite.write(fill)
    assert "sql_error" in caught.value.context
    await sqlite.write(lambda it: bound(it, 1_000_000))
    await sqlite.write(insert)
    assert await sqlite.read(ids) == [1]


async def test_a_wrong_statement_is_a_fault_of_ours_whatever_its_words(database: Database) -> None:
    for statement in ("SELECT disk_full FROM rows", "SELEKT 'disk'", "SELECT * FROM full_disk"):
        with pytest.raises(Internal) as caught:
            await database.read(lambda it, text=statement: it.exec_driver_sql(text))
        assert statement not in str(caught.value)


async def test_a_file_that_is_no_database_is_lost_data(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"not a database, but long enough to have a header" * 100)
    database = Database(sqlite_url(path))
    with pytest.raises(DataLoss, match="backup"):
        await database.read(ids)
    database.close()


async def test_a_busy_database_may_be_asked_again(sqlite: Database, tmp_path: Path) -> None:
    def impatient(connection: Connection) -> None:
        connection.exec_driver_sql("PRAGMA busy_timeout=0")

    for _ in range(sql.READERS + 1):
        await sqlite.write(impatient)
    with sqlite3.connect(tmp_path / "made" / "store.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable):
            await sqlite.write(insert)
        assert await sqlite.read(ids) == []
        other.execute("ROLLBACK")
    other.close()


class PostgresError(Exception):
    def __init__(self, sqlstate: str | None) -> None:
        super().__init__("postgres says so")
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    ("sqlstate", "kind"),
    [
        ("53100", FailedPrecondition),
        ("25006", FailedPrecondition),
        ("57P01", Unavailable),
        ("08006", Unavailable),
        ("40001", Unavailable),
        ("55P03", Unavailable),
        (None, Unavailable),
        ("XX001", DataLoss),
        ("42703", Internal),
        ("22003", Internal),
    ],
)
async def test_what_postgresql_answers_is_mapped_by_its_state(
    database: Database, sqlstate: str | None, kind: type[IronError]
) -> None:
    def fail(_: Connection) -> None:
        raise OperationalError("SELECT 1", {}, PostgresError(sqlstate))

    with pytest.raises(kind) as caught:
        await database.write(fail)
    assert isinstance(caught.value.__cause__, DBAPIError)


def test_a_path_with_odd_characters_is_a_path(tmp_path: Path) -> None:
    path = tmp_path / "a b?c#d%e" / "store.db"
    engine = make_engine(sqlite_url(path))
    METADATA.create_all(engine)
    engine.dispose()
    assert path.exists()


async def test_closing_waits_for_what_is_under_way(tmp_path: Path) -> None:
    database = Database(sqlite_url(tmp_path / "store.db"))
    METADATA.create_all(database.engine)
    began, go_on = threading.Event(), threading.Event()

    def slow(connection: Connection) -> int:
        began.set()
        assert go_on.wait(20)
        return insert(connection)

    async with Tasks() as tasks:
        writing = tasks.start(database.write(slow), name="write")
        await asyncio.to_thread(began.wait, 20)
        closing = tasks.start(asyncio.to_thread(database.close), name="close")
        go_on.set()
        await closing
        assert await writing == 1
    again = Database(sqlite_url(tmp_path / "store.db"))
    assert await again.read(ids) == [1]
    again.close()


def test_constraints_have_names_that_postgresql_migrations_can_use() -> None:
    names = [cast("str | None", one.name) for one in PARTS.constraints]
    assert sorted(str(name) for name in names) == ["fk_parts_row_id", "pk_parts"]
