"""Which processes of one workflow engine live: a row each, with a lease that it renews.

A process that has not renewed its lease is taken for dead, and its runs are taken up by others. It
may only have been slow or asleep: then it learns at its next renewal that its lease had ended, and
gives up what it was doing. All times are the database's, so that clocks need not agree.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import structlog
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    MetaData,
    String,
    Table,
    create_engine,
    delete,
    event,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

_JOIN_SECONDS = 10.0
_log = structlog.stdlib.get_logger()
_NOW = {
    "sqlite": text("CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"),
    "postgresql": text("CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)"),
}


class Executors:
    """The leases of one engine's processes; every method blocks."""

    def __init__(self, url: str, schema: str, executor_id: str, lease_seconds: float) -> None:
        """Make the table if it is not there.

        Args:
            url: Database of the engine, which is there already.
            schema: Its schema, where the database has schemas.
            executor_id: Names this process.
            lease_seconds: How long after its last renewal a process is taken for dead.
        """
        parsed = make_url(url)
        self._sqlite = parsed.get_backend_name() == "sqlite"
        if not self._sqlite:
            parsed = parsed.set(drivername="postgresql+psycopg")
        self._engine = create_engine(parsed, pool_size=1, pool_pre_ping=True)
        if self._sqlite:
            event.listen(self._engine, "connect", _wait_for_others)
        self.executor_id = executor_id
        self._lease_ms = int(lease_seconds * 1000)
        self._table = Table(
            "ironworks_executors",
            MetaData(schema=None if self._sqlite else schema),
            Column("executor_id", String(128), primary_key=True),
            Column("lease_until_ms", BigInteger, nullable=False),
        )
        try:
            self._table.create(self._engine, checkfirst=True)
        except DBAPIError:  # another process made it in between
            self._table.create(self._engine, checkfirst=True)

    def _now_ms(self, connection: Connection) -> int:
        now = _NOW["sqlite" if self._sqlite else "postgresql"]
        return int(connection.execute(select(now)).scalar_one())

    def renew(self) -> bool:
        """Renew the lease; False if it had ended, or was never begun."""
        with self._engine.begin() as connection:
            now_ms = self._now_ms(connection)
            renewed = connection.execute(
                update(self._table)
                .where(
                    self._table.c.executor_id == self.executor_id,
                    self._table.c.lease_until_ms >= now_ms,
                )
                .values(lease_until_ms=now_ms + self._lease_ms)
            ).rowcount
            if not renewed:
                self._begin(connection, now_ms + self._lease_ms)
        return renewed == 1

    def _begin(self, connection: Connection, until_ms: int) -> None:
        upsert = (sqlite if self._sqlite else postgresql).insert(self._table)
        connection.execute(
            upsert.values(
                executor_id=self.executor_id, lease_until_ms=until_ms
            ).on_conflict_do_update(
                index_elements=["executor_id"], set_={"lease_until_ms": until_ms}
            )
        )

    def dead(self) -> list[str]:
        """Others whose lease has ended."""
        with self._engine.begin() as connection:
            now_ms = self._now_ms(connection)
            found = connection.execute(
                select(self._table.c.executor_id).where(
                    self._table.c.lease_until_ms < now_ms,
                    self._table.c.executor_id != self.executor_id,
                )
            )
            return sorted(found.scalars())

    def bury(self, executor_id: str) -> None:
        """Forget a dead one, unless it has come back meanwhile."""
        with self._engine.begin() as connection:
            now_ms = self._now_ms(connection)
            connection.execute(
                delete(self._table).where(
                    self._table.c.executor_id == executor_id,
                    self._table.c.lease_until_ms < now_ms,
                )
            )

    def end(self) -> None:
        """End the own lease at once: others take over what this process leaves."""
        with self._engine.begin() as connection:
            connection.execute(
                update(self._table)
                .where(self._table.c.executor_id == self.executor_id)
                .values(lease_until_ms=0)
            )

    def close(self) -> None:
        """Close the connection."""
        self._engine.dispose()


def _wait_for_others(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA busy_timeout=10000")


class Heartbeat:
    """A thread that renews the lease of this process and looks for those that died."""

    def __init__(
        self,
        executors: Executors,
        period_seconds: float,
        *,
        lost: Callable[[], None],
        recover: Callable[[str], int],
    ) -> None:
        """Nothing happens before `start`.

        Args:
            executors: The leases; closed by `end`.
            period_seconds: How often; several times in the length of a lease.
            lost: Gives up what is under way here; called when the own lease had ended.
            recover: Puts the runs of a process back into their queues; answers how many.
        """
        self._executors = executors
        self._period_seconds = period_seconds
        self._lost = lost
        self._recover = recover
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="executor-lease", daemon=True)

    def start(self) -> None:
        """Begin the lease, and renew it from now on."""
        self._executors.renew()
        self._thread.start()

    def stop(self) -> None:
        """Renew it no more."""
        self._stop.set()
        self._thread.join(_JOIN_SECONDS)

    def end(self) -> None:
        """End the lease: others take over what is left."""
        try:
            self._executors.end()
        except DBAPIError as error:
            # The database is away: it ends by itself.
            _log.info("executor_lease_not_ended", error=str(error.orig))
        self._executors.close()

    def beat(self) -> None:
        """Renew the lease, and take over from those who did not."""
        executors = self._executors
        if not executors.renew():
            _log.warning("executor_lease_had_ended", executor=executors.executor_id)
            self._lost()
            self._recover(executors.executor_id)
        for executor_id in executors.dead():
            runs = self._recover(executor_id)
            executors.bury(executor_id)
            _log.info("executor_gone", executor=executor_id, runs=runs)

    def _run(self) -> None:
        while not self._stop.wait(self._period_seconds):
            try:
                self.beat()
            except Exception as error:  # noqa: BLE001 - the database is away; it may come back
                _log.warning("executor_lease_not_renewed", error=str(error))
