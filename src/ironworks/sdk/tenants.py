"""Tenants: the customers of a platform. For operators."""

from __future__ import annotations

from collections.abc import Sequence

from ironworks.gen.ironworks.common.v1 import common_pb
from ironworks.gen.ironworks.gatewayd.v1 import tenants_pb, tokens_pb
from ironworks.gen.ironworks.gatewayd.v1.tenants_connect import TenantServiceClient
from ironworks.gen.ironworks.gatewayd.v1.tokens_connect import TokenServiceClient
from ironworks.sdk.resource import DEFAULT_LIMIT, Page, Resource, present, walk


class Tenants(Resource):
    """Tenants, and who the caller is."""

    async def whoami(self) -> tokens_pb.WhoAmIResponse:
        """What the API key proves: its tenant and its roles."""
        return await self._connection.call(
            TokenServiceClient, TokenServiceClient.who_am_i, tokens_pb.WhoAmIRequest()
        )

    async def create(
        self, name: str, *, display_name: str = "", idempotency_key: str = ""
    ) -> tenants_pb.Tenant:
        """Open a tenant; `name` is unique on the platform.

        Raises:
            AlreadyExists: another tenant has the name.
        """
        request = tenants_pb.CreateTenantRequest(
            name=name, display_name=display_name, idempotency_key=idempotency_key
        )
        answer = await self._connection.call(
            TenantServiceClient, TenantServiceClient.create_tenant, request
        )
        return present(answer.tenant)

    async def get(self, tenant_id: str = "") -> tenants_pb.Tenant:
        """One tenant; the caller's own without an id."""
        request = tenants_pb.GetTenantRequest(tenant_id=tenant_id)
        answer = await self._connection.call(
            TenantServiceClient, TenantServiceClient.get_tenant, request
        )
        return present(answer.tenant)

    async def list(
        self,
        *,
        states: Sequence[tenants_pb.TenantState] = (),
        limit: int = DEFAULT_LIMIT,
        page_token: str = "",
    ) -> Page[tenants_pb.Tenant]:
        """Tenants, newest first; without `states` all but deleted ones."""

        async def ask(page: common_pb.PageRequest) -> tenants_pb.ListTenantsResponse:
            request = tenants_pb.ListTenantsRequest(page=page, states=[*states])
            return await self._connection.call(
                TenantServiceClient, TenantServiceClient.list_tenants, request
            )

        return await walk(ask, lambda a: a.tenants, limit=limit, page_token=page_token)

    async def delete(self, tenant_id: str, *, idempotency_key: str = "") -> str:
        """Close a tenant; returns the job that removes what it runs."""
        request = tenants_pb.DeleteTenantRequest(
            tenant_id=tenant_id, idempotency_key=idempotency_key
        )
        answer = await self._connection.call(
            TenantServiceClient, TenantServiceClient.delete_tenant, request
        )
        return answer.job_id
