"""Who may call gatewayd."""

from __future__ import annotations

from collections.abc import Mapping

from ironworks.runtime.access.rule import ADMINS, OPERATORS, READERS, WRITERS, Access

_EVERYONE = frozenset({"owner", "admin", "developer", "billing", "viewer", "operator"})
_MEMBERS = _EVERYONE - OPERATORS
_TENANT_ADMINS = ADMINS - OPERATORS
_DEPLOYERS = WRITERS - OPERATORS
_METALD = frozenset({"metald"})
_BILLING_SERVICES = frozenset({"billaged", "aggregatord"})
_PACKAGE = "ironworks.gatewayd.v1"

ACCESS: Mapping[str, Access] = {
    f"{_PACKAGE}.TenantService/CreateTenant": Access(roles=OPERATORS),
    f"{_PACKAGE}.TenantService/GetTenant": Access(roles=_EVERYONE, services=_BILLING_SERVICES),
    f"{_PACKAGE}.TenantService/ListTenants": Access(roles=OPERATORS, services=_BILLING_SERVICES),
    f"{_PACKAGE}.TenantService/UpdateTenant": Access(roles=ADMINS),
    f"{_PACKAGE}.TenantService/SuspendTenant": Access(roles=OPERATORS),
    f"{_PACKAGE}.TenantService/ResumeTenant": Access(roles=OPERATORS),
    f"{_PACKAGE}.TenantService/DeleteTenant": Access(roles=OPERATORS),
    f"{_PACKAGE}.MemberService/AddMember": Access(roles=_TENANT_ADMINS),
    f"{_PACKAGE}.MemberService/ListMembers": Access(roles=_MEMBERS),
    f"{_PACKAGE}.MemberService/UpdateMember": Access(roles=_TENANT_ADMINS),
    f"{_PACKAGE}.MemberService/RemoveMember": Access(roles=_TENANT_ADMINS),
    f"{_PACKAGE}.ApiKeyService/CreateApiKey": Access(roles=ADMINS),
    f"{_PACKAGE}.ApiKeyService/GetApiKey": Access(roles=ADMINS),
    f"{_PACKAGE}.ApiKeyService/ListApiKeys": Access(roles=ADMINS),
    f"{_PACKAGE}.ApiKeyService/RevokeApiKey": Access(roles=ADMINS),
    f"{_PACKAGE}.TokenService/ExchangeToken": Access(anonymous=True),
    f"{_PACKAGE}.TokenService/GetJwks": Access(anonymous=True),
    f"{_PACKAGE}.TokenService/WhoAmI": Access(roles=_EVERYONE),
    f"{_PACKAGE}.DeploymentService/CreateDeployment": Access(roles=_DEPLOYERS),
    f"{_PACKAGE}.DeploymentService/GetDeployment": Access(roles=READERS),
    f"{_PACKAGE}.DeploymentService/ListDeployments": Access(roles=READERS),
    f"{_PACKAGE}.DeploymentService/WatchDeployment": Access(roles=READERS),
    f"{_PACKAGE}.DeploymentService/UpdateDeployment": Access(roles=_DEPLOYERS),
    f"{_PACKAGE}.DeploymentService/ScaleDeployment": Access(roles=_DEPLOYERS),
    f"{_PACKAGE}.DeploymentService/DeleteDeployment": Access(roles=WRITERS),
    f"{_PACKAGE}.JobService/GetJob": Access(roles=READERS),
    f"{_PACKAGE}.JobService/ListJobs": Access(roles=READERS),
    f"{_PACKAGE}.JobService/WatchJob": Access(roles=READERS),
    f"{_PACKAGE}.JobService/CancelJob": Access(roles=WRITERS),
    f"{_PACKAGE}.HostDirectoryService/RegisterHost": Access(services=_METALD),
    f"{_PACKAGE}.HostDirectoryService/Heartbeat": Access(services=_METALD),
    f"{_PACKAGE}.HostDirectoryService/GetHost": Access(roles=OPERATORS),
    f"{_PACKAGE}.HostDirectoryService/ListHosts": Access(
        roles=OPERATORS, services=_BILLING_SERVICES
    ),
    f"{_PACKAGE}.HostDirectoryService/CordonHost": Access(roles=OPERATORS),
    f"{_PACKAGE}.HostDirectoryService/UncordonHost": Access(roles=OPERATORS),
    f"{_PACKAGE}.HostDirectoryService/DrainHost": Access(roles=OPERATORS),
    f"{_PACKAGE}.HostDirectoryService/RemoveHost": Access(roles=OPERATORS),
    f"{_PACKAGE}.PolicyService/GetTenantPolicy": Access(roles=_EVERYONE),
    f"{_PACKAGE}.PolicyService/SetTenantPolicy": Access(roles=OPERATORS),
    f"{_PACKAGE}.PolicyService/GetTenantConsumption": Access(roles=_EVERYONE),
    f"{_PACKAGE}.GatewayService/GetGatewayStatus": Access(roles=OPERATORS),
}
