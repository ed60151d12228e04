"""Deployments from the accepted job to the answering endpoint and back; gatewayd is killed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ironworks.testkit.gatewayd import DIGEST, Answer, Edge, edge

IMAGE = "registry.example/web"


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Edge]:
    async with edge(tmp_path) as running:
        yield running


async def create(platform: Edge, token: str, image: str = IMAGE, replicas: int = 1) -> Any:
    spec = {"image": image, "replicas": replicas, "args": ["--fast"], "env": {"A": "1"}}
    body = {"name": "web", "spec": spec, "idempotencyKey": "web"}
    answer = await platform.call("DeploymentService/CreateDeployment", body, token=token)
    assert answer.status == 200, answer.body
    return answer.json()


async def visit(platform: Edge, deployment: dict[str, Any]) -> Answer:
    host = str(deployment["endpoint"]).split("//")[1].split(":")[0]
    headers = {"authorization": "Bearer the app's own", "x-ironworks-tenant": "forged"}
    return await platform.send("GET", "/", host=host, headers=headers)


async def remove(platform: Edge, token: str) -> dict[str, Any]:
    body = {"deploymentId": "web", "graceMs": 100}
    answer = await platform.call("DeploymentService/DeleteDeployment", body, token=token)
    return await platform.ended(answer.json()["jobId"], token)


async def test_an_image_becomes_an_endpoint_and_goes_again(platform: Edge) -> None:
    token = await platform.tenant("acme")
    made = await create(platform, token, replicas=2)
    again = await create(platform, token, replicas=2)
    assert again["jobId"] == made["jobId"]
    job = await platform.ended(made["jobId"], token)
    assert job["state"] == "JOB_STATE_COMPLETED", job
    kinds = [stage["kind"].removeprefix("JOB_STAGE_KIND_") for stage in job["stages"]]
    assert kinds == ["RESOLVING", "BUILDING", "PLACING", "CREATING", "BOOTING", "ROUTING"]
    assert {stage["state"] for stage in job["stages"]} == {"JOB_STAGE_STATE_COMPLETED"}
    starts = [int(stage["startedAtNs"]) for stage in job["stages"]]
    assert starts == sorted(starts)
    result = job["result"]["deployment"]
    assert result["imageDigest"] == DIGEST
    assert result["buildMs"] == "250"
    assert len(result["vmIds"]) == 2

    answer = await visit(platform, made["deployment"])
    assert answer.status == 200
    assert answer.json()["vm"] in result["vmIds"]
    assert answer.json()["headers"]["authorization"] == "bearer the app's own"
    assert "x-ironworks-tenant" not in answer.json()["headers"]
    seen = {(await visit(platform, made["deployment"])).json()["vm"] for _ in range(20)}
    assert seen == set(result["vmIds"])
    vm = platform.metald.vms[result["vmIds"][0]]
    assert vm.spec is not None
    assert vm.spec.workload is not None
    assert vm.spec.workload.argv == ["/bin/app", "--fast"]
    assert vm.spec.workload.env == ["A=1"]

    gone = await remove(platform, token)
    assert gone["state"] == "JOB_STATE_COMPLETED"
    assert gone["result"]["deletion"]["vmsDeleted"] == 2
    assert platform.metald.living() == []
    assert (await visit(platform, made["deployment"])).status == 404
    read = await platform.call(
        "DeploymentService/GetDeployment",
        {"deploymentId": made["deployment"]["deploymentId"]},
        token=token,
    )
    assert read.json()["deployment"]["state"] == "DEPLOYMENT_STATE_DELETED"


async def test_a_failed_boot_leaves_nothing_and_says_why(platform: Edge) -> None:
    platform.metald.fail_boots = True
    token = await platform.tenant("acme")
    made = await create(platform, token)
    job = await platform.ended(made["jobId"], token)
    assert job["state"] == "JOB_STATE_FAILED"
    assert "kernel panicked" in job["failure"]["message"]
    assert job["failure"]["stage"] == "JOB_STAGE_KIND_BOOTING"
    assert platform.metald.living() == []
    assert (await visit(platform, made["deployment"])).status == 404
    read = await platform.call(
        "DeploymentService/GetDeployment", {"deploymentId": "web"}, token=token
    )
    assert read.json()["deployment"]["state"] == "DEPLOYMENT_STATE_FAILED"
    assert (await remove(platform, token))["state"] == "JOB_STATE_COMPLETED"


async def test_no_room_no_build_no_host(platform: Edge) -> None:
    token = await platform.tenant("acme")
    spec = {"image": IMAGE, "replicas": 17}
    body = {"name": "big", "spec": spec}
    answer = await platform.call("DeploymentService/CreateDeployment", body, token=token)
    job = await platform.ended(answer.json()["jobId"], token)
    assert job["failure"]["code"] == "resource_exhausted"
    assert job["failure"]["stage"] == "JOB_STAGE_KIND_PLACING"
    assert platform.metald.vms == {}


async def test_a_cancelled_job_undoes_what_it_did(platform: Edge) -> None:
    token = await platform.tenant("acme")
    platform.holds.hold("create_build")
    made = await create(platform, token, image=f"{IMAGE}:never")
    async with asyncio.timeout(30):
        await platform.holds.reached["create_build"].wait()
    platform.holds.release("create_build")
    await platform.call("JobService/CancelJob", {"jobId": made["jobId"]}, token=token)
    job = await platform.ended(made["jobId"], token)
    assert job["state"] == "JOB_STATE_CANCELLED"
    assert platform.builderd.cancelled == set(platform.builderd.images)


async def test_deleting_what_is_being_deployed_cancels_that_first(platform: Edge) -> None:
    token = await platform.tenant("acme")
    made = await create(platform, token, image=f"{IMAGE}:never")
    gone = await remove(platform, token)
    assert gone["state"] == "JOB_STATE_COMPLETED"
    assert (await platform.ended(made["jobId"], token))["state"] == "JOB_STATE_CANCELLED"


@pytest.mark.parametrize("point", ["create_build", "get_build", "create_vm", "boot_vm"])
async def test_a_killed_gatewayd_finishes_what_it_began(platform: Edge, point: str) -> None:
    token = await platform.tenant("acme")
    platform.holds.hold(point)
    made = await create(platform, token, replicas=2)
    async with asyncio.timeout(30):
        await platform.holds.reached[point].wait()
    await platform.kill_gatewayd()
    platform.holds.release(point)
    await platform.start_gatewayd()
    job = await platform.ended(made["jobId"], token)
    assert job["state"] == "JOB_STATE_COMPLETED", job
    assert set(platform.metald.created.values()) == {1}
    assert len(platform.metald.living()) == 2
    assert (await visit(platform, made["deployment"])).status == 200


@pytest.mark.parametrize("point", ["shutdown_vm", "delete_vm"])
async def test_a_killed_gatewayd_finishes_a_deletion(platform: Edge, point: str) -> None:
    token = await platform.tenant("acme")
    made = await create(platform, token)
    await platform.ended(made["jobId"], token)
    platform.holds.hold(point)
    body = {"deploymentId": "web", "graceMs": 100}
    answer = await platform.call("DeploymentService/DeleteDeployment", body, token=token)
    async with asyncio.timeout(30):
        await platform.holds.reached[point].wait()
    await platform.kill_gatewayd()
    # Envoy serves on alone; what is withdrawn stays withdrawn.
    assert (await visit(platform, made["deployment"])).status == 404
    platform.holds.release(point)
    await platform.start_gatewayd()
    job = await platform.ended(answer.json()["jobId"], token)
    assert job["state"] == "JOB_STATE_COMPLETED", job
    assert platform.metald.living() == []


async def test_endpoints_answer_while_gatewayd_is_down(platform: Edge) -> None:
    token = await platform.tenant("acme")
    made = await create(platform, token)
    await platform.ended(made["jobId"], token)
    await platform.kill_gatewayd()
    assert (await visit(platform, made["deployment"])).status == 200
    assert (await platform.call("JobService/ListJobs", token=token)).status == 503
