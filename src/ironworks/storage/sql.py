"""Relational data: SQLite on one machine, PostgreSQL on many, through SQLAlchemy Core.

Statements are plain functions that take a `Connection`; each `read` or `write` runs one of them
in one transaction, off the event loop. A decision made in a write sees nothing change under it:
SQLite has one writer (a thread of its own, BEGIN IMMEDIATE), and on PostgreSQL writes are
SERIALIZABLE and are run again when another one came first, so a statement must have no effect but
on its connection. A commit is on disk before `write` returns; writes that wait at the same time
share one, each within a savepoint.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, OperationalError
from sqlalchemy.pool import QueuePool

from ironworks.model.errors import (
    Aborted,
    DataLoss,
    FailedPrecondition,
    Internal,
    InvalidRequest,
    IronError,
    Unavailable,
)
from ironworks.model.units import NS_PER_MS
from ironworks.runtime.clock import SystemClock, SystemEntropy

_T = TypeVar("_T")
READERS = 2
WRITE_ATTEMPTS = 12
"""How often a write is run that PostgreSQL undoes because another one came first."""
MAX_GROUP = 64
"""Writes that share a commit."""
_GROUP_NS = 20 * NS_PER_MS
"""Nobody joins a group that has worked for so long."""
_MAX_PAUSE_SECONDS = 0.2
_CONNECT_SECONDS = 5
# What a service may wait for at most, when PostgreSQL or the way to it is slow or gone.
_SESSION = (
    "SET synchronous_commit = on",
    "SET statement_timeout = '60s'",
    "SET lock_timeout = '20s'",
    "SET idle_in_transaction_session_timeout = '15s'",
)
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
_SQL_STATES_TEXT = frozenset({"", "22001", "22021"})
_SQL_STATES_AGAIN = frozenset({"40001", "40P01"})


def sqlite_url(path: Path) -> str:
    """The URL of the SQLite file at `path`."""
    return URL.create("sqlite", database=str(path)).render_as_string()


def make_engine(url: str) -> Engine:
    """An engine with our pragmas and transaction rules.

    Raises:
        InvalidRequest: the URL is neither one of SQLite nor one of PostgreSQL.
    """
    with suppress(ArgumentError):
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            return _sqlite_engine(parsed)
        if parsed.get_backend_name() == "postgresql":
            return _postgres_engine(parsed.set(drivername="postgresql+psycopg"))
    # The URL is not repeated: it may have a password.
    raise InvalidRequest(
        "The URL of a database must begin with postgresql:// or sqlite:///.",
        hint="Correct the setting …_database_url; empty is SQLite in the data directory.",
    )


def _postgres_engine(url: URL) -> Engine:
    engine = create_engine(
        url,
        pool_pre_ping=True,
        pool_size=READERS + 1,
        connect_args={
            "connect_timeout": _CONNECT_SECONDS,
            "application_name": "ironworks",
            "keepalives_idle": 30,
            "tcp_user_timeout": 20_000,
        },
    )

    def configure(connection: Any, _record: object) -> None:
        connection.execute("; ".join(_SESSION))
        connection.commit()

    event.listen(engine, "connect", configure)
    return engine


def _sqlite_engine(url: URL) -> Engine:
    if url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(
        url,
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

    def release(connection: Any, _record: object) -> None:
        # A COMMIT that fails leaves the transaction open, and SQLAlchemy thinks that it is over.
        if connection is not None and connection.in_transaction:
            connection.rollback()

    event.listen(engine, "connect", configure)
    event.listen(engine, "begin", begin)
    event.listen(engine, "checkin", release)
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


def _sql_state(error: DBAPIError) -> str:
    """What PostgreSQL calls the error; empty if it was another one, or never reached it."""
    return getattr(error.orig, "sqlstate", None) or ""


def _is_unknown(error: DBAPIError) -> bool:
    """Whether a commit that failed so may have been done: PostgreSQL went away meanwhile."""
    if getattr(error.orig, "sqlite_errorname", ""):
        return False
    return _sql_state(error)[:2] in ("", "08", "57", "58")


def _again(work: Callable[[], _T]) -> _T:
    """Do `work`; again, after a while of random length, if another write came first."""
    pause, entropy = threading.Event(), SystemEntropy()
    for attempt in range(1, WRITE_ATTEMPTS):
        try:
            return work()
        except DBAPIError as error:
            if _sql_state(error) not in _SQL_STATES_AGAIN:
                raise
        pause.wait(entropy.uniform(0, min(_MAX_PAUSE_SECONDS, 0.005 * 2**attempt)))
    return work()


def _ours(error: DBAPIError) -> IronError:
    """What the caller should do about an error of the database."""
    context = {"sql_error": str(error.orig), "statement": error.statement}
    if isinstance(error, IntegrityError):
        # Stores check before they write; what still collides lost a race.
        return Aborted("Another change came first; read again and repeat.", context=context)
    sqlite_name: str = getattr(error.orig, "sqlite_errorname", "")
    if sqlite_name:
        return _of_sqlite(sqlite_name, context)
    return _of_postgres(error, _sql_state(error), context)


def _of_sqlite(name: str, context: Mapping[str, object]) -> IronError:
    if name.startswith(_SQLITE_DISK):
        return _disk(context)
    if name.startswith(_SQLITE_DAMAGED):
        return _damaged(context)
    if name.startswith(_SQLITE_BUSY):
        return _busy(context)
    return _wrong(context)


def _of_postgres(error: DBAPIError, state: str, context: Mapping[str, object]) -> IronError:
    if isinstance(error, DataError) and state in _SQL_STATES_TEXT:
        return InvalidRequest(
            "A text is too long to be stored, or has a NUL character.", context=context
        )
    if state in _SQL_STATES_DISK:
        return _disk(context)
    if state in _SQL_STATES_DAMAGED:
        return _damaged(context)
    # Without a state the connection itself failed, so nobody gave the error one.
    no_connection = not state and isinstance(error, OperationalError)
    if no_connection or state[:2] in _SQL_STATES_BUSY:
        return _busy(context)
    return _wrong(context)


def _disk(context: Mapping[str, object]) -> IronError:
    return FailedPrecondition(
        "The disk of the database is full, failing or not writable.",
        hint="Free space in the data directory, then repeat the call.",
        context=context,
    )


def _damaged(context: Mapping[str, object]) -> IronError:
    return DataLoss("The database is damaged.", hint="Restore it from a backup.", context=context)


def _busy(context: Mapping[str, object]) -> IronError:
    return Unavailable(
        "The database is not reachable or busy.",
        hint="Repeat the call. If it stays so, look into the log: it has what the database said.",
        context=context,
    )


def _wrong(context: Mapping[str, object]) -> IronError:
    # A statement that is wrong stays wrong: to repeat it helps nobody.
    return Internal("The database refused a statement of ours.", context=context)


@dataclass(slots=True)
class _Write(Generic[_T]):
    """A statement that waits for its turn, and where its outcome goes."""

    statement: Callable[[Connection], _T]
    future: asyncio.Future[_T]


def _settle(group: Sequence[tuple[_Write[Any], Any]]) -> None:
    """Tell who waits what came of it; on their loop."""
    for one, outcome in group:
        if one.future.done():
            continue
        if isinstance(outcome, BaseException):
            one.future.set_exception(outcome)
        else:
            one.future.set_result(outcome)


def _tell(group: Sequence[tuple[_Write[Any], Any]]) -> None:
    """`_settle` from another thread: one message, however many wait."""
    # A loop that has ended has nobody who waits.
    with suppress(RuntimeError):
        group[0][0].future.get_loop().call_soon_threadsafe(_settle, group)


class Database:
    """One service's relational data.

    Args:
        url: `sqlite:////absolute/file` or `postgresql://…`.
        order_by: A table that each write locks first on PostgreSQL. Writes of all processes then
            come one after another, as on SQLite: what one of them numbers is seen in order.
    """

    def __init__(self, url: str, *, order_by: str = "") -> None:
        self.engine = make_engine(url)
        self._read_engine = self.engine.execution_options(iw_read=True)
        self._write_engine = self.engine.execution_options(iw_write=True)
        self._lock = ""
        if self.engine.dialect.name == "postgresql":
            self._read_engine = self.engine.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
            self._write_engine = self.engine.execution_options(isolation_level="SERIALIZABLE")
            # Before any other statement: those see what there is when the lock has been got.
            self._lock = order_by and f"LOCK TABLE {order_by} IN SHARE ROW EXCLUSIVE MODE"
        self._waiting: deque[_Write[Any]] = deque()
        self._guard = threading.Lock()
        self._is_writing = False
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

        It may run several times, and only the last one counts.

        Raises:
            Aborted: a constraint was hit: another change came first.
            FailedPrecondition: the disk is full, failing or not writable.
            Unavailable: the database is not reachable, or too many changes came first.
            DataLoss: the database is damaged.
            InvalidRequest: a text is too long, or has a NUL character.
            Internal: the statement is wrong.
        """
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(_Write(statement, future))
        with self._guard:
            if not self._is_writing:
                self._writer.submit(self._write_all)
                self._is_writing = True
        return await future

    def _write_all(self) -> None:
        """Do what waits, and what comes meanwhile."""
        while True:
            self._write_waiting()
            with self._guard:
                if not self._waiting:
                    self._is_writing = False
                    return

    def _next(self) -> _Write[Any] | None:
        while self._waiting:
            one = self._waiting.popleft()
            if not one.future.cancelled():
                return one
        return None

    def _write_waiting(self) -> None:
        first = self._next()
        if first is None:
            return
        if not self._waiting:
            self._write_alone(first)
            return
        group: list[tuple[_Write[Any], Any]] = [(first, None)]
        try:
            self._write_together(group)
        except Exception:  # noqa: BLE001 - each of them meets it again, alone
            # Nothing was done, for a reason that need not be everybody's.
            for one, _ in group:
                self._write_alone(one)
        except BaseException as error:  # noqa: BLE001 - nobody may be left waiting
            _tell([(one, error) for one, _ in group])
        else:
            _tell(group)

    def _write_together(self, group: list[tuple[_Write[Any], Any]]) -> None:
        """Do the first of `group`, add who waits, and set what came of each.

        Raises:
            Exception: nothing was done.
        """
        with self._write_engine.connect() as connection:
            transaction = connection.begin()
            self._fill(connection, group)
            try:
                transaction.commit()
            except DBAPIError as error:
                if not _is_unknown(error):
                    raise
                for number, (one, _) in enumerate(group):
                    group[number] = (one, _ours(error))

    def _fill(self, connection: Connection, group: list[tuple[_Write[Any], Any]]) -> None:
        """Run what waits, each in a savepoint, for a while."""
        clock = SystemClock()
        until_ns = clock.monotonic_ns() + _GROUP_NS
        if self._lock:
            connection.exec_driver_sql(self._lock)
        while True:
            one, _ = group[-1]
            group[-1] = (one, _in_savepoint(connection, one.statement))
            if len(group) >= MAX_GROUP or clock.monotonic_ns() > until_ns:
                return
            another = self._next()
            if another is None:
                return
            group.append((another, None))

    def _write_alone(self, one: _Write[Any]) -> None:
        def once() -> object:
            with self._write_engine.begin() as connection:
                if self._lock:
                    connection.exec_driver_sql(self._lock)
                return one.statement(connection)

        try:
            outcome = mapped(lambda: _again(once))
        except BaseException as error:  # noqa: BLE001 - it is its caller's
            outcome = error
        _tell([(one, outcome)])

    def close(self) -> None:
        """Wait for running statements and close the connections."""
        self._writer.shutdown()
        self._readers.shutdown()
        self.engine.dispose()


def _in_savepoint(connection: Connection, statement: Callable[[Connection], _T]) -> _T | Exception:
    """What `statement` answers or raises; what it changed is undone if it raises.

    Raises:
        Exception: the transaction is over.
    """
    # Past SQLAlchemy, which takes longer for it than the database. Both drivers' connections have
    # `execute`; a savepoint hides the one of the same name before it until the transaction ends.
    driver: Any = connection.connection.driver_connection
    driver.execute("SAVEPOINT iw")
    try:
        outcome: Any = statement(connection)
    except DBAPIError as error:
        if _sql_state(error) in _SQL_STATES_AGAIN:
            raise
        outcome = _ours(error)
        outcome.__cause__ = error
        driver.execute("ROLLBACK TO SAVEPOINT iw")
    except Exception as error:  # noqa: BLE001 - it is its caller's
        outcome = error
        driver.execute("ROLLBACK TO SAVEPOINT iw")
    # While it is there, SQLite keeps a copy of each page that anybody changes, for each of them.
    driver.execute("RELEASE SAVEPOINT iw")
    return outcome
