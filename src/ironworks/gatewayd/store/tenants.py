"""Tenants and API keys."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import Connection, Row, func, or_, select, tuple_, update

from ironworks.gatewayd.tables import API_KEYS, TENANTS
from ironworks.gatewayd.types import ApiKey, Tenant, TenantState
from ironworks.model.pages import PageSpec
from ironworks.model.units import NS_PER_SECOND

LAST_USED_GRAIN_NS = 60 * NS_PER_SECOND


def _tenant(row: Row[Any]) -> Tenant:
    return Tenant(
        tenant_id=row.tenant_id,
        name=row.name,
        display_name=row.display_name,
        state=TenantState(row.state),
        reason=row.reason,
        labels=cast("dict[str, str]", json.loads(row.labels)),
        created_at_ns=row.created_at_ns,
        updated_at_ns=row.updated_at_ns,
    )


def _tenant_row(tenant: Tenant) -> dict[str, object]:
    return {
        "tenant_id": tenant.tenant_id,
        "name": tenant.name,
        "display_name": tenant.display_name,
        "state": tenant.state.value,
        "reason": tenant.reason,
        "labels": json.dumps(dict(tenant.labels), sort_keys=True),
        "created_at_ns": tenant.created_at_ns,
        "updated_at_ns": tenant.updated_at_ns,
    }


def add_tenant(connection: Connection, tenant: Tenant) -> None:
    """Insert a tenant."""
    connection.execute(TENANTS.insert().values(_tenant_row(tenant)))


def update_tenant(connection: Connection, tenant: Tenant) -> None:
    """Replace a tenant's row."""
    where = TENANTS.c.tenant_id == tenant.tenant_id
    connection.execute(update(TENANTS).where(where).values(_tenant_row(tenant)))


def find_tenant(connection: Connection, tenant_id: str) -> Tenant | None:
    """The tenant with this id, or None."""
    query = select(TENANTS).where(TENANTS.c.tenant_id == tenant_id)
    row = connection.execute(query).one_or_none()
    return None if row is None else _tenant(row)


def find_tenant_by_name(connection: Connection, name: str) -> Tenant | None:
    """The tenant with this name, or None."""
    row = connection.execute(select(TENANTS).where(TENANTS.c.name == name)).one_or_none()
    return None if row is None else _tenant(row)


def list_tenants(
    connection: Connection, page: PageSpec, states: Sequence[TenantState]
) -> list[Tenant]:
    """One more than a page of tenants, newest first."""
    query = select(TENANTS).where(TENANTS.c.state.in_([state.value for state in states]))
    if page.after:
        query = query.where(tuple_(TENANTS.c.created_at_ns, TENANTS.c.tenant_id) < page.after)
    order = (TENANTS.c.created_at_ns.desc(), TENANTS.c.tenant_id.desc())
    rows = connection.execute(query.order_by(*order).limit(page.size + 1))
    return [_tenant(row) for row in rows]


def _api_key(row: Row[Any]) -> ApiKey:
    return ApiKey(
        api_key_id=row.api_key_id,
        tenant_id=row.tenant_id,
        name=row.name,
        roles=tuple(row.roles.split(",")),
        hint=row.hint,
        created_at_ns=row.created_at_ns,
        expires_at_ns=row.expires_at_ns,
        revoked_at_ns=row.revoked_at_ns,
        last_used_at_ns=row.last_used_at_ns,
    )


def add_api_key(connection: Connection, key: ApiKey, secret_sha256: str) -> None:
    """Insert a key; of its secret only the hash."""
    connection.execute(
        API_KEYS.insert().values(
            api_key_id=key.api_key_id,
            tenant_id=key.tenant_id,
            name=key.name,
            roles=",".join(key.roles),
            hint=key.hint,
            secret_sha256=secret_sha256,
            created_at_ns=key.created_at_ns,
            expires_at_ns=key.expires_at_ns,
            revoked_at_ns=key.revoked_at_ns,
            last_used_at_ns=key.last_used_at_ns,
        )
    )


def find_api_key(connection: Connection, api_key_id: str) -> ApiKey | None:
    """The key with this id, or None."""
    query = select(API_KEYS).where(API_KEYS.c.api_key_id == api_key_id)
    row = connection.execute(query).one_or_none()
    return None if row is None else _api_key(row)


def find_api_key_by_secret(connection: Connection, secret_sha256: str) -> ApiKey | None:
    """The key whose secret has this hash, or None."""
    query = select(API_KEYS).where(API_KEYS.c.secret_sha256 == secret_sha256)
    row = connection.execute(query).one_or_none()
    return None if row is None else _api_key(row)


def _of_tenant(tenant_id: str | None) -> Any:
    column = API_KEYS.c.tenant_id
    return column.is_(None) if tenant_id is None else column == tenant_id


def _living(now_ns: int) -> Any:
    expires = API_KEYS.c.expires_at_ns
    return (API_KEYS.c.revoked_at_ns == 0) & or_(expires == 0, expires > now_ns)


def count_living_api_keys(connection: Connection, tenant_id: str | None, now_ns: int) -> int:
    """How many keys of a tenant (None: of operators) can be exchanged."""
    query = select(func.count()).select_from(API_KEYS)
    return connection.execute(query.where(_of_tenant(tenant_id), _living(now_ns))).scalar_one()


def list_api_keys(
    connection: Connection, page: PageSpec, tenant_id: str | None, *, ended_at_ns: int | None
) -> list[ApiKey]:
    """One more than a page of keys, newest first.

    Args:
        connection: The transaction.
        page: Which page.
        tenant_id: Whose; None: operators'.
        ended_at_ns: Leave out those that have ended at this time; None: all.
    """
    query = select(API_KEYS).where(_of_tenant(tenant_id))
    if ended_at_ns is not None:
        query = query.where(_living(ended_at_ns))
    if page.after:
        query = query.where(tuple_(API_KEYS.c.created_at_ns, API_KEYS.c.api_key_id) < page.after)
    order = (API_KEYS.c.created_at_ns.desc(), API_KEYS.c.api_key_id.desc())
    rows = connection.execute(query.order_by(*order).limit(page.size + 1))
    return [_api_key(row) for row in rows]


def revoke_api_key(connection: Connection, api_key_id: str, now_ns: int) -> None:
    """End a key; one that has ended keeps its time."""
    connection.execute(
        update(API_KEYS)
        .where(API_KEYS.c.api_key_id == api_key_id, API_KEYS.c.revoked_at_ns == 0)
        .values(revoked_at_ns=now_ns)
    )


def note_api_key_used(connection: Connection, api_key_id: str, now_ns: int) -> None:
    """Remember that a key was used now."""
    connection.execute(
        update(API_KEYS).where(API_KEYS.c.api_key_id == api_key_id).values(last_used_at_ns=now_ns)
    )
