"""Relational data: SQLite on one machine, PostgreSQL on many, through SQLAlchemy Core.

Statements are plain functions that take a `Connection`; each `read` or `write` runs one of them
in one transaction, off the event loop. SQLite has one writer: a thread of its own, BEGIN IMMEDIATE,
so a decision made in a write sees nothing change under it. A commit is on disk (synchronous=FULL)
before `write` returns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.pool import QueuePool

from ironworks.model.errors import (
    Aborted,
    DataLoss,
    FailedPrecondition,
    Internal,
    IronError,
    Unavailable,
)

_T = TypeVar("_T")
READERS = 2
_NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}
NAMING_CONVENTION: dict[str, str] = _NAMING
"""Give it to every `MetaData`: migrations on PostgreSQL need names for constraints."""

# Names of SQLite's result codes (extended codes begin with them), and SQLSTATEs of PostgreSQL.
_SQLITE_DISK = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")
_SQLITE_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
_SQLITE_BUSY = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL", "SQLITE_NOMEM")
_SQL_STATES_DISK = frozenset({"53100", "58030", "25006"})
_SQL_STATES_DAMAGED = frozenset({"XX001", "XX002"})
_SQL_STATES_BUSY = frozenset({"08", "40", "53", "55", "57"})


def sqlite_url(path: Path) -> str:
    """The URL of the SQLite file at `path`."""
    return URL.create("sqlite", database=str(path)).render_as_string()


def make_engine(url: str) -> Engine:
    """An engine with our pragmas and transaction rules."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(parsed, pool_pre_ping=True)
    if parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(
        parsed,
        poolclass=QueuePool,
        pool_size=READERS + 1,
        connect_args={"timeout": 10, "check_same_thread": False, "isolation_level": None},
    )

    def configure(connection: Any, _record: object) -> None:
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "busy_timeout=10000",
        ):
            connection.execute(f"PRAGMA {pragma}")

    def begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        execute: Any = connection.connection.cursor().execute
        # A read that writes would be a second writer; a migration that rebuilds a table would
        # delete the rows that refer to it. Neither can be set inside of the transaction.
        execute(f"PRAGMA query_only={int(bool(options.get('iw_read')))}")
        execute(f"PRAGMA foreign_keys={int(not options.get('iw_migrate'))}")
        mode = "IMMEDIATE" if options.get("iw_write") else "DEFERRED"
        connection.exec_driver_sql(f"BEGIN {mode}")

    event.listen(engine, "connect", configure)
    event.listen(engine, "begin", begin)
    return engine


def mapped(work: Callable[[], _T]) -> _T:
    """Do `work`; what the database refuses becomes an error of ours.

    Raises:
        IronError: as `Database.write` says.
    """
    try:
        return work()
    except DBAPIError as error:
        raise _ours(error) from error


def _ours(error: DBAPIError) -> IronError:
    """What the caller should do about an error of the database."""
    context = {"sql_error": str(error.orig), "statement": error.statement}
    if isinstance(error, IntegrityError):
        # Stores check before they write; what still collides lost a race.
        return Aborted("Another change came first; read again and repeat.", context=context)
    sqlite_name: str = getattr(error.orig, "sqlite_errorname", "")
    sql_state: str = getattr(error.orig, "sqlstate", None) or ""
    if sqlite_name.startswith(_SQLITE_DISK) or sql_state in _SQL_STATES_DISK:
        return FailedPrecondition(
            "The disk of the database is full, failing or not writable.",
            hint="Free space in the data directory, then repeat the call.",
            context=context,
        )
    if sqlite_name.startswith(_SQLITE_DAMAGED) or sql_state in _SQL_STATES_DAMAGED:
        return DataLoss(
            "The database is damaged.", hint="Restore it from a backup.", context=context
        )
    if sqlite_name.startswith(_SQLITE_BUSY) or sql_state[:2] in _SQL_STATES_BUSY:
        return Unavailable("The database is not reachable or busy.", context=context)
    if not sqlite_name and not sql_state and isinstance(error, OperationalError):
        # The connection itself failed, so nobody gave the error a code.
        return Unavailable("The database is not reachable or busy.", context=context)
    # A statement that is wrong stays wrong: to repeat it helps nobody.
    return Internal("The database refused a statement of ours.", context=context)


class Database:
    """One service's relational data."""

    def __init__(self, url: str) -> None:
        self.engine = make_engine(url)
        self._read_engine = self.engine.execution_options(iw_read=True)
        self._write_engine = self.engine.execution_options(iw_write=True)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="sql-write")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="sql-read")

    async def read(self, statement: Callable[[Connection], _T]) -> _T:
        """Run `statement` in a transaction that sees one state of the data and changes none.

        Raises:
            FailedPrecondition: the disk is failing; also if `statement` writes.
            Unavailable: the database is not reachable.
        """

        def work() -> _T:
            with self._read_engine.begin() as connection:
                return statement(connection)

        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, mapped, work)

    async def write(self, statement: Callable[[Connection], _T]) -> _T:
        """Run `statement` in a writing transaction; durable when this returns.

        Raises:
            Aborted: a constraint was hit: another change came first.
            FailedPrecondition: the disk is full, failing or not writable.
            Unavailable: the database is not reachable.
            DataLoss: the database is damaged.
            Internal: the statement is wrong.
        """

        def work() -> _T:
            with self._write_engine.begin() as connection:
                return statement(connection)

        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._writer, mapped, work)

    def close(self) -> None:
        """Wait for running statements and close the connections."""
        self._writer.shutdown()
        self._readers.shutdown()
        self.engine.dispose()
