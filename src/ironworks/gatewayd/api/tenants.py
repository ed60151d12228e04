"""TenantService, ApiKeyService, TokenService."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from connectrpc.request import RequestContext

from ironworks.gatewayd import decide
from ironworks.gatewayd.api.paging import cut, page_of
from ironworks.gatewayd.app.tenants import TenantApp
from ironworks.gatewayd.types import ApiKey, Tenant, TenantState
from ironworks.gen.ironworks.gatewayd.v1 import api_keys_pb, roles_pb, tenants_pb, tokens_pb
from ironworks.gen.ironworks.gatewayd.v1.api_keys_connect import ApiKeyService
from ironworks.gen.ironworks.gatewayd.v1.tenants_connect import TenantService
from ironworks.gen.ironworks.gatewayd.v1.tokens_connect import TokenService
from ironworks.model.errors import InvalidRequest
from ironworks.runtime.identity import current_caller

_Context = RequestContext[Any, Any]
_STATES = {
    TenantState.ACTIVE: tenants_pb.TenantState.ACTIVE,
    TenantState.SUSPENDED: tenants_pb.TenantState.SUSPENDED,
    TenantState.DELETING: tenants_pb.TenantState.DELETING,
    TenantState.DELETED: tenants_pb.TenantState.DELETED,
}
_STATES_BACK = {wire: state for state, wire in _STATES.items()}


def roles_to_wire(roles: Sequence[str]) -> list[roles_pb.Role]:
    """`developer` → ROLE_DEVELOPER."""
    return [roles_pb.Role[role.upper()] for role in roles]


def roles_from_wire(roles: Sequence[roles_pb.Role]) -> list[str]:
    """ROLE_DEVELOPER → `developer`."""
    names: list[str] = []
    for role in roles:
        if role not in roles_pb.Role.__members__.values() or role is roles_pb.Role.UNSPECIFIED:
            raise InvalidRequest("roles holds one that does not exist.")
        names.append(role.name.lower())
    return names


def tenant_to_wire(tenant: Tenant) -> tenants_pb.Tenant:
    """A tenant as callers see it."""
    return tenants_pb.Tenant(
        tenant_id=tenant.tenant_id,
        name=tenant.name,
        display_name=tenant.display_name,
        state=_STATES[tenant.state],
        labels=dict(tenant.labels),
        created_at_ns=tenant.created_at_ns,
        updated_at_ns=tenant.updated_at_ns,
        endpoint_suffix=decide.endpoint_suffix(tenant.tenant_id),
    )


def api_key_to_wire(key: ApiKey) -> api_keys_pb.ApiKey:
    """A key as callers see it."""
    return api_keys_pb.ApiKey(
        api_key_id=key.api_key_id,
        tenant_id=key.tenant_id or "",
        name=key.name,
        roles=roles_to_wire(key.roles),
        hint=key.hint,
        created_at_ns=key.created_at_ns,
        expires_at_ns=key.expires_at_ns,
        revoked_at_ns=key.revoked_at_ns,
        last_used_at_ns=key.last_used_at_ns,
    )


class TenantHandlers(TenantService):
    """TenantService."""

    def __init__(self, app: TenantApp) -> None:
        self._app = app

    async def create_tenant(
        self, request: tenants_pb.CreateTenantRequest, ctx: _Context
    ) -> tenants_pb.CreateTenantResponse:
        """See the API's reference."""
        del ctx
        tenant = await self._app.create_tenant(
            name=request.name,
            display_name=request.display_name,
            labels=dict(request.labels),
            idempotency_key=request.idempotency_key,
        )
        return tenants_pb.CreateTenantResponse(tenant=tenant_to_wire(tenant))

    async def get_tenant(
        self, request: tenants_pb.GetTenantRequest, ctx: _Context
    ) -> tenants_pb.GetTenantResponse:
        """See the API's reference."""
        del ctx
        tenant = await self._app.get_tenant(current_caller(), request.tenant_id)
        return tenants_pb.GetTenantResponse(tenant=tenant_to_wire(tenant))

    async def list_tenants(
        self, request: tenants_pb.ListTenantsRequest, ctx: _Context
    ) -> tenants_pb.ListTenantsResponse:
        """See the API's reference."""
        del ctx
        states = [_STATES_BACK[state] for state in request.states if state in _STATES_BACK]
        names = sorted(state.value for state in states)
        page = page_of(request.page, names)
        found = await self._app.list_tenants(page, states)
        items, info = cut(found, page, lambda one: (one.created_at_ns, one.tenant_id), names)
        return tenants_pb.ListTenantsResponse(
            tenants=[tenant_to_wire(one) for one in items], page=info
        )

    async def update_tenant(
        self, request: tenants_pb.UpdateTenantRequest, ctx: _Context
    ) -> tenants_pb.UpdateTenantResponse:
        """See the API's reference."""
        del ctx
        named = request.has_field("display_name")
        tenant = await self._app.update_tenant(
            current_caller(),
            tenant_id=request.tenant_id,
            display_name=request.display_name if named else None,
            labels=dict(request.labels),
        )
        return tenants_pb.UpdateTenantResponse(tenant=tenant_to_wire(tenant))

    async def suspend_tenant(
        self, request: tenants_pb.SuspendTenantRequest, ctx: _Context
    ) -> tenants_pb.SuspendTenantResponse:
        """See the API's reference."""
        del ctx
        tenant = await self._app.set_suspended(
            request.tenant_id, suspended=True, reason=request.reason
        )
        return tenants_pb.SuspendTenantResponse(tenant=tenant_to_wire(tenant))

    async def resume_tenant(
        self, request: tenants_pb.ResumeTenantRequest, ctx: _Context
    ) -> tenants_pb.ResumeTenantResponse:
        """See the API's reference."""
        del ctx
        tenant = await self._app.set_suspended(request.tenant_id, suspended=False, reason="")
        return tenants_pb.ResumeTenantResponse(tenant=tenant_to_wire(tenant))


class ApiKeyHandlers(ApiKeyService):
    """ApiKeyService."""

    def __init__(self, app: TenantApp) -> None:
        self._app = app

    async def create_api_key(
        self, request: api_keys_pb.CreateApiKeyRequest, ctx: _Context
    ) -> api_keys_pb.CreateApiKeyResponse:
        """See the API's reference."""
        del ctx
        key, secret = await self._app.create_api_key(
            current_caller(),
            name=request.name,
            roles=roles_from_wire(request.roles),
            tenant_id=request.tenant_id,
            expires_at_ns=request.expires_at_ns,
            idempotency_key=request.idempotency_key,
        )
        return api_keys_pb.CreateApiKeyResponse(api_key=api_key_to_wire(key), secret=secret)

    async def get_api_key(
        self, request: api_keys_pb.GetApiKeyRequest, ctx: _Context
    ) -> api_keys_pb.GetApiKeyResponse:
        """See the API's reference."""
        del ctx
        key = await self._app.get_api_key(current_caller(), request.api_key_id)
        return api_keys_pb.GetApiKeyResponse(api_key=api_key_to_wire(key))

    async def list_api_keys(
        self, request: api_keys_pb.ListApiKeysRequest, ctx: _Context
    ) -> api_keys_pb.ListApiKeysResponse:
        """See the API's reference."""
        del ctx
        filters = (request.tenant_id, request.include_ended)
        page = page_of(request.page, *filters)
        found = await self._app.list_api_keys(
            current_caller(), page, request.tenant_id, include_ended=request.include_ended
        )
        items, info = cut(found, page, lambda one: (one.created_at_ns, one.api_key_id), *filters)
        return api_keys_pb.ListApiKeysResponse(
            api_keys=[api_key_to_wire(one) for one in items], page=info
        )

    async def revoke_api_key(
        self, request: api_keys_pb.RevokeApiKeyRequest, ctx: _Context
    ) -> api_keys_pb.RevokeApiKeyResponse:
        """See the API's reference."""
        del ctx
        key = await self._app.revoke_api_key(current_caller(), request.api_key_id)
        return api_keys_pb.RevokeApiKeyResponse(api_key=api_key_to_wire(key))


class TokenHandlers(TokenService):
    """TokenService."""

    def __init__(self, app: TenantApp) -> None:
        self._app = app

    async def exchange_token(
        self, request: tokens_pb.ExchangeTokenRequest, ctx: _Context
    ) -> tokens_pb.ExchangeTokenResponse:
        """See the API's reference."""
        del ctx
        given = await self._app.exchange(request.api_key)
        return tokens_pb.ExchangeTokenResponse(
            token=given.token,
            expires_at_ns=given.expires_at_ns,
            tenant_id=given.key.tenant_id or "",
            roles=roles_to_wire(given.key.roles),
        )

    async def get_jwks(
        self, request: tokens_pb.GetJwksRequest, ctx: _Context
    ) -> tokens_pb.GetJwksResponse:
        """See the API's reference."""
        del request, ctx
        return tokens_pb.GetJwksResponse(
            jwks_json=self._app.jwks_json, issuer=self._app.issuer_name
        )

    async def who_am_i(
        self, request: tokens_pb.WhoAmIRequest, ctx: _Context
    ) -> tokens_pb.WhoAmIResponse:
        """See the API's reference."""
        del request, ctx
        caller = current_caller()
        name = ""
        if caller.tenant_id is not None:
            name = (await self._app.get_tenant(caller, "")).name
        return tokens_pb.WhoAmIResponse(
            subject=caller.subject,
            tenant_id=caller.tenant_id or "",
            tenant_name=name,
            roles=roles_to_wire(sorted(caller.roles)),
        )
