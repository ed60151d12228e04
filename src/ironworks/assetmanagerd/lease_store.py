"""Every SQL statement about leases, uploads and idempotency keys."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import TypeAdapter
from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select, update

from ironworks.assetmanagerd.tables import ASSETS, IDEMPOTENCY, LEASED, LEASES, UPLOADS
from ironworks.assetmanagerd.types import Facts, Lease, LeaseFilter, LeaseState, Upload, Who
from ironworks.model.pages import PageSpec
from ironworks.storage import idempotency
from ironworks.storage.prepared import Prepared, inserting

_FACTS = TypeAdapter(Facts)
_AnyRow = Row[tuple[object, ...]]

_INSERT = Prepared(inserting(LEASES))
_INSERT_LEASED = Prepared(inserting(LEASED))
_BY_ID = Prepared(
    select(LEASES, LEASED.c.asset_id)
    .join(LEASED, LEASED.c.lease_id == LEASES.c.lease_id)
    .where(LEASES.c.lease_id == bindparam("wanted"))
    .order_by(LEASED.c.position)
)
_END = Prepared(
    update(LEASES)
    .where(LEASES.c.lease_id == bindparam("wanted"))
    .values(state=bindparam("to_state"), ended_at_ns=bindparam("now_ns"))
)
_RENEW = (
    update(LEASES)
    .where(LEASES.c.lease_id == bindparam("wanted"))
    .values(expires_at_ns=bindparam("until_ns"), ttl_ns=bindparam("asked_ns"))
)


def _lease(row: _AnyRow, asset_ids: tuple[str, ...]) -> Lease:
    return Lease(
        lease_id=row.lease_id,
        tenant_id=row.tenant_id,
        asset_ids=asset_ids,
        owner=row.owner,
        holder=row.holder,
        purpose=row.purpose,
        state=LeaseState(row.state),
        created_at_ns=row.created_at_ns,
        expires_at_ns=row.expires_at_ns,
        ended_at_ns=row.ended_at_ns,
        ttl_ns=row.ttl_ns,
    )


def _with_assets(connection: Connection, rows: Sequence[_AnyRow]) -> list[Lease]:
    held: dict[str, list[str]] = {row.lease_id: [] for row in rows}
    statement = select(LEASED.c.lease_id, LEASED.c.asset_id).where(LEASED.c.lease_id.in_(held))
    for row in connection.execute(statement.order_by(LEASED.c.lease_id, LEASED.c.position)):
        held[row.lease_id].append(row.asset_id)
    return [_lease(row, tuple(held[row.lease_id])) for row in rows]


def insert_lease(connection: Connection, lease: Lease) -> None:
    """Add a lease and what it holds; the assets count it, see `store.use_assets`."""
    _INSERT.run(
        connection,
        lease_id=lease.lease_id,
        tenant_id=lease.tenant_id,
        owner=lease.owner,
        holder=lease.holder,
        purpose=lease.purpose,
        state=lease.state.value,
        created_at_ns=lease.created_at_ns,
        expires_at_ns=lease.expires_at_ns,
        ended_at_ns=lease.ended_at_ns,
        ttl_ns=lease.ttl_ns,
    )
    for position, asset_id in enumerate(lease.asset_ids):
        _INSERT_LEASED.run(
            connection, lease_id=lease.lease_id, position=position, asset_id=asset_id
        )


def read_lease(connection: Connection, lease_id: str) -> Lease | None:
    """One lease."""
    rows = _BY_ID.rows(connection, wanted=lease_id)
    return _lease(rows[0], tuple(row.asset_id for row in rows)) if rows else None


def read_leases(connection: Connection, lease_ids: Sequence[str]) -> list[Lease]:
    """Those of the leases that exist."""
    rows = connection.execute(select(LEASES).where(LEASES.c.lease_id.in_(lease_ids))).all()
    return _with_assets(connection, rows)


def list_leases(connection: Connection, query: LeaseFilter, page: PageSpec) -> list[Lease]:
    """Newest first; one more than the page, if there is one more."""
    statement = select(LEASES)
    if query.owner:
        statement = statement.where(LEASES.c.owner == query.owner)
    if query.holder:
        statement = statement.where(LEASES.c.holder == query.holder)
    if query.state:
        statement = statement.where(LEASES.c.state == query.state.value)
    if query.asset_id:
        holding = select(LEASED.c.lease_id).where(LEASED.c.asset_id == query.asset_id)
        statement = statement.where(LEASES.c.lease_id.in_(holding))
    if page.after:
        statement = statement.where(LEASES.c.lease_id < str(page.after[0]))
    statement = statement.order_by(LEASES.c.lease_id.desc()).limit(page.size + 1)
    return _with_assets(connection, connection.execute(statement).all())


def expired_leases(connection: Connection, now_ns: int, limit: int) -> list[Lease]:
    """ACTIVE leases whose time is over, oldest first."""
    statement = (
        select(LEASES)
        .where(LEASES.c.state == LeaseState.ACTIVE.value, LEASES.c.expires_at_ns <= now_ns)
        .order_by(LEASES.c.expires_at_ns)
        .limit(limit)
    )
    return _with_assets(connection, connection.execute(statement).all())


def renew_leases(connection: Connection, leases: Sequence[Lease]) -> None:
    """Write the ends of leases, and the times that their owners asked for."""
    rows = [
        {"wanted": one.lease_id, "until_ns": one.expires_at_ns, "asked_ns": one.ttl_ns}
        for one in leases
    ]
    if rows:
        connection.execute(_RENEW, rows)


def grace(connection: Connection, now_ns: int) -> int:
    """Let every ACTIVE lease last its TTL from now at least; answers how many were moved."""
    until_ns = now_ns + LEASES.c.ttl_ns
    result = connection.execute(
        update(LEASES)
        .where(LEASES.c.state == LeaseState.ACTIVE.value, LEASES.c.expires_at_ns < until_ns)
        .values(expires_at_ns=until_ns)
    )
    return result.rowcount


def postpone(connection: Connection, by_ns: int) -> int:
    """Move the end of every ACTIVE lease, because the clock was set; answers how many."""
    result = connection.execute(
        update(LEASES)
        .where(LEASES.c.state == LeaseState.ACTIVE.value)
        .values(expires_at_ns=LEASES.c.expires_at_ns + by_ns)
    )
    return result.rowcount


def end_lease(connection: Connection, lease_id: str, state: LeaseState, now_ns: int) -> None:
    """Write the end of a lease."""
    _END.run(connection, wanted=lease_id, to_state=state.value, now_ns=now_ns)


def forget_leases(connection: Connection, before_ns: int, limit: int) -> int:
    """Drop leases that ended before `before_ns`; answers how many."""
    statement = (
        select(LEASES.c.lease_id)
        .where(LEASES.c.state != LeaseState.ACTIVE.value, LEASES.c.ended_at_ns < before_ns)
        .limit(limit)
    )
    old = list(connection.execute(statement).scalars())
    connection.execute(delete(LEASED).where(LEASED.c.lease_id.in_(old)))
    connection.execute(delete(LEASES).where(LEASES.c.lease_id.in_(old)))
    return len(old)


def active_counts(connection: Connection) -> dict[str, int]:
    """Asset → how many ACTIVE leases hold it; without those that none holds."""
    statement = (
        select(LEASED.c.asset_id, func.count())
        .select_from(LEASED.join(LEASES, LEASES.c.lease_id == LEASED.c.lease_id))
        .where(LEASES.c.state == LeaseState.ACTIVE.value)
        .group_by(LEASED.c.asset_id)
    )
    return {row[0]: row[1] for row in connection.execute(statement)}


def leased_objects(connection: Connection) -> frozenset[str]:
    """Names of all objects that ACTIVE leases hold."""
    held = LEASED.join(LEASES, LEASES.c.lease_id == LEASED.c.lease_id).join(
        ASSETS, ASSETS.c.asset_id == LEASED.c.asset_id
    )
    statement = (
        select(ASSETS.c.object_name)
        .select_from(held)
        .where(LEASES.c.state == LeaseState.ACTIVE.value)
        .distinct()
    )
    return frozenset(connection.execute(statement).scalars())


# --- uploads --------------------------------------------------------------------------------------


def facts_bytes(facts: Facts) -> bytes:
    """Facts as they are stored; equal facts are equal bytes."""
    return _FACTS.dump_json(facts)


def _upload(row: _AnyRow | None) -> Upload | None:
    if row is None:
        return None
    return Upload(
        upload_id=row.upload_id,
        tenant_id=row.tenant_id,
        facts=_FACTS.validate_json(row.facts),
        idempotency_key=row.idempotency_key,
        expires_at_ns=row.expires_at_ns,
        asset_id=row.asset_id,
    )


def insert_upload(connection: Connection, upload: Upload) -> None:
    """Add an upload."""
    connection.execute(
        insert(UPLOADS).values(
            upload_id=upload.upload_id,
            tenant_id=upload.tenant_id,
            facts=facts_bytes(upload.facts).decode(),
            idempotency_key=upload.idempotency_key,
            expires_at_ns=upload.expires_at_ns,
            asset_id=upload.asset_id,
        )
    )


def read_upload(connection: Connection, who: Who, upload_id: str) -> Upload | None:
    """One upload, if `who` may know of it; the database leaves out those of others."""
    statement = select(UPLOADS).where(UPLOADS.c.upload_id == upload_id)
    if not who.sees_all:
        statement = statement.where(UPLOADS.c.tenant_id == who.tenant_id)
    return _upload(connection.execute(statement).one_or_none())


def find_upload(connection: Connection, tenant_id: str, key: str) -> Upload | None:
    """The upload that was started with this idempotency key."""
    statement = select(UPLOADS).where(
        UPLOADS.c.tenant_id == tenant_id, UPLOADS.c.idempotency_key == key
    )
    return _upload(connection.execute(statement).one_or_none())


def touch_upload(
    connection: Connection, upload_id: str, *, expires_at_ns: int, asset_id: str = ""
) -> None:
    """Keep an upload alive; note the asset that it has become."""
    connection.execute(
        update(UPLOADS)
        .where(UPLOADS.c.upload_id == upload_id)
        .values(expires_at_ns=expires_at_ns, asset_id=asset_id)
    )


def expired_uploads(connection: Connection, now_ns: int) -> list[Upload]:
    """Uploads that stood still for too long."""
    rows = connection.execute(select(UPLOADS).where(UPLOADS.c.expires_at_ns <= now_ns))
    return [found for row in rows if (found := _upload(row)) is not None]


def delete_upload(connection: Connection, upload_id: str) -> None:
    """Forget an upload."""
    connection.execute(delete(UPLOADS).where(UPLOADS.c.upload_id == upload_id))


def upload_names(connection: Connection) -> frozenset[str]:
    """Files of the staging area that belong to uploads."""
    rows = connection.execute(select(UPLOADS))
    return frozenset(found.staged_name for row in rows if (found := _upload(row)) is not None)


# --- idempotency ----------------------------------------------------------------------------------


def claim(
    connection: Connection, *, scope: str, key: str, request: bytes, resource_id: str, now_ns: int
) -> str:
    """See `storage.idempotency.claim`."""
    return idempotency.claim(
        connection,
        IDEMPOTENCY,
        scope=scope,
        key=key,
        request=request,
        resource_id=resource_id,
        now_ns=now_ns,
    )


def registered(connection: Connection, owner: str, key: str, facts: Facts) -> str | None:
    """SHA-256 of what an earlier registration with this key took; None: there was none."""
    if not key:
        return None
    scope, request = f"{owner}:register", facts_bytes(facts)
    known = idempotency.find(connection, IDEMPOTENCY, scope=scope, key=key, request=request)
    if known is None:
        return None
    return connection.execute(select(ASSETS.c.sha256).where(ASSETS.c.asset_id == known)).scalar()


def forget_keys(connection: Connection, now_ns: int) -> int:
    """Drop old idempotency keys."""
    return idempotency.forget(connection, IDEMPOTENCY, now_ns)
