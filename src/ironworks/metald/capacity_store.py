"""SQL of reservations and tenants' quotas: functions that take a `Connection`, as in `store`."""

from collections.abc import Sequence

from pydantic import TypeAdapter
from sqlalchemy import Connection, Row, delete, func, insert, select, tuple_

from ironworks.metald import store
from ironworks.metald.tables import QUOTAS, RESERVATIONS
from ironworks.metald.types import Reservation, Resources
from ironworks.model.pages import PageSpec

_RESOURCES = TypeAdapter(Resources)


def _reservation(row: Row[tuple[object, ...]]) -> Reservation:
    return Reservation(
        reservation_id=row.id,
        tenant_id=row.tenant_id,
        resources=_RESOURCES.validate_json(row.resources),
        committed=Resources(
            vcpus=row.vcpus,
            memory_bytes=row.memory_bytes,
            disk_bytes=row.disk_bytes,
            vms=row.vms,
        ),
        created_at_ns=row.created_at_ns,
        expires_at_ns=row.expires_at_ns,
    )


def write_reservation(connection: Connection, reservation: Reservation) -> None:
    """Make or replace a reservation."""
    drop_reservation(connection, reservation.reservation_id)
    counted = reservation.committed
    connection.execute(
        insert(RESERVATIONS).values(
            id=reservation.reservation_id,
            tenant_id=reservation.tenant_id,
            resources=_RESOURCES.dump_json(reservation.resources).decode(),
            vcpus=counted.vcpus,
            memory_bytes=counted.memory_bytes,
            disk_bytes=counted.disk_bytes,
            vms=counted.vms,
            created_at_ns=reservation.created_at_ns,
            expires_at_ns=reservation.expires_at_ns,
        )
    )


def find_reservation(
    connection: Connection, reservation_id: str, now_ns: int
) -> Reservation | None:
    """A reservation that has not expired."""
    row = connection.execute(
        select(RESERVATIONS).where(
            RESERVATIONS.c.id == reservation_id, RESERVATIONS.c.expires_at_ns > now_ns
        )
    ).one_or_none()
    return None if row is None else _reservation(row)


def drop_reservation(connection: Connection, reservation_id: str) -> None:
    """Give its capacity back. Idempotent."""
    connection.execute(delete(RESERVATIONS).where(RESERVATIONS.c.id == reservation_id))


def drop_expired(connection: Connection, now_ns: int) -> int:
    """Forget what has expired; answers how many."""
    expired = delete(RESERVATIONS).where(RESERVATIONS.c.expires_at_ns <= now_ns)
    return connection.execute(expired).rowcount


def list_reservations(
    connection: Connection, tenant_id: str | None, page: PageSpec, now_ns: int
) -> tuple[Sequence[Reservation], tuple[int, str] | None]:
    """A page of what has not expired, oldest first, and the sort keys of its end."""
    keys = (RESERVATIONS.c.created_at_ns, RESERVATIONS.c.id)
    statement = (
        select(RESERVATIONS)
        .where(RESERVATIONS.c.expires_at_ns > now_ns)
        .order_by(*keys)
        .limit(page.size + 1)
    )
    if tenant_id is not None:
        statement = statement.where(RESERVATIONS.c.tenant_id == tenant_id)
    if page.after:
        statement = statement.where(tuple_(*keys) > tuple_(*page.after))
    found = [_reservation(row) for row in connection.execute(statement)]
    if len(found) <= page.size:
        return found, None
    last = found[page.size - 1]
    return found[: page.size], (last.created_at_ns, last.reservation_id)


def reserved(connection: Connection, now_ns: int, tenant_id: str | None = None) -> Resources:
    """What reservations that have not expired set aside, in all or for a tenant."""
    statement = select(
        func.coalesce(func.sum(RESERVATIONS.c.vcpus), 0),
        func.coalesce(func.sum(RESERVATIONS.c.memory_bytes), 0),
        func.coalesce(func.sum(RESERVATIONS.c.disk_bytes), 0),
        func.coalesce(func.sum(RESERVATIONS.c.vms), 0),
    ).where(RESERVATIONS.c.expires_at_ns > now_ns)
    if tenant_id is not None:
        statement = statement.where(RESERVATIONS.c.tenant_id == tenant_id)
    row = connection.execute(statement).one()
    return Resources(
        vcpus=int(row[0]), memory_bytes=int(row[1]), disk_bytes=int(row[2]), vms=int(row[3])
    )


def taken(connection: Connection, now_ns: int, tenant_id: str | None = None) -> Resources:
    """What VMs and reservations together take, in all or for a tenant."""
    return store.committed(connection, tenant_id) + reserved(connection, now_ns, tenant_id)


def write_quota(connection: Connection, tenant_id: str, limit: Resources) -> None:
    """Set a tenant's quota; one without any limit is none."""
    connection.execute(delete(QUOTAS).where(QUOTAS.c.tenant_id == tenant_id))
    if limit != Resources():
        connection.execute(
            insert(QUOTAS).values(
                tenant_id=tenant_id, resources=_RESOURCES.dump_json(limit).decode()
            )
        )


def find_quota(connection: Connection, tenant_id: str) -> Resources:
    """A tenant's quota; 0 in a field is no limit."""
    row = connection.execute(select(QUOTAS).where(QUOTAS.c.tenant_id == tenant_id)).one_or_none()
    return Resources() if row is None else _RESOURCES.validate_json(row.resources)
