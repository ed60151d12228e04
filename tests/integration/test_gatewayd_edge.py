"""The edge for real: Envoy and gatewayd as processes, attacked through the listener."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from ironworks.gatewayd.issuer import Issuer
from ironworks.gatewayd.types import ApiKey
from ironworks.model.ids import derived_id
from ironworks.model.units import NS_PER_SECOND
from ironworks.runtime.clock import SystemClock, SystemEntropy
from ironworks.runtime.identity import ServiceSigner
from ironworks.testkit.clock import FakeClock
from ironworks.testkit.gatewayd import Edge, edge

pytestmark = pytest.mark.asyncio(loop_scope="module")
IMAGE = "registry.example/web"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    limits = {"tenant_requests_per_second": "50", "tenant_request_burst": "50"}
    async with edge(tmp_path_factory.mktemp("edge"), **limits) as running:
        yield running


def key_of(tenant_id: str | None, *roles: str) -> ApiKey:
    return ApiKey(
        api_key_id=derived_id("key", "test"),
        tenant_id=tenant_id,
        name="test",
        roles=roles,
        hint="",
        created_at_ns=0,
        expires_at_ns=0,
        revoked_at_ns=0,
        last_used_at_ns=0,
    )


def issuer(data_dir: Path, now_ns: int) -> Issuer:
    return Issuer.open(data_dir, "ironworks.local", FakeClock(now_ns), SystemEntropy())


async def test_without_a_token_nothing_is_answered_but_the_exchange(platform: Edge) -> None:
    for method in ("JobService/ListJobs", "TokenService/WhoAmI", "TenantService/CreateTenant"):
        answer = await platform.call(method)
        assert answer.status == 401
        assert answer.json()["code"] == "unauthenticated"
        assert "API key" in answer.json()["message"]
    jwks = await platform.call("TokenService/GetJwks")
    assert jwks.status == 200
    assert "kty" in jwks.json()["jwksJson"]


async def test_tokens_that_are_not_ours_are_refused(
    platform: Edge, tmp_path_factory: pytest.TempPathFactory
) -> None:
    now_ns = SystemClock().now_ns()
    data_dir = platform.settings.data_dir
    stranger = issuer(tmp_path_factory.mktemp("stranger"), now_ns)
    expired, _ = issuer(data_dir, now_ns - 3600 * NS_PER_SECOND).token(key_of(None, "operator"))
    early, _ = issuer(data_dir, now_ns + 3600 * NS_PER_SECOND).token(key_of(None, "operator"))
    forged, _ = stranger.token(key_of(None, "operator"))
    service = ServiceSigner.load(data_dir, "metald", "ironworks.local", SystemClock())
    for token in (expired, forged, service.token("gatewayd"), "garbage", "a.b.c"):
        answer = await platform.call("TenantService/ListTenants", token=token)
        assert answer.status == 401, token
    # Envoy does not judge `iat`; the service behind it does.
    answer = await platform.call("TenantService/ListTenants", token=early)
    assert answer.status == 401


async def test_roles_open_methods(platform: Edge) -> None:
    viewer = await platform.tenant("roles", "ROLE_VIEWER")
    billing = await platform.tenant("roles", "ROLE_BILLING")
    developer = await platform.tenant("roles", "ROLE_DEVELOPER")
    create = {"name": "x", "spec": {"image": IMAGE}}
    for token in (viewer, billing):
        answer = await platform.call("DeploymentService/CreateDeployment", create, token=token)
        assert answer.status == 403
        assert answer.json()["code"] == "permission_denied"
    assert (await platform.call("JobService/ListJobs", token=viewer)).status == 200
    assert (await platform.call("JobService/ListJobs", token=billing)).status == 403
    assert (await platform.call("TenantService/CreateTenant", token=developer)).status == 403
    operator = await platform.token(platform.operator_key)
    # For services only: no role opens it, not at the edge and not behind.
    answer = await platform.call("HostDirectoryService/RegisterHost", token=operator)
    assert answer.status == 403


async def test_a_tenant_sees_nothing_of_another(platform: Edge) -> None:
    owner, other = await platform.tenant("owner"), await platform.tenant("other")
    create = {"name": "secret", "spec": {"image": f"{IMAGE}:never"}}
    made = await platform.call("DeploymentService/CreateDeployment", create, token=owner)
    deployment_id, job_id = made.json()["deployment"]["deploymentId"], made.json()["jobId"]
    for method, body in (
        ("DeploymentService/GetDeployment", {"deploymentId": deployment_id}),
        ("DeploymentService/GetDeployment", {"deploymentId": "secret"}),
        ("DeploymentService/DeleteDeployment", {"deploymentId": deployment_id}),
        ("JobService/GetJob", {"jobId": job_id}),
        ("JobService/CancelJob", {"jobId": job_id}),
    ):
        there = await platform.call(method, body, token=other)
        absent = {name: "dep_" + "0" * 26 if "dep" in name else "job_0" for name in body}
        nowhere = await platform.call(method, absent, token=other)
        assert there.status == 404
        assert there.body == nowhere.body
    for method in ("DeploymentService/ListDeployments", "JobService/ListJobs"):
        assert set((await platform.call(method, token=other)).json()) == {"page"}
    await platform.call("JobService/CancelJob", {"jobId": job_id}, token=owner)
    assert (await platform.ended(job_id, owner))["state"] == "JOB_STATE_CANCELLED"


async def test_each_tenant_has_a_bucket_of_its_own(platform: Edge) -> None:
    loud, quiet = await platform.tenant("loud"), await platform.tenant("quiet")
    answers = await asyncio.gather(
        *(platform.call("TokenService/WhoAmI", token=loud) for _ in range(90))
    )
    statuses = Counter(answer.status for answer in answers)
    assert statuses[429] > 0
    assert statuses[200] >= 50
    refused = next(answer for answer in answers if answer.status == 429)
    assert refused.json()["code"] == "resource_exhausted"
    assert refused.headers["retry-after"] == "1"
    assert (await platform.call("TokenService/WhoAmI", token=quiet)).status == 200


async def test_identity_comes_from_the_token_alone(platform: Edge) -> None:
    mine, other = await platform.tenant("mine"), await platform.tenant("theirs")
    other_id = (await platform.call("TokenService/WhoAmI", token=other)).json()["tenantId"]
    forged = {
        "x-ironworks-tenant": other_id,
        "x-ironworks-roles": "operator",
        "x-tenant-id": other_id,
        "x-forwarded-user": "root",
    }
    path = "/ironworks.gatewayd.v1.TokenService/WhoAmI"
    answer = await platform.send("POST", path, body={}, token=mine, headers=forged)
    assert answer.json()["tenantName"] == "mine"
    assert answer.json()["roles"] == ["ROLE_DEVELOPER"]


async def test_keys_end_and_tenants_are_suspended(platform: Edge) -> None:
    operator = await platform.token(platform.operator_key)
    await platform.tenant("brief")
    tenants = await platform.call("TenantService/ListTenants", token=operator)
    tenant_id = next(one["tenantId"] for one in tenants.json()["tenants"] if one["name"] == "brief")
    body = {"name": "one", "roles": ["ROLE_OWNER"], "tenantId": tenant_id}
    made = (await platform.call("ApiKeyService/CreateApiKey", body, token=operator)).json()
    owner = await platform.token(made["secret"])
    above = {"name": "two", "roles": ["ROLE_OPERATOR"]}
    refused = await platform.call("ApiKeyService/CreateApiKey", above, token=owner)
    assert refused.status in {400, 403}
    suspend = {"tenantId": tenant_id, "reason": "unpaid"}
    await platform.call("TenantService/SuspendTenant", suspend, token=operator)
    answer = await platform.call("TokenService/ExchangeToken", {"apiKey": made["secret"]})
    assert answer.status == 403
    assert "unpaid" in answer.json()["message"]
    await platform.call("TenantService/ResumeTenant", {"tenantId": tenant_id}, token=operator)
    key_id = {"apiKeyId": made["apiKey"]["apiKeyId"]}
    await platform.call("ApiKeyService/RevokeApiKey", key_id, token=operator)
    answer = await platform.call("TokenService/ExchangeToken", {"apiKey": made["secret"]})
    unknown = await platform.call("TokenService/ExchangeToken", {"apiKey": "iwk_unknown"})
    assert answer.status == unknown.status == 401
    assert answer.body == unknown.body
    listed = await platform.call(
        "ApiKeyService/ListApiKeys", {"tenantId": tenant_id, "includeEnded": True}, token=operator
    )
    assert made["secret"] not in listed.body
    assert made["secret"] not in platform.log_text


async def test_what_is_no_endpoint_is_not_the_api(platform: Edge) -> None:
    path = "/ironworks.gatewayd.v1.TokenService/GetJwks"
    answer = await platform.send("POST", path, body={}, host="nobody-0.ironworks.localhost")
    assert answer.status == 404
    assert answer.json()["code"] == "not_found"
    assert answer.headers["content-type"] == "application/json"


async def test_grpc_learns_that_it_is_not_spoken(platform: Edge) -> None:
    path = "/ironworks.gatewayd.v1.TokenService/GetJwks"
    kind = {"content-type": "application/grpc"}
    answer = await platform.send("POST", path, body={}, headers=kind)
    assert answer.status == 200
    assert answer.headers["grpc-status"] == "12"
    assert "gRPC-Web" in answer.headers["grpc-message"]


async def test_a_header_with_an_underscore_is_dropped(platform: Edge) -> None:
    path = "/ironworks.gatewayd.v1.TokenService/GetJwks"
    answer = await platform.send("POST", path, body={}, headers={"x_user_id": "x"})
    assert answer.status == 200


async def test_plain_http_is_the_same_api(platform: Edge) -> None:
    token = await platform.tenant("plain")
    body = {"name": "plain", "spec": {"image": f"{IMAGE}:absent"}}
    assert (await platform.send("POST", "/v1/deployments", body=body)).status == 401
    accepted = await platform.send("POST", "/v1/deployments", body=body, token=token)
    assert accepted.status == 202
    job_id = accepted.json()["jobId"]
    await platform.ended(job_id, token)
    job = await platform.send("GET", f"/v1/jobs/{job_id}", token=token)
    assert job.status == 200
    assert job.json()["job"]["failure"]["code"] == "not_found"
    assert (await platform.send("GET", "/v1/jobs/job_absent", token=token)).status == 404
