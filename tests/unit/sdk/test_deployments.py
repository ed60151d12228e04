"""Deployments."""

from __future__ import annotations

import pytest

from ironworks.gen.ironworks.gatewayd.v1 import deployments_pb, jobs_pb
from ironworks.model.errors import (
    Internal,
    NotFound,
)
from ironworks.sdk import AsyncIronworks
from ironworks.sdk.deployments import deploy_result
from ironworks.testkit.fakeapi import FakeApi


async def test_a_deployment_from_order_to_endpoint(api: FakeApi, client: AsyncIronworks) -> None:
    accepted = await client.deployments.create(
        "oci:/x", name="web", replicas=2, memory_bytes=1 << 28, env={"A": "b"}, port=80
    )
    seen: list[jobs_pb.JobState] = []
    result = await client.deployments.wait(
        accepted.job_id, on_progress=lambda job: seen.append(job.state)
    )
    assert result.endpoint.startswith("https://web-")
    assert (result.build_ms, result.boot_ms, len(result.vm_ids)) == (1200, 3400, 1)
    assert seen[0] is jobs_pb.JobState.QUEUED
    assert seen[-1] is jobs_pb.JobState.COMPLETED
    spec = api.deployments["web"].spec
    assert spec is not None
    assert spec.shape is not None
    assert (spec.replicas, spec.shape.memory_bytes, spec.env) == (2, 1 << 28, {"A": "b"})


async def test_get_list_and_delete(api: FakeApi, client: AsyncIronworks) -> None:
    accepted = await client.deployments.create("oci:/x", name="web", labels={"team": "a"})
    found = await client.deployments.get("web")
    assert found == accepted.deployment
    assert [one.name for one in await client.deployments.list(labels={"team": "a"})] == ["web"]
    job_id = await client.deployments.delete("web", grace_ms=0)
    assert (await client.jobs.wait(job_id)).kind is jobs_pb.JobKind.DELETE_DEPLOYMENT
    request = api.asked["DeleteDeployment"][-1]
    assert isinstance(request, deployments_pb.DeleteDeploymentRequest)
    assert request.has_field("grace_ms")
    with pytest.raises(NotFound):
        await client.deployments.get("none")


async def test_a_whole_specification(api: FakeApi, client: AsyncIronworks) -> None:
    spec = deployments_pb.DeploymentSpec(
        image="oci:/x", restart_policy=deployments_pb.RestartPolicy.NEVER
    )
    await client.deployments.submit(spec, name="web")
    assert api.deployments["web"].spec == spec


def test_a_job_that_made_no_deployment_has_none() -> None:
    with pytest.raises(Internal, match="names no deployment"):
        deploy_result(jobs_pb.Job(job_id="job_x"))
