"""A small public API in memory, behind the real chassis: what clients are tested against.

Tokens are real: signed by a key of the fake's own, verified by the chassis. State is a few
dictionaries; `fail` makes the next calls of a method fail before or after they took effect.
"""

# ruff: noqa: ARG002 - every handler is given a context, and few need it

from __future__ import annotations

import asyncio
import json
import socket
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from joserfc import jwt
from joserfc.jwk import ECKey
from protobuf import Message, Oneof

from ironworks.gen.ironworks.common.v1 import common_pb
from ironworks.gen.ironworks.gatewayd.v1 import (
    api_keys_pb,
    deployments_pb,
    hosts_pb,
    jobs_pb,
    roles_pb,
    tenants_pb,
    tokens_pb,
)
from ironworks.gen.ironworks.gatewayd.v1.api_keys_connect import (
    ApiKeyService,
    ApiKeyServiceASGIApplication,
)
from ironworks.gen.ironworks.gatewayd.v1.deployments_connect import (
    DeploymentService,
    DeploymentServiceASGIApplication,
)
from ironworks.gen.ironworks.gatewayd.v1.hosts_connect import (
    HostDirectoryService,
    HostDirectoryServiceASGIApplication,
)
from ironworks.gen.ironworks.gatewayd.v1.jobs_connect import JobService, JobServiceASGIApplication
from ironworks.gen.ironworks.gatewayd.v1.tenants_connect import (
    TenantService,
    TenantServiceASGIApplication,
)
from ironworks.gen.ironworks.gatewayd.v1.tokens_connect import (
    TokenService,
    TokenServiceASGIApplication,
)
from ironworks.model.errors import AlreadyExists, IronError, NotFound, Unauthenticated, Unavailable
from ironworks.model.ids import derived_id
from ironworks.model.units import NS_PER_SECOND
from ironworks.runtime import access
from ironworks.runtime.access import Access
from ironworks.runtime.identity import current_caller, ensure_service_keys
from ironworks.runtime.identity.keys import users_trust_path, write_private
from ironworks.runtime.identity.tokens import USER_AUDIENCE, USER_TOKEN_SECONDS, user_issuer
from ironworks.runtime.rpc.readiness import Readiness
from ironworks.runtime.service import Chassis, Parts, make_chassis, run_service
from ironworks.runtime.settings import Settings
from ironworks.runtime.tasks import Tasks
from ironworks.testkit.fakenouns import NOUNS

OPERATOR_KEY = "iwk_operator"
TENANT_KEY = "iwk_tenant"
EVERY_ROLE = frozenset({"owner", "admin", "developer", "billing", "viewer", "operator"})
STAGES = (
    jobs_pb.JobStageKind.RESOLVING,
    jobs_pb.JobStageKind.BUILDING,
    jobs_pb.JobStageKind.BOOTING,
)


@dataclass(slots=True)
class _Fault:
    error: IronError
    times: int
    after: bool


@dataclass(slots=True)
class FakeApi:
    """The state of the fake and what was asked of it.

    Attributes:
        asked: Requests by method, in order; each attempt of a call counts.
        tokens: Tokens given out.
        breaks: Streams of WatchJob that end after one message.
        failure: Why deployments fail; None: they do not.
        damage: What is wrong with the asset's bytes; empty: nothing.
    """

    asked: dict[str, list[Message[Any]]] = field(
        default_factory=lambda: defaultdict[str, list[Message[Any]]](list)
    )
    tokens: int = 0
    breaks: int = 0
    failure: jobs_pb.JobFailure | None = None
    damage: str = ""
    key: ECKey = field(default_factory=lambda: ECKey.generate_key("P-256", {"kid": "fake"}))
    issuer: str = ""
    tenants: dict[str, tenants_pb.Tenant] = field(default_factory=dict[str, tenants_pb.Tenant])
    keys: dict[str, api_keys_pb.ApiKey] = field(default_factory=dict[str, api_keys_pb.ApiKey])
    deployments: dict[str, deployments_pb.Deployment] = field(
        default_factory=dict[str, deployments_pb.Deployment]
    )
    jobs: dict[str, jobs_pb.Job] = field(default_factory=dict[str, jobs_pb.Job])
    seen: dict[str, Any] = field(default_factory=dict[str, Any])
    now_ns: Callable[[], int] = lambda: 0
    _faults: dict[str, _Fault] = field(default_factory=dict[str, _Fault])

    def fail(self, method: str, error: IronError, *, times: int = 1, after: bool = False) -> None:
        """Let the next calls of `method` end with `error`, before or after they took effect."""
        self._faults[method] = _Fault(error, times, after)

    def ask(self, method: str, request: Message[Any], *, after: bool = False) -> None:
        """Note a call; raise what `fail` ordered."""
        if not after:
            self.asked[method].append(request)
        fault = self._faults.get(method)
        if fault is not None and fault.times > 0 and fault.after is after:
            fault.times -= 1
            raise type(fault.error)(fault.error.message, hint=fault.error.hint)

    def once(self, method: str, request: Any, make: Callable[[], Any]) -> Any:
        """The answer of the first call with this idempotency key."""
        self.ask(method, request)
        key = f"{method} {request.idempotency_key}"
        if key not in self.seen:
            self.seen[key] = make()
        self.ask(method, request, after=True)
        return self.seen[key]

    def idempotency_keys(self, method: str) -> list[str]:
        """The idempotency key of each attempt of a method, in order."""
        field_name = "idempotency_key"
        return [str(getattr(request, field_name)) for request in self.asked[method]]

    def publish_key(self, settings: Settings) -> None:
        """Let the chassis trust the fake's key."""
        jwks = {"keys": [self.key.as_dict(private=False)]}
        write_private(users_trust_path(settings.data_dir), json.dumps(jwks).encode())

    def new_deployment(
        self, request: deployments_pb.CreateDeploymentRequest
    ) -> deployments_pb.CreateDeploymentResponse:
        """Accept a deployment, as gatewayd does."""
        name = request.name or "app"
        if name in self.deployments:
            raise AlreadyExists(f"There is a deployment named {name}.", hint="Choose another.")
        ids = {kind: derived_id(kind, name) for kind in ("dep", "job", "vm", "bld", "ast")}
        deployment = deployments_pb.Deployment(
            deployment_id=ids["dep"],
            tenant_id=current_caller().tenant_id or "",
            name=name,
            spec=request.spec,
            state=deployments_pb.DeploymentState.DEPLOYING,
            endpoint=f"https://{name}-0123456789.ironworks.localhost:8443/",
            job_id=ids["job"],
            created_at_ns=self.now_ns(),
        )
        self.deployments[name] = deployment
        result = jobs_pb.DeploymentResult(
            deployment_id=ids["dep"],
            endpoint=deployment.endpoint,
            image_digest="sha256:" + "ab" * 32,
            build_id=ids["bld"],
            rootfs_asset_id=ids["ast"],
            build_ms=1200,
            boot_ms=3400,
            vm_ids=[ids["vm"]],
        )
        self.jobs[ids["job"]] = jobs_pb.Job(
            job_id=ids["job"],
            kind=jobs_pb.JobKind.CREATE_DEPLOYMENT,
            resource_id=ids["dep"],
            state=jobs_pb.JobState.QUEUED,
            stages=[
                jobs_pb.JobStage(kind=kind, state=jobs_pb.JobStageState.PENDING) for kind in STAGES
            ],
            result=jobs_pb.JobResult(outcome=Oneof("deployment", result)),
            created_at_ns=self.now_ns(),
            version=1,
        )
        return deployments_pb.CreateDeploymentResponse(deployment=deployment, job_id=ids["job"])

    def step(self, job: jobs_pb.Job) -> None:
        """Move a job on by one stage."""
        job.version += 1
        job.state = jobs_pb.JobState.RUNNING
        for stage in job.stages:
            if stage.state is jobs_pb.JobStageState.RUNNING:
                stage.state = jobs_pb.JobStageState.COMPLETED
                stage.ended_at_ns = stage.started_at_ns + 1500 * 1_000_000
        if self.failure is not None:
            job.state, job.failure, job.result = jobs_pb.JobState.FAILED, self.failure, None
            return
        for stage in job.stages:
            if stage.state is jobs_pb.JobStageState.PENDING:
                stage.state = jobs_pb.JobStageState.RUNNING
                stage.started_at_ns = self.now_ns()
                return
        job.state = jobs_pb.JobState.COMPLETED


def _ended(job: jobs_pb.Job) -> bool:
    return job.state in {jobs_pb.JobState.COMPLETED, jobs_pb.JobState.FAILED}


def _found(things: Mapping[str, Any], name: str, kind: str) -> Any:
    if name not in things:
        raise NotFound(f"There is no {kind} {name}.")
    return things[name]


class _Handlers:
    def __init__(self, api: FakeApi) -> None:
        self._api = api


class _Tokens(_Handlers, TokenService):
    async def exchange_token(
        self, request: tokens_pb.ExchangeTokenRequest, ctx: Any
    ) -> tokens_pb.ExchangeTokenResponse:
        api = self._api
        api.ask("ExchangeToken", request)
        if request.api_key not in {OPERATOR_KEY, TENANT_KEY}:
            raise Unauthenticated("The API key is not valid.", hint="Log in with another.")
        tenant_id = derived_id("tnt", "acme") if request.api_key == TENANT_KEY else ""
        role = roles_pb.Role.OWNER if tenant_id else roles_pb.Role.OPERATOR
        now_seconds = api.now_ns() // NS_PER_SECOND
        api.tokens += 1
        claims: dict[str, Any] = {
            "iss": api.issuer,
            "aud": USER_AUDIENCE,
            "sub": derived_id("key", request.api_key),
            "roles": [role.name.lower()],
            "jti": str(api.tokens),
            "iat": now_seconds,
            "exp": now_seconds + USER_TOKEN_SECONDS,
        }
        if tenant_id:
            claims["tenant"] = tenant_id
        return tokens_pb.ExchangeTokenResponse(
            token=jwt.encode({"alg": "ES256", "kid": api.key.kid}, claims, api.key),
            expires_at_ns=claims["exp"] * NS_PER_SECOND,
            tenant_id=tenant_id,
            roles=[role],
        )

    async def who_am_i(
        self, request: tokens_pb.WhoAmIRequest, ctx: Any
    ) -> tokens_pb.WhoAmIResponse:
        self._api.ask("WhoAmI", request)
        caller = current_caller()
        return tokens_pb.WhoAmIResponse(
            subject=caller.subject,
            tenant_id=caller.tenant_id or "",
            roles=[roles_pb.Role[role.upper()] for role in sorted(caller.roles)],
        )


class _Tenants(_Handlers, TenantService):
    async def create_tenant(
        self, request: tenants_pb.CreateTenantRequest, ctx: Any
    ) -> tenants_pb.CreateTenantResponse:
        def make() -> tenants_pb.CreateTenantResponse:
            if request.name in self._api.tenants:
                raise AlreadyExists(f"There is a tenant named {request.name}.")
            tenant = tenants_pb.Tenant(
                tenant_id=derived_id("tnt", request.name),
                name=request.name,
                display_name=request.display_name,
                state=tenants_pb.TenantState.ACTIVE,
                created_at_ns=self._api.now_ns(),
            )
            self._api.tenants[request.name] = tenant
            return tenants_pb.CreateTenantResponse(tenant=tenant)

        return self._api.once("CreateTenant", request, make)

    async def list_tenants(
        self, request: tenants_pb.ListTenantsRequest, ctx: Any
    ) -> tenants_pb.ListTenantsResponse:
        self._api.ask("ListTenants", request)
        page = request.page or common_pb.PageRequest()
        begin, size = int(page.page_token or "0"), page.page_size or 100
        tenants = list(self._api.tenants.values())
        token = str(begin + size) if begin + size < len(tenants) else ""
        return tenants_pb.ListTenantsResponse(
            tenants=tenants[begin : begin + size], page=common_pb.PageInfo(next_page_token=token)
        )

    async def get_tenant(
        self, request: tenants_pb.GetTenantRequest, ctx: Any
    ) -> tenants_pb.GetTenantResponse:
        self._api.ask("GetTenant", request)
        tenant_id = request.tenant_id or current_caller().tenant_id or ""
        by_id = {tenant.tenant_id: tenant for tenant in self._api.tenants.values()}
        return tenants_pb.GetTenantResponse(tenant=_found(by_id, tenant_id, "tenant"))


class _Keys(_Handlers, ApiKeyService):
    async def create_api_key(
        self, request: api_keys_pb.CreateApiKeyRequest, ctx: Any
    ) -> api_keys_pb.CreateApiKeyResponse:
        def make() -> api_keys_pb.CreateApiKeyResponse:
            key = api_keys_pb.ApiKey(
                api_key_id=derived_id("key", request.name),
                tenant_id=request.tenant_id,
                name=request.name,
                roles=request.roles,
                hint="iwk_abcdef",
            )
            self._api.keys[key.api_key_id] = key
            return api_keys_pb.CreateApiKeyResponse(api_key=key, secret="iwk_" + "s" * 43)

        return self._api.once("CreateApiKey", request, make)

    async def list_api_keys(
        self, request: api_keys_pb.ListApiKeysRequest, ctx: Any
    ) -> api_keys_pb.ListApiKeysResponse:
        self._api.ask("ListApiKeys", request)
        keys = [key for key in self._api.keys.values() if key.tenant_id == request.tenant_id]
        return api_keys_pb.ListApiKeysResponse(api_keys=keys)

    async def revoke_api_key(
        self, request: api_keys_pb.RevokeApiKeyRequest, ctx: Any
    ) -> api_keys_pb.RevokeApiKeyResponse:
        self._api.ask("RevokeApiKey", request)
        key = _found(self._api.keys, request.api_key_id, "key")
        key.revoked_at_ns = self._api.now_ns()
        return api_keys_pb.RevokeApiKeyResponse(api_key=key)


class _Deployments(_Handlers, DeploymentService):
    async def create_deployment(
        self, request: deployments_pb.CreateDeploymentRequest, ctx: Any
    ) -> deployments_pb.CreateDeploymentResponse:
        return self._api.once(
            "CreateDeployment", request, lambda: self._api.new_deployment(request)
        )

    async def get_deployment(
        self, request: deployments_pb.GetDeploymentRequest, ctx: Any
    ) -> deployments_pb.GetDeploymentResponse:
        self._api.ask("GetDeployment", request)
        found = _found(self._api.deployments, request.deployment_id, "deployment")
        return deployments_pb.GetDeploymentResponse(deployment=found)

    async def list_deployments(
        self, request: deployments_pb.ListDeploymentsRequest, ctx: Any
    ) -> deployments_pb.ListDeploymentsResponse:
        self._api.ask("ListDeployments", request)
        return deployments_pb.ListDeploymentsResponse(
            deployments=list(self._api.deployments.values())
        )

    async def delete_deployment(
        self, request: deployments_pb.DeleteDeploymentRequest, ctx: Any
    ) -> deployments_pb.DeleteDeploymentResponse:
        self._api.ask("DeleteDeployment", request)
        found = _found(self._api.deployments, request.deployment_id, "deployment")
        job = self._api.jobs[found.job_id]
        job.kind = jobs_pb.JobKind.DELETE_DEPLOYMENT
        job.state = jobs_pb.JobState.COMPLETED
        return deployments_pb.DeleteDeploymentResponse(job_id=job.job_id)


class _Jobs(_Handlers, JobService):
    async def list_jobs(
        self, request: jobs_pb.ListJobsRequest, ctx: Any
    ) -> jobs_pb.ListJobsResponse:
        self._api.ask("ListJobs", request)
        return jobs_pb.ListJobsResponse(jobs=list(self._api.jobs.values()))

    async def get_job(self, request: jobs_pb.GetJobRequest, ctx: Any) -> jobs_pb.GetJobResponse:
        self._api.ask("GetJob", request)
        return jobs_pb.GetJobResponse(job=_found(self._api.jobs, request.job_id, "job"))

    async def watch_job(
        self, request: jobs_pb.WatchJobRequest, ctx: Any
    ) -> AsyncIterator[jobs_pb.WatchJobResponse]:
        self._api.ask("WatchJob", request)
        job = _found(self._api.jobs, request.job_id, "job")
        while True:
            yield jobs_pb.WatchJobResponse(job=job)
            if _ended(job):
                return
            self._api.step(job)
            if self._api.breaks > 0:
                self._api.breaks -= 1
                return
            await asyncio.sleep(0)


class _Hosts(_Handlers, HostDirectoryService):
    async def list_hosts(
        self, request: hosts_pb.ListHostsRequest, ctx: Any
    ) -> hosts_pb.ListHostsResponse:
        self._api.ask("ListHosts", request)
        host = hosts_pb.Host(
            host_id=derived_id("hst", "one"),
            name="one",
            zone="az-1a",
            driver="qemu",
            acceleration="tcg",
            state=hosts_pb.HostState.READY,
            capacity=hosts_pb.HostResources(vcpus=8, memory_bytes=8 << 30),
        )
        return hosts_pb.ListHostsResponse(hosts=[host])


_SERVICES = (
    (TokenServiceASGIApplication, _Tokens),
    (TenantServiceASGIApplication, _Tenants),
    (ApiKeyServiceASGIApplication, _Keys),
    (DeploymentServiceASGIApplication, _Deployments),
    (JobServiceASGIApplication, _Jobs),
    (HostDirectoryServiceASGIApplication, _Hosts),
    *NOUNS,
)


def access_table() -> dict[str, Access]:
    """Every method of the fake for every role; ExchangeToken for everybody."""
    table = {
        f"{handlers.desc().type_name}/{method.name}": Access(roles=EVERY_ROLE)
        for _, handlers in _SERVICES
        for method in handlers.desc().methods
    }
    return table | {"ironworks.gatewayd.v1.TokenService/ExchangeToken": Access(anonymous=True)}


@asynccontextmanager
async def _compose(chassis: Chassis[Settings], api: FakeApi) -> AsyncGenerator[Parts]:
    api.now_ns = chassis.clock.now_ns
    api.issuer = user_issuer(chassis.settings.trust_domain)
    api.publish_key(chassis.settings)
    applications = [chassis.application(kind, make(api)) for kind, make in _SERVICES]
    yield Parts(applications=applications)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@asynccontextmanager
async def running(data_dir: Path) -> AsyncGenerator[tuple[FakeApi, Settings]]:
    """The fake, listening on loopback at `settings.gatewayd_url`."""
    ensure_service_keys(data_dir)
    settings = Settings(data_dir=data_dir, gatewayd_url=f"http://127.0.0.1:{_free_port()}")
    api = FakeApi()
    stop = asyncio.Event()
    with patch.object(access, "ACCESS", access_table()):
        async with Tasks() as tasks:
            chassis = make_chassis("gatewayd", settings)
            work = run_service(chassis, lambda given: _compose(given, api), stop)
            serving = tasks.start(work, name="fake api")
            await _until_ready(settings.gatewayd_url)
            yield api, settings
            stop.set()
            await serving


async def _until_ready(url: str) -> None:
    readiness = Readiness()
    for _ in range(500):
        if await readiness.of(url):
            return
        await asyncio.sleep(0.01)
    raise Unavailable("The fake API did not start.")
