"""PolicyService, and MemberService, which waits for tokens of other issuers."""

from __future__ import annotations

from typing import Any

from connectrpc.request import RequestContext

from ironworks.gatewayd.app.limits import LimitApp
from ironworks.gatewayd.types import TenantLimits
from ironworks.gen.ironworks.gatewayd.v1 import policies_pb
from ironworks.gen.ironworks.gatewayd.v1.policies_connect import PolicyService
from ironworks.gen.ironworks.gatewayd.v1.tenants_connect import MemberService
from ironworks.runtime.identity import current_caller

_Context = RequestContext[Any, Any]


def limits_to_wire(limits: TenantLimits) -> policies_pb.TenantLimits:
    """Limits as callers see them."""
    return policies_pb.TenantLimits(
        requests_per_second=limits.requests_per_second,
        request_burst=limits.request_burst,
        deployments=limits.deployments,
        vms=limits.vms,
        vcpus=limits.vcpus,
        memory_bytes=limits.memory_bytes,
        concurrent_jobs=limits.concurrent_jobs,
        api_keys=limits.api_keys,
    )


class PolicyHandlers(PolicyService):
    """PolicyService."""

    def __init__(self, app: LimitApp) -> None:
        self._app = app

    async def get_tenant_policy(
        self, request: policies_pb.GetTenantPolicyRequest, ctx: _Context
    ) -> policies_pb.GetTenantPolicyResponse:
        """See the API's reference."""
        del ctx
        tenant_id, limits = await self._app.limits(current_caller(), request.tenant_id)
        policy = policies_pb.TenantPolicy(
            tenant_id=tenant_id,
            effective=limits_to_wire(limits),
            own=policies_pb.TenantLimits(),
        )
        return policies_pb.GetTenantPolicyResponse(policy=policy)

    async def get_tenant_consumption(
        self, request: policies_pb.GetTenantConsumptionRequest, ctx: _Context
    ) -> policies_pb.GetTenantConsumptionResponse:
        """See the API's reference."""
        del ctx
        used, limits = await self._app.consumption(current_caller(), request.tenant_id)
        return policies_pb.GetTenantConsumptionResponse(
            used=limits_to_wire(used), effective=limits_to_wire(limits)
        )


class MemberHandlers(MemberService):
    """MemberService."""
