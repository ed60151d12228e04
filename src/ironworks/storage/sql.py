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

from ironworks.model.errors import Aborted, FailedPrecondition, Unavailable

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
            "foreign_keys=ON",
            "busy_timeout=10000",
        ):
            connection.execute(f"PRAGMA {pragma}")

    def begin(connection: Connection) -> None:
        mode = "IMMEDIATE" if connection.get_execution_options().get("iw_write") else "DEFERRED"
        connection.exec_driver_sql(f"BEGIN {mode}")

    event.listen(engine, "connect", configure)
    event.listen(engine, "begin", begin)
    return engine


def _mapped(work: Callable[[], _T]) -> _T:
    try:
        return work()
    except OperationalError as error:
        text = str(error.orig)
        if "full" in text or "disk" in text:
            raise FailedPrecondition(
                "The disk of the database is full or failing.",
                hint="Free space in the data directory, then repeat the call.",
                context={"sql_error": text},
            ) from error
        raise Unavailable(
            "The database is not reachable or busy.", context={"sql_error": text}
        ) from error
    except IntegrityError as error:
        # Stores check before they write; what still collides lost a race.
        raise Aborted(
            "Another change came first; read again and repeat.",
            context={"sql_error": str(error.orig)},
        ) from error
    except DBAPIError as error:
        raise Unavailable(
            "The database refused the statement.", context={"sql_error": str(error.orig)}
        ) from error


class Database:
    """One service's relational data."""

    def __init__(self, url: str) -> None:
        self.engine = make_engine(url)
        self._write_engine = self.engine.execution_options(iw_write=True)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="sql-write")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="sql-read")

    async def read(self, statement: Callable[[Connection], _T]) -> _T:
        """Run `statement` in a transaction that sees one state of the data."""

        def work() -> _T:
            with self.engine.begin() as connection:
                return statement(connection)

        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, _mapped, work)

    async def write(self, statement: Callable[[Connection], _T]) -> _T:
        """Run `statement` in a writing transaction; durable when this returns.

        Raises:
            Aborted: a constraint was hit: another change came first.
            FailedPrecondition: the disk is full.
            Unavailable: the database is not reachable.
        """

        def work() -> _T:
            with self._write_engine.begin() as connection:
                return statement(connection)

        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._writer, _mapped, work)

    def close(self) -> None:
        """Wait for running statements and close the connections."""
        self._writer.shutdown()
        self._readers.shutdown()
        self.engine.dispose()
