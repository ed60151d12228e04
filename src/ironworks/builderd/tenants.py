"""What tenants set: SQL of policies, credentials and uploads, each in a transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from ironworks.builderd import policy as policies
from ironworks.builderd.policy import Policy
from ironworks.builderd.tables import CREDENTIALS, POLICIES, UPLOADS
from ironworks.model.errors import Aborted, ResourceExhausted

PLATFORM = "platform"
MAX_CREDENTIALS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A credential for a registry, or for what begins with `scope` in it.

    Attributes:
        secret: The password, encrypted.
    """

    tenant_id: str
    scope: str
    username: str
    secret: str
    updated_at_ns: int
    last_used_at_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """An archive that a client sends; `complete` once its digest has been checked."""

    upload_id: str
    tenant_id: str
    key: str
    sha256: str
    size_bytes: int
    complete: bool
    expires_at_ns: int


# --- policies -----------------------------------------------------------------------------------


def read_policy(connection: Connection, owner: str) -> tuple[Policy, int]:
    """A policy as declared, and its revision; 0: never set."""
    row = connection.execute(
        select(POLICIES.c.policy, POLICIES.c.revision).where(POLICIES.c.owner == owner)
    ).one_or_none()
    return (Policy(), 0) if row is None else (policies.decode(row.policy), row.revision)


def effective_policy(connection: Connection, tenant_id: str) -> Policy:
    """What is in force for a tenant."""
    platform, _ = read_policy(connection, PLATFORM)
    own, _ = read_policy(connection, tenant_id)
    return policies.narrow(platform, own)


def write_policy(
    connection: Connection, owner: str, policy: Policy, expected_revision: int, now_ns: int
) -> int:
    """Replace a policy; answers its revision.

    Raises:
        Aborted: it has another revision than the expected one.
    """
    _, revision = read_policy(connection, owner)
    if revision != expected_revision:
        raise Aborted(
            f"The policy has revision {revision}, not {expected_revision}.",
            hint="Read it again, then repeat your change.",
        )
    values = {
        "policy": policies.encode(policy),
        "revision": revision + 1,
        "updated_at_ns": now_ns,
    }
    if revision == 0:
        connection.execute(insert(POLICIES).values(owner=owner, **values))
    else:
        connection.execute(update(POLICIES).where(POLICIES.c.owner == owner).values(**values))
    return revision + 1


# --- credentials --------------------------------------------------------------------------------


def set_credential(connection: Connection, credential: Credential) -> None:
    """Store a credential, in place of one with the same scope.

    Raises:
        ResourceExhausted: the tenant has too many.
    """
    known = list_credentials(connection, credential.tenant_id)
    if any(one.scope == credential.scope for one in known):
        delete_credential(connection, credential.tenant_id, credential.scope)
    elif len(known) >= MAX_CREDENTIALS:
        raise ResourceExhausted(
            f"The tenant has {len(known)} credentials already.", hint="Delete some."
        )
    connection.execute(
        insert(CREDENTIALS).values(
            tenant_id=credential.tenant_id,
            scope=credential.scope,
            username=credential.username,
            secret=credential.secret,
            updated_at_ns=credential.updated_at_ns,
            last_used_at_ns=0,
        )
    )


def list_credentials(connection: Connection, tenant_id: str) -> list[Credential]:
    """A tenant's credentials by scope; of all tenants if `tenant_id` is empty."""
    statement = select(CREDENTIALS).order_by(CREDENTIALS.c.tenant_id, CREDENTIALS.c.scope)
    if tenant_id:
        statement = statement.where(CREDENTIALS.c.tenant_id == tenant_id)
    return [
        Credential(
            tenant_id=row.tenant_id,
            scope=row.scope,
            username=row.username,
            secret=row.secret,
            updated_at_ns=row.updated_at_ns,
            last_used_at_ns=row.last_used_at_ns,
        )
        for row in connection.execute(statement)
    ]


def delete_credential(connection: Connection, tenant_id: str, scope: str) -> None:
    """Remove a credential, if it is there."""
    connection.execute(
        delete(CREDENTIALS).where(
            CREDENTIALS.c.tenant_id == tenant_id, CREDENTIALS.c.scope == scope
        )
    )


def use_credential(connection: Connection, credential: Credential, now_ns: int) -> None:
    """Note that a build used it."""
    connection.execute(
        update(CREDENTIALS)
        .where(
            CREDENTIALS.c.tenant_id == credential.tenant_id,
            CREDENTIALS.c.scope == credential.scope,
        )
        .values(last_used_at_ns=now_ns)
    )


def encrypt_again(connection: Connection, credential: Credential, secret: str) -> None:
    """Put a new ciphertext in the place of the old one, unless the credential has changed."""
    connection.execute(
        update(CREDENTIALS)
        .where(
            CREDENTIALS.c.tenant_id == credential.tenant_id,
            CREDENTIALS.c.scope == credential.scope,
            CREDENTIALS.c.secret == credential.secret,
        )
        .values(secret=secret)
    )


def fitting(credentials: Sequence[Credential], source: str) -> Credential | None:
    """The credential of the longest scope that `source` (registry and repository) is in."""
    fits = [one for one in credentials if source == one.scope or source.startswith(f"{one.scope}/")]
    return max(fits, key=lambda one: len(one.scope), default=None)


# --- uploads ------------------------------------------------------------------------------------


def _upload(row: Row[Any]) -> Upload:
    return Upload(
        upload_id=row.upload_id,
        tenant_id=row.tenant_id,
        key=row.key,
        sha256=row.sha256,
        size_bytes=row.size_bytes,
        complete=bool(row.complete),
        expires_at_ns=row.expires_at_ns,
    )


def find_upload(connection: Connection, tenant_id: str, key: str) -> Upload | None:
    """The upload that a tenant began with this key."""
    row = connection.execute(
        select(UPLOADS).where(UPLOADS.c.tenant_id == tenant_id, UPLOADS.c.key == key)
    ).one_or_none()
    return None if row is None else _upload(row)


def read_upload(connection: Connection, tenant_id: str, upload_id: str) -> Upload | None:
    """A tenant's upload."""
    row = connection.execute(
        select(UPLOADS).where(UPLOADS.c.upload_id == upload_id, UPLOADS.c.tenant_id == tenant_id)
    ).one_or_none()
    return None if row is None else _upload(row)


def begin_upload(connection: Connection, upload: Upload, max_bytes: int) -> None:
    """Record a new upload; all its bytes count at once.

    Raises:
        ResourceExhausted: the tenant has no room left.
    """
    used = upload_bytes(connection, upload.tenant_id)
    if used + upload.size_bytes > max_bytes:
        raise ResourceExhausted(
            f"The archive has {upload.size_bytes} bytes, and of the tenant's {max_bytes} bytes "
            f"for uploads {used} are taken.",
            hint="Wait until earlier uploads have expired, or push the image to a registry.",
        )
    connection.execute(
        insert(UPLOADS).values(
            upload_id=upload.upload_id,
            tenant_id=upload.tenant_id,
            key=upload.key,
            sha256=upload.sha256,
            size_bytes=upload.size_bytes,
            complete=0,
            expires_at_ns=upload.expires_at_ns,
        )
    )


def upload_bytes(connection: Connection, tenant_id: str) -> int:
    """Bytes that a tenant's uploads take, or will."""
    return int(
        connection.execute(
            select(func.coalesce(func.sum(UPLOADS.c.size_bytes), 0)).where(
                UPLOADS.c.tenant_id == tenant_id
            )
        ).scalar_one()
    )


def keep_upload(
    connection: Connection, upload_id: str, expires_at_ns: int, *, complete: bool
) -> None:
    """Move the time at which an upload is removed."""
    connection.execute(
        update(UPLOADS)
        .where(UPLOADS.c.upload_id == upload_id)
        .values(expires_at_ns=expires_at_ns, complete=int(complete))
    )


def drop_upload(connection: Connection, upload_id: str) -> None:
    """Forget an upload."""
    connection.execute(delete(UPLOADS).where(UPLOADS.c.upload_id == upload_id))


def expired_uploads(connection: Connection, now_ns: int, limit: int) -> list[str]:
    """Uploads whose time is over."""
    statement = select(UPLOADS.c.upload_id).where(UPLOADS.c.expires_at_ns <= now_ns).limit(limit)
    return list(connection.execute(statement).scalars())
