"""Tenants, their API keys, and the exchange of keys for tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import structlog
from sqlalchemy import Connection

from ironworks.gatewayd import decide
from ironworks.gatewayd.issuer import Issuer, hash_of, hint_of, new_secret
from ironworks.gatewayd.settings import GatewaydSettings
from ironworks.gatewayd.store import tenants as store
from ironworks.gatewayd.tables import IDEMPOTENCY
from ironworks.gatewayd.types import ApiKey, Tenant, TenantState
from ironworks.model.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    ResourceExhausted,
)
from ironworks.model.ids import check_name, new_id
from ironworks.model.pages import PageSpec
from ironworks.runtime.clock import Clock, Entropy
from ironworks.runtime.identity import Caller
from ironworks.runtime.identity.keys import write_private
from ironworks.storage.idempotency import claim
from ironworks.storage.sql import Database

_log = structlog.stdlib.get_logger()
OPERATOR_KEY_FILE = "operator.key"
_MAX_DISPLAY_CHARS = 200
_MAX_SECRET_CHARS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token that was given out, and for whom."""

    token: str
    expires_at_ns: int
    key: ApiKey


class TenantApp:
    """Use cases of tenants and keys."""

    def __init__(
        self,
        *,
        database: Database,
        issuer: Issuer,
        clock: Clock,
        entropy: Entropy,
        settings: GatewaydSettings,
    ) -> None:
        self._database = database
        self._issuer = issuer
        self._clock = clock
        self._entropy = entropy
        self._settings = settings

    @property
    def jwks_json(self) -> str:
        """Keys that verify our tokens."""
        return self._issuer.jwks_json

    @property
    def issuer_name(self) -> str:
        """`iss` of our tokens."""
        return self._issuer.name

    # --- tenants --------------------------------------------------------------------------------

    async def create_tenant(
        self, *, name: str, display_name: str, labels: Mapping[str, str], idempotency_key: str
    ) -> Tenant:
        """Open a tenant."""
        check_name(name)
        if len(display_name) > _MAX_DISPLAY_CHARS:
            raise InvalidRequest(f"display_name may have {_MAX_DISPLAY_CHARS} characters.")
        now_ns = self._clock.now_ns()
        tenant = Tenant(
            tenant_id=new_id("tnt", self._clock, self._entropy),
            name=name,
            display_name=display_name or name,
            state=TenantState.ACTIVE,
            reason="",
            labels=decide.check_labels(labels),
            created_at_ns=now_ns,
            updated_at_ns=now_ns,
        )

        def write(connection: Connection) -> Tenant:
            made = claim(
                connection,
                IDEMPOTENCY,
                scope="CreateTenant",
                key=idempotency_key,
                request=repr((name, display_name, sorted(labels.items()))).encode(),
                resource_id=tenant.tenant_id,
                now_ns=now_ns,
            )
            if made != tenant.tenant_id:
                return _found(store.find_tenant(connection, made))
            if store.find_tenant_by_name(connection, name) is not None:
                raise AlreadyExists(
                    f"There is a tenant {name} already.", hint="Choose another name."
                )
            store.add_tenant(connection, tenant)
            return tenant

        return await self._database.write(write)

    async def get_tenant(self, caller: Caller, tenant_id: str) -> Tenant:
        """One tenant, if the caller may see it."""
        if caller.kind == "service":
            wanted = tenant_id or caller.tenant_id
        else:
            wanted = decide.visible_tenant(caller, tenant_id)
        if wanted is None:
            raise _no_tenant()
        return _found(await self._database.read(lambda c: store.find_tenant(c, wanted)))

    async def list_tenants(self, page: PageSpec, states: Sequence[TenantState]) -> list[Tenant]:
        """One more than a page."""
        wanted = states or [state for state in TenantState if state is not TenantState.DELETED]
        return await self._database.read(lambda c: store.list_tenants(c, page, wanted))

    async def update_tenant(
        self,
        caller: Caller,
        *,
        tenant_id: str,
        display_name: str | None,
        labels: Mapping[str, str],
    ) -> Tenant:
        """Change what people see of a tenant."""
        wanted = decide.visible_tenant(caller, tenant_id)
        if wanted is None:
            raise _no_tenant()
        if display_name is not None and len(display_name) > _MAX_DISPLAY_CHARS:
            raise InvalidRequest(f"display_name may have {_MAX_DISPLAY_CHARS} characters.")

        def change(tenant: Tenant) -> Tenant:
            merged = {key: value for key, value in {**tenant.labels, **labels}.items() if value}
            return replace(
                tenant,
                labels=decide.check_labels(merged),
                display_name=tenant.display_name if display_name is None else display_name,
            )

        return await self._change_tenant(wanted, change)

    async def set_suspended(self, tenant_id: str, *, suspended: bool, reason: str) -> Tenant:
        """Suspend or resume a tenant."""

        def change(tenant: Tenant) -> Tenant:
            if tenant.state in {TenantState.DELETING, TenantState.DELETED}:
                raise FailedPrecondition(f"The tenant is {tenant.state.value}.")
            state = TenantState.SUSPENDED if suspended else TenantState.ACTIVE
            return replace(tenant, state=state, reason=reason[:500])

        return await self._change_tenant(tenant_id, change)

    async def _change_tenant(self, tenant_id: str, change: Callable[[Tenant], Tenant]) -> Tenant:
        now_ns = self._clock.now_ns()

        def write(connection: Connection) -> Tenant:
            tenant = _found(store.find_tenant(connection, tenant_id))
            changed = replace(change(tenant), updated_at_ns=now_ns)
            store.update_tenant(connection, changed)
            return changed

        return await self._database.write(write)

    # --- keys -----------------------------------------------------------------------------------

    async def create_api_key(
        self,
        caller: Caller,
        *,
        name: str,
        roles: Sequence[str],
        tenant_id: str,
        expires_at_ns: int,
        idempotency_key: str,
    ) -> tuple[ApiKey, str]:
        """A key and its secret; the secret is empty when the call is a repetition."""
        check_name(name)
        now_ns = self._clock.now_ns()
        owner = tenant_id or caller.tenant_id
        granted = decide.check_grant(caller, owner, roles)
        if expires_at_ns and expires_at_ns <= now_ns:
            raise InvalidRequest("expires_at_ns lies in the past.")
        secret = new_secret(self._entropy)
        key = ApiKey(
            api_key_id=new_id("key", self._clock, self._entropy),
            tenant_id=owner,
            name=name,
            roles=granted,
            hint=hint_of(secret),
            created_at_ns=now_ns,
            expires_at_ns=expires_at_ns,
            revoked_at_ns=0,
            last_used_at_ns=0,
        )

        def write(connection: Connection) -> tuple[ApiKey, str]:
            made = claim(
                connection,
                IDEMPOTENCY,
                scope=f"{caller.tenant_id}:CreateApiKey",
                key=idempotency_key,
                request=repr((name, granted, owner, expires_at_ns)).encode(),
                resource_id=key.api_key_id,
                now_ns=now_ns,
            )
            if made != key.api_key_id:
                return _found_key(store.find_api_key(connection, made)), ""
            self._check_owner(connection, owner, now_ns)
            store.add_api_key(connection, key, hash_of(secret))
            return key, secret

        return await self._database.write(write)

    def _check_owner(self, connection: Connection, owner: str | None, now_ns: int) -> None:
        if owner is not None:
            tenant = _found(store.find_tenant(connection, owner))
            if tenant.state in {TenantState.DELETING, TenantState.DELETED}:
                raise FailedPrecondition(f"The tenant is {tenant.state.value}.")
        limit = self._settings.limits.api_keys
        if store.count_living_api_keys(connection, owner, now_ns) >= limit:
            raise ResourceExhausted(
                f"There are {limit} keys already.", hint="Revoke those that are not used."
            )

    async def get_api_key(self, caller: Caller, api_key_id: str) -> ApiKey:
        """One key, if the caller may see it."""
        key = _found_key(await self._database.read(lambda c: store.find_api_key(c, api_key_id)))
        return _visible_key(caller, key)

    async def list_api_keys(
        self, caller: Caller, page: PageSpec, tenant_id: str, *, include_ended: bool
    ) -> list[ApiKey]:
        """One more than a page."""
        if not caller.is_operator and tenant_id not in {"", caller.tenant_id}:
            raise _no_tenant()
        owner = tenant_id or caller.tenant_id
        ended_at_ns = None if include_ended else self._clock.now_ns()
        return await self._database.read(
            lambda c: store.list_api_keys(c, page, owner, ended_at_ns=ended_at_ns)
        )

    async def revoke_api_key(self, caller: Caller, api_key_id: str) -> ApiKey:
        """End a key at once."""
        now_ns = self._clock.now_ns()

        def write(connection: Connection) -> ApiKey:
            key = _visible_key(caller, _found_key(store.find_api_key(connection, api_key_id)))
            if not caller.is_operator:
                # Whoever may not make such a key may not end it either.
                decide.check_grant(caller, key.tenant_id, key.roles)
            store.revoke_api_key(connection, api_key_id, now_ns)
            return _found_key(store.find_api_key(connection, api_key_id))

        return await self._database.write(write)

    # --- tokens ---------------------------------------------------------------------------------

    async def exchange(self, secret: str) -> Token:
        """A token for an API key."""
        now_ns = self._clock.now_ns()
        sha256 = hash_of(secret[:_MAX_SECRET_CHARS])

        def read(connection: Connection) -> tuple[ApiKey | None, Tenant | None]:
            key = store.find_api_key_by_secret(connection, sha256)
            if key is None or key.tenant_id is None:
                return key, None
            return key, store.find_tenant(connection, key.tenant_id)

        found, tenant = await self._database.read(read)
        key = decide.admit_key(found, tenant, now_ns)
        if now_ns - key.last_used_at_ns > store.LAST_USED_GRAIN_NS:
            await self._database.write(lambda c: store.note_api_key_used(c, key.api_key_id, now_ns))
        token, expires_at_ns = self._issuer.token(key)
        return Token(token=token, expires_at_ns=expires_at_ns, key=key)

    async def ensure_operator_key(self) -> Path:
        """Where the first operator's key is; made at the first start, readable by us alone.

        It is made again if the file is gone and no operator's key is left that could be used.
        """
        path = self._settings.directory / OPERATOR_KEY_FILE
        now_ns = self._clock.now_ns()
        if path.exists():
            secret = path.read_text().strip()
            known = await self._database.read(
                lambda c: store.find_api_key_by_secret(c, hash_of(secret))
            )
            if known is not None:
                return path
        living = await self._database.read(lambda c: store.count_living_api_keys(c, None, now_ns))
        if living and not path.exists():
            return path
        secret = new_secret(self._entropy)
        key = ApiKey(
            api_key_id=new_id("key", self._clock, self._entropy),
            tenant_id=None,
            name="operator",
            roles=("operator",),
            hint=hint_of(secret),
            created_at_ns=now_ns,
            expires_at_ns=0,
            revoked_at_ns=0,
            last_used_at_ns=0,
        )
        # The file first: after a crash between the two the next start makes both anew.
        write_private(path, secret.encode() + b"\n")
        await self._database.write(lambda c: store.add_api_key(c, key, hash_of(secret)))
        _log.info("operator_key_made", api_key_id=key.api_key_id)
        return path


def _no_tenant() -> NotFound:
    return NotFound("There is no such tenant.", hint="List tenants, or check the id.")


def _no_key() -> NotFound:
    return NotFound("There is no such API key.", hint="List keys, or check the id.")


def _found(tenant: Tenant | None) -> Tenant:
    if tenant is None:
        raise _no_tenant()
    return tenant


def _found_key(key: ApiKey | None) -> ApiKey:
    if key is None:
        raise _no_key()
    return key


def _visible_key(caller: Caller, key: ApiKey) -> ApiKey:
    if not caller.is_operator and key.tenant_id != caller.tenant_id:
        raise _no_key()
    return key
