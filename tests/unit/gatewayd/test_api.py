"""The wire: messages to types and back, pages, and plain HTTP rewritten."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from protobuf import Oneof

from ironworks.gatewayd import decide
from ironworks.gatewayd.api import rest
from ironworks.gatewayd.api.deployments import deployment_to_wire, spec_from_wire, spec_to_wire
from ironworks.gatewayd.api.hosts import HostHandlers, host_to_wire
from ironworks.gatewayd.api.jobs import job_to_wire
from ironworks.gatewayd.api.paging import cut, page_of
from ironworks.gatewayd.api.policies import limits_to_wire
from ironworks.gatewayd.api.tenants import roles_from_wire, roles_to_wire
from ironworks.gatewayd.app.hosts import HostApp
from ironworks.gatewayd.issuer import Issuer
from ironworks.gatewayd.types import (
    ApiKey,
    Deployment,
    DeploymentSpec,
    DeploymentState,
    Host,
    HostState,
    Job,
    JobFailure,
    JobKind,
    JobResult,
    JobState,
    Readiness,
    Resources,
    RestartMode,
    StageKind,
    StageState,
    TenantLimits,
)
from ironworks.gen.ironworks.common.v1.common_pb import PageRequest
from ironworks.gen.ironworks.gatewayd.v1 import deployments_pb, hosts_pb, jobs_pb, roles_pb
from ironworks.model.errors import InvalidRequest
from ironworks.model.ids import derived_id
from ironworks.model.units import MIB
from ironworks.runtime.clock import SystemClock, SystemEntropy
from ironworks.runtime.identity import Verifier, current_caller
from ironworks.storage.sql import Database

DEPLOYMENT = Deployment(
    deployment_id=derived_id("dep", "one"),
    tenant_id=derived_id("tnt", "one"),
    name="web",
    spec=DeploymentSpec(image="web"),
    state=DeploymentState.RUNNING,
    reason="",
    host_label="web-x",
    image_digest="sha256:ab",
    build_id="",
    rootfs_asset_id="",
    build_ms=0,
    build_reused=False,
    argv=(),
    port=80,
    generation=3,
    job_id="job_1",
    labels={"a": "b"},
    created_at_ns=1,
    updated_at_ns=2,
)


def test_pages_go_on_where_they_ended_and_only_for_the_same_list() -> None:
    page = page_of(PageRequest(page_size=2), "filter")
    items, info = cut([1, 2, 3], page, lambda one: (one,), "filter")
    assert items == [1, 2]
    following = page_of(PageRequest(page_size=2, page_token=info.next_page_token), "filter")
    assert following.after == (2,)
    items, info = cut([3], following, lambda one: (one,), "filter")
    assert (items, info.next_page_token) == ([3], "")
    with pytest.raises(InvalidRequest):
        page_of(
            PageRequest(
                page_token=cut([1, 2, 3], page, lambda one: (one,), "filter")[1].next_page_token
            ),
            "other",
        )
    assert page_of(None).size == 100


def test_roles_cross_the_wire_and_unknown_ones_do_not() -> None:
    names = ["admin", "operator", "viewer"]
    assert roles_from_wire(roles_to_wire(names)) == names
    with pytest.raises(InvalidRequest):
        roles_from_wire([roles_pb.Role.UNSPECIFIED])


def test_a_specification_survives_the_wire() -> None:
    spec = DeploymentSpec(
        image="web",
        replicas=0,
        vcpus=2,
        memory_bytes=512 * MIB,
        disk_bytes=3 * MIB,
        port=80,
        env={"A": "1"},
        entrypoint=("/app",),
        args=("x", "y"),
        restart=RestartMode.ON_FAILURE,
        readiness=Readiness(http_path="/up", http_status=204, period_ms=500, timeout_ms=200),
        zones=("a",),
        host_labels={"disk": "fast"},
        kernel_asset_id="ast_1",
        boot_timeout_ms=5_000,
    )
    wire = deployments_pb.DeploymentSpec.from_binary(spec_to_wire(spec).to_binary())
    assert spec_from_wire(wire) == spec


def test_what_is_left_out_gets_its_default() -> None:
    assert spec_from_wire(deployments_pb.DeploymentSpec(image="web")) == DeploymentSpec(image="web")
    with pytest.raises(InvalidRequest):
        spec_from_wire(None)


def test_every_state_has_its_name_on_the_wire() -> None:
    for state in DeploymentState:
        wire = deployment_to_wire(replace(DEPLOYMENT, state=state), (), "https://x/")
        assert wire.state.name == state.name
        assert wire.generation == 3


def job(kind: JobKind, **changes: Any) -> Job:
    made = Job(
        job_id="job_1",
        tenant_id=None,
        kind=kind,
        resource_id="dep_1",
        state=JobState.RUNNING,
        stages=(),
        result=None,
        failure=None,
        request_id="req_1",
        grace_ms=0,
        created_at_ns=1,
        updated_at_ns=2,
        ended_at_ns=0,
        version=4,
    )
    return replace(made, **changes)


def test_jobs_show_their_outcome_by_kind() -> None:
    result = JobResult(endpoint="https://x/", boot_ms=5, vm_ids=("vm_1",), vms_deleted=2)
    made = job_to_wire(job(JobKind.CREATE_DEPLOYMENT, result=result))
    assert made.result is not None
    assert isinstance(made.result.outcome, Oneof)
    assert isinstance(made.result.outcome.value, jobs_pb.DeploymentResult)
    assert made.result.outcome.value.boot_ms == 5
    assert made.tenant_id == ""
    gone = job_to_wire(job(JobKind.DELETE_DEPLOYMENT, result=result))
    assert gone.result is not None
    assert isinstance(gone.result.outcome, Oneof)
    assert isinstance(gone.result.outcome.value, jobs_pb.DeletionResult)
    assert gone.result.outcome.value.vms_deleted == 2
    failure = JobFailure(code="internal", message="Broken.", stage=None)
    failed = job_to_wire(job(JobKind.CREATE_DEPLOYMENT, failure=failure))
    assert failed.failure is not None
    assert failed.failure.stage is jobs_pb.JobStageKind.UNSPECIFIED
    for kind in StageKind:
        staged = decide.set_stage(job(JobKind.CREATE_DEPLOYMENT), kind, StageState.RUNNING, 5)
        assert job_to_wire(staged).stages[0].kind.name == kind.name


def test_limits_and_hosts_cross_the_wire() -> None:
    assert limits_to_wire(TenantLimits()).requests_per_second == 100
    host = Host(
        host_id="hst_1",
        name="one",
        metald_url="http://127.0.0.1:1",
        zone="a",
        region="r",
        architecture="amd64",
        driver="qemu",
        acceleration="tcg",
        capacity=Resources(vcpus=4, vms=9),
        allocated=Resources(),
        labels={"a": "b"},
        state=HostState.DOWN,
        version="1",
        registered_at_ns=1,
        last_heartbeat_at_ns=2,
    )
    wire = host_to_wire(host)
    assert (wire.state, wire.acceleration) == (hosts_pb.HostState.DOWN, "tcg")


async def test_negative_resources_are_refused(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/x.db")
    handlers = HostHandlers(HostApp(database=database, clock=SystemClock()))
    wrong = hosts_pb.Host(capacity=hosts_pb.HostResources(vcpus=-1))
    with pytest.raises(InvalidRequest):
        await handlers.register_host(hosts_pb.RegisterHostRequest(host=wrong), Any)  # pyright: ignore[reportArgumentType] - the context is not looked at
    database.close()


# --- plain HTTP ---------------------------------------------------------------------------------

Asgi = Callable[[dict[str, Any]], Awaitable[None]]


async def request(
    tmp_path: Path, verb: str, path: str, *, token: str | None = None, status: int = 200
) -> tuple[int, bytes, list[str]]:
    """What `Rest` answers, and which methods the application behind it saw, with whose token."""
    seen: list[str] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        seen.append(f"{scope['path']} {message['body'].decode()} {current_caller().subject}")
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    clock = SystemClock()
    issuer = Issuer.open(tmp_path, "ironworks.local", clock, SystemEntropy())
    key = ApiKey(
        api_key_id="key_1",
        tenant_id=derived_id("tnt", "one"),
        name="x",
        roles=("developer",),
        hint="",
        created_at_ns=0,
        expires_at_ns=0,
        revoked_at_ns=0,
        last_used_at_ns=0,
    )
    plain = rest.Rest(
        applications=dict.fromkeys(
            (
                "ironworks.gatewayd.v1.DeploymentService",
                "ironworks.gatewayd.v1.JobService",
            ),
            application,
        ),
        verifier=Verifier(
            service="gatewayd", data_dir=tmp_path, trust_domain="ironworks.local", clock=clock
        ),
        clock=clock,
        entropy=SystemEntropy(),
    )
    bearer = issuer.token(key)[0] if token is None else token
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b'{"name": "x"}', "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [(b"authorization", f"Bearer {bearer}".encode())]
    await plain({"method": verb, "path": path, "headers": headers}, receive, send)
    return sent[0]["status"], sent[1]["body"], seen


@pytest.mark.parametrize(
    ("verb", "path", "status", "method", "body"),
    [
        ("POST", "/v1/deployments", 202, "DeploymentService/CreateDeployment", '{"name": "x"}'),
        ("GET", "/v1/deployments/web", 200, "DeploymentService/GetDeployment", '"web"'),
        ("GET", "/v1/jobs/job_1", 200, "JobService/GetJob", '"job_1"'),
    ],
)
async def test_plain_requests_become_methods(
    tmp_path: Path, verb: str, path: str, status: int, method: str, body: str
) -> None:
    answered, _, seen = await request(tmp_path, verb, path)
    assert answered == status
    assert f"/ironworks.gatewayd.v1.{method} " in seen[0]
    assert body in seen[0]
    assert seen[0].endswith(" key_1")


async def test_plain_requests_are_refused_like_any_other(tmp_path: Path) -> None:
    for verb, path in (("GET", "/v1/deployments"), ("DELETE", "/v1/jobs/x"), ("GET", "/v1/jobs/")):
        answered, body, seen = await request(tmp_path, verb, path)
        assert (answered, seen) == (404, [])
        assert b"not_found" in body
    answered, body, seen = await request(tmp_path, "POST", "/v1/deployments", token="x")
    assert (answered, seen) == (401, [])
    assert b"unauthenticated" in body
    answered, _, _ = await request(tmp_path, "POST", "/v1/deployments", status=400)
    assert answered == 400


@pytest.mark.parametrize(
    ("cidr", "port"), [("nowhere", 80), ("203.0.113.7/24", 80), ("::/0", 0), ("::/0", 65_536)]
)
def test_an_egress_rule_that_is_none_is_refused_before_anything_is_built(
    cidr: str, port: int
) -> None:
    rule = deployments_pb.EgressRule(cidr=cidr, ports=[port])
    with pytest.raises(InvalidRequest, match=r"spec\.egress\[0\]"):
        spec_from_wire(deployments_pb.DeploymentSpec(image="web", egress=[rule]))
