"""Idempotency keys: a mutation that is repeated with its key answers the same and does no more.

A service adds `idempotency_table(metadata)` to its store and calls `claim` in the transaction that
makes its change. What is stored is the id of what the first request made, never its answer: the
answer is read again, so that a repeat sees the present.
"""

from __future__ import annotations

import hashlib
from functools import cache

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    MetaData,
    String,
    Table,
    bindparam,
    delete,
    select,
)

from ironworks.model.errors import AlreadyExists, InvalidRequest
from ironworks.model.units import NS_PER_DAY
from ironworks.storage.prepared import Prepared, inserting

MAX_KEY_CHARS = 128
KEEP_NS = NS_PER_DAY
"""How long a key is remembered at least."""


def idempotency_table(metadata: MetaData) -> Table:
    """The table that a service's store and first migration have."""
    return Table(
        "idempotency_keys",
        metadata,
        Column("scope", String(200), primary_key=True),
        Column("key", String(MAX_KEY_CHARS), primary_key=True),
        Column("request_sha256", String(64), nullable=False),
        Column("resource_id", String(64), nullable=False),
        Column("at_ns", BigInteger, nullable=False, index=True),
    )


def claim(
    connection: Connection,
    table: Table,
    *,
    scope: str,
    key: str,
    request: bytes,
    resource_id: str,
    now_ns: int,
) -> str:
    """The id of the resource that this request is about: `resource_id`, or an earlier one.

    Args:
        connection: The transaction in which the change is made.
        table: The service's `idempotency_table`.
        scope: Tenant and method, so that keys of different callers never meet.
        key: The caller's key; empty means the caller wants no protection.
        request: The request's bytes without the key: another content under the same key is a fault.
        resource_id: The id that a first request gives to what it makes.
        now_ns: The time.

    Raises:
        AlreadyExists: the key was used for another request.
        InvalidRequest: the key is too long.
    """
    if not key:
        return resource_id
    earlier = find(connection, table, scope=scope, key=key, request=request)
    if earlier is not None:
        return earlier
    _statements(table)[1].run(
        connection,
        scope=scope,
        key=key,
        request_sha256=hashlib.sha256(request).hexdigest(),
        resource_id=resource_id,
        at_ns=now_ns,
    )
    return resource_id


@cache
def _statements(table: Table) -> tuple[Prepared, Prepared]:
    """Those that every mutation runs."""
    found = select(table.c.request_sha256, table.c.resource_id).where(
        table.c.scope == bindparam("in_scope"), table.c.key == bindparam("with_key")
    )
    return Prepared(found), Prepared(inserting(table))


def find(
    connection: Connection, table: Table, *, scope: str, key: str, request: bytes
) -> str | None:
    """The id of the resource that an earlier request with this key was about; None: there is none.

    Raises:
        AlreadyExists: the key was used for another request.
        InvalidRequest: the key is too long.
    """
    if len(key) > MAX_KEY_CHARS:
        raise InvalidRequest(f"idempotency_key may have at most {MAX_KEY_CHARS} characters.")
    rows = _statements(table)[0].rows(connection, in_scope=scope, with_key=key)
    if not rows:
        return None
    row = rows[0]
    if row.request_sha256 != hashlib.sha256(request).hexdigest():
        raise AlreadyExists(
            "This idempotency_key was used for another request.",
            hint="Use a new key for a new request.",
        )
    return str(row.resource_id)


def forget(connection: Connection, table: Table, now_ns: int) -> int:
    """Drop the keys that are older than `KEEP_NS`; answers how many."""
    result = connection.execute(delete(table).where(table.c.at_ns < now_ns - KEEP_NS))
    return result.rowcount
