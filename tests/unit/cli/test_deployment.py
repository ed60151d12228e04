"""`iron deployment`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ironworks.gen.ironworks.gatewayd.v1 import deployments_pb

if TYPE_CHECKING:
    from conftest import Iron


async def test_get_and_list(iron: Iron) -> None:
    await iron("deploy", "oci:/x", "--name", "web", "--replicas", "2")
    iron.api.deployments["web"].replicas = [
        deployments_pb.Replica(index=0, vm_id="vm_a", state=deployments_pb.ReplicaState.READY),
        deployments_pb.Replica(
            index=1,
            vm_id="vm_b",
            state=deployments_pb.ReplicaState.FAILED,
            reason="Its kernel panicked.",
        ),
    ]
    done = await iron("deployment", "get", "web")
    for shown in ("1/2", "vm_a", "Its kernel panicked.", "1 vCPU, 256.0 MiB"):
        assert shown in done.out
    listed = await iron("deployment", "list")
    assert "1/2" in listed.out
    assert (await iron("deployment", "list", "--json")).json["deployments"][0]["name"] == "web"
    await iron("deployment", "get", "none", status=66)


async def test_all_that_a_deployment_is_told_reaches_the_platform(iron: Iron) -> None:
    words = "--vcpus 2 --memory 1GiB --disk 2GiB --port 80 --env A=b --restart always"
    more = "--health-path /up --egress 203.0.113.0/24:80 --ready-within 2.5"
    await iron("deploy", "oci:/x", "--name", "web", *words.split(), *more.split())
    assert iron.api.deployments["web"].spec == deployments_pb.DeploymentSpec(
        image="oci:/x",
        replicas=1,
        shape=deployments_pb.VmShape(vcpus=2, memory_bytes=1 << 30, disk_bytes=2 << 30),
        port=80,
        env={"A": "b"},
        restart_policy=deployments_pb.RestartPolicy.ALWAYS,
        readiness=deployments_pb.ReadinessCheck(http=deployments_pb.HttpCheck(path="/up")),
        egress=[deployments_pb.EgressRule(cidr="203.0.113.0/24", ports=[80])],
        boot_timeout_ms=2_500,
    )


async def test_delete_waits_for_its_job(iron: Iron) -> None:
    await iron("deploy", "oci:/x", "--name", "web")
    done = await iron("deployment", "delete", "web", "--json")
    assert done.json["deleted"] is True
    assert done.json["job_id"].startswith("job_")
    detached = await iron("deployment", "delete", "web", "--detach", "--json")
    assert detached.json["deleted"] is False
