"""Writes that wait at the same time share a commit, and nothing else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import (
    Column,
    Connection,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    event,
    select,
)

from ironworks.model.errors import (
    Aborted,
    FailedPrecondition,
    NotFound,
    Unavailable,
)
from ironworks.runtime.tasks import Tasks
from ironworks.storage import sql
from ironworks.storage.sql import NAMING_CONVENTION, Database, sqlite_url

METADATA = MetaData(naming_convention=NAMING_CONVENTION)
ROWS = Table("rows", METADATA, Column("id", Integer, primary_key=True), Column("name", String(20)))
LATE = Table(
    "late",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column(
        "row_id",
        Integer,
        ForeignKey("rows.id", deferrable=True, initially="DEFERRED"),
        nullable=False,
    ),
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


class Gate:
    """Keeps the writer busy, so that what comes meanwhile shares a commit."""

    def __init__(self) -> None:
        self._open, self.began = threading.Event(), threading.Event()

    def __call__(self, connection: Connection) -> None:
        self.began.set()
        assert self._open.wait(20)

    def open(self) -> None:
        self._open.set()


async def together(
    database: Database, *statements: Callable[[Connection], object]
) -> list[object | BaseException]:
    """What became of statements that waited at the same time."""
    gate = Gate()
    async with Tasks() as tasks:
        first = tasks.start(database.write(gate), name="gate")
        await asyncio.to_thread(gate.began.wait, 20)
        others = asyncio.gather(
            *(database.write(statement) for statement in statements), return_exceptions=True
        )
        await asyncio.sleep(0)
        gate.open()
        await first
        return await others


def nth(row_id: int) -> Callable[[Connection], int]:
    return lambda connection: insert(connection, row_id)


async def test_writes_that_wait_together_share_a_commit(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "_GROUP_NS", 10**12)
    commits: list[int] = []

    def count(connection: Connection) -> None:
        commits.append(1)

    event.listen(database.engine, "commit", count)
    assert await together(database, *map(nth, range(1, 11))) == list(range(1, 11))
    event.remove(database.engine, "commit", count)
    assert len(commits) == 2, "one of the gate, one of all others"
    assert await database.read(ids) == list(range(1, 11))


async def test_one_that_fails_undoes_its_own_and_nobody_elses(database: Database) -> None:
    def half(connection: Connection) -> None:
        insert(connection, 2)
        raise NotFound("No such VM.")

    one, two, three, four = await together(database, insert, half, insert, lambda it: insert(it, 3))
    assert (one, four) == (1, 3)
    assert isinstance(two, NotFound)
    assert isinstance(three, Aborted)
    assert await database.read(ids) == [1, 3]


async def test_a_group_that_meets_a_full_disk_fails_those_for_whom_there_is_no_room(
    sqlite: Database,
) -> None:
    def full(connection: Connection) -> None:
        connection.exec_driver_sql("PRAGMA max_page_count=1")
        for row_id in range(100, 1000):
            connection.execute(ROWS.insert().values(id=row_id, name="x" * 1000))

    def roomy(connection: Connection) -> int:
        connection.exec_driver_sql("PRAGMA max_page_count=1000000")
        return insert(connection)

    refused, done = await together(sqlite, full, roomy)
    assert isinstance(refused, FailedPrecondition)
    assert done == 1
    assert await sqlite.read(ids) == [1]


async def test_a_commit_that_is_refused_hits_only_who_caused_it(database: Database) -> None:
    def dangle(connection: Connection) -> None:
        connection.execute(LATE.insert().values(id=1, row_id=9))

    refused, done = await together(database, dangle, insert)
    assert isinstance(refused, Aborted)
    assert done == 1
    with pytest.raises(Aborted):
        await database.write(dangle)
    assert await database.write(nth(2)) == 2
    assert await database.read(ids) == [1, 2]


async def test_a_server_that_dies_in_a_commit_leaves_it_to_the_callers(postgres: Database) -> None:
    def arm(connection: Connection) -> None:
        connection.exec_driver_sql(
            "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$"
        )
        connection.exec_driver_sql(
            "CREATE CONSTRAINT TRIGGER die AFTER INSERT ON rows DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION die()"
        )

    await postgres.write(arm)
    runs: list[int] = []

    def run(connection: Connection) -> None:
        runs.append(1)
        insert(connection, len(runs))

    outcomes = await together(postgres, run, run)
    assert [type(one) for one in outcomes] == [Unavailable] * 2
    assert len(runs) == 2, "what may have been done is not done again"


async def test_a_write_that_nobody_waits_for_any_more_is_not_begun(database: Database) -> None:
    gate = Gate()
    async with Tasks() as tasks:
        first = tasks.start(database.write(gate), name="gate")
        await asyncio.to_thread(gate.began.wait, 20)
        given_up = tasks.start(database.write(insert), name="given up")
        await asyncio.sleep(0)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        gate.open()
        await first
    await database.write(nth(2))
    assert await database.read(ids) == [2]
