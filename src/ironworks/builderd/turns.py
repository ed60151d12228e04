"""Who builds what: SQL of turns and of the locks on what is built, each in a transaction.

A turn is one run of the durable queue. It takes up the build whose turn it is when it comes, so the
order among waiting builds is decided late, in one place. A turn that begins again after its worker
died finds the build that it had.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, func, select, update

from ironworks.builderd import store
from ironworks.builderd.decide import Waiting, choose, fail, take_up
from ironworks.builderd.tables import BUILDS, LOCKS, SERVED
from ironworks.builderd.types import ENDED, Build, BuildState
from ironworks.model.errors import Internal

_ENDED = [state.value for state in ENDED]
_WORKING = [state.value for state in BuildState if state not in {*ENDED, BuildState.QUEUED}]
MAX_TENANTS = 10_000
"""Tenants with waiting builds that one decision looks at."""


def waiting(connection: Connection) -> Sequence[Waiting]:
    """The next build of each tenant that has one waiting."""
    queued = BUILDS.c.state == BuildState.QUEUED.value
    ranked = (
        select(
            BUILDS.c.build_id,
            BUILDS.c.tenant_id,
            func.row_number()
            .over(
                partition_by=BUILDS.c.tenant_id,
                order_by=(BUILDS.c.priority.desc(), BUILDS.c.build_id),
            )
            .label("place"),
        )
        .where(queued)
        .subquery()
    )
    rows = connection.execute(
        select(ranked.c.build_id, ranked.c.tenant_id)
        .where(ranked.c.place == 1)
        .order_by(ranked.c.build_id)
        .limit(MAX_TENANTS)
    ).all()
    running = {
        row.tenant_id: int(row.running)
        for row in connection.execute(
            select(BUILDS.c.tenant_id, func.count().label("running"))
            .where(BUILDS.c.state.in_(_WORKING))
            .group_by(BUILDS.c.tenant_id)
        )
    }
    served = {
        row.tenant_id: row.served_at_ns
        for row in connection.execute(
            select(SERVED).where(SERVED.c.tenant_id.in_([row.tenant_id for row in rows]))
        )
    }
    return [
        Waiting(
            build_id=row.build_id,
            tenant_id=row.tenant_id,
            running=running.get(row.tenant_id, 0),
            served_at_ns=served.get(row.tenant_id, 0),
        )
        for row in rows
    ]


def begin(
    connection: Connection,
    turn: str,
    worker: str,
    *,
    max_per_tenant: int,
    max_attempts: int,
    now_ns: int,
) -> Build | bool:
    """The build that this turn takes up, taken up.

    Returns:
        True if builds wait, but each tenant that has one has as many running as it may;
        False if none waits.
    """
    mine = _mine(connection, turn)
    if mine is not None and mine.attempt_count >= max_attempts:
        error = Internal(
            f"The build's worker died {mine.attempt_count} times.", hint="Ask the operator why."
        )
        failed = store.change_build(connection, mine, fail(mine, error, now_ns), now_ns)
        store.append_log(connection, mine.build_id, failed.state, f"Failed: {error}", now_ns)
        mine = None
    if mine is None:
        candidates = waiting(connection)
        chosen = choose(candidates, max_per_tenant)
        if chosen is None:
            return bool(candidates)
        mine = store.read_build(connection, chosen.build_id)
        if mine is None:
            return True
        _serve(connection, chosen.tenant_id, now_ns)
    after = store.change_build(connection, mine, take_up(mine, worker, now_ns, turn), now_ns)
    store.append_log(connection, mine.build_id, after.state, f"Taken up by {worker}.", now_ns)
    return after


def _mine(connection: Connection, turn: str) -> Build | None:
    build_id = connection.execute(
        select(BUILDS.c.build_id).where(
            BUILDS.c.turn == turn, BUILDS.c.state.not_in([*_ENDED, BuildState.QUEUED.value])
        )
    ).scalar()
    return None if build_id is None else store.read_build(connection, build_id)


def _serve(connection: Connection, tenant_id: str, now_ns: int) -> None:
    known = connection.execute(
        update(SERVED).where(SERVED.c.tenant_id == tenant_id).values(served_at_ns=now_ns)
    )
    if not known.rowcount:
        connection.execute(SERVED.insert().values(tenant_id=tenant_id, served_at_ns=now_ns))


def lock(connection: Connection, key: str, build_id: str, until_ns: int, now_ns: int) -> str:
    """Who may build what `key` stands for, `build_id` if nobody else does; renews its lock too."""
    holder = connection.execute(select(LOCKS).where(LOCKS.c.key == key)).one_or_none()
    if holder is None:
        connection.execute(LOCKS.insert().values(key=key, build_id=build_id, until_ns=until_ns))
        return build_id
    if holder.build_id != build_id and holder.until_ns > now_ns:
        return holder.build_id
    connection.execute(
        update(LOCKS).where(LOCKS.c.key == key).values(build_id=build_id, until_ns=until_ns)
    )
    return build_id


def unlock(connection: Connection, build_id: str) -> None:
    """Give back what this build holds."""
    connection.execute(delete(LOCKS).where(LOCKS.c.build_id == build_id))


def renew(connection: Connection, build_id: str, until_ns: int) -> None:
    """Go on holding what this build holds."""
    connection.execute(update(LOCKS).where(LOCKS.c.build_id == build_id).values(until_ns=until_ns))
