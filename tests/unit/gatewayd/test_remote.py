"""What gatewayd asks of builderd and metald, and what it reads from their answers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ironworks.gatewayd.remote.builder import BuildPhase, view_of_build
from ironworks.gatewayd.remote.vms import VmPhase, view_of_vm, vm_spec
from ironworks.gatewayd.types import (
    Deployment,
    DeploymentSpec,
    DeploymentState,
    EgressRule,
    Readiness,
    Replica,
    ReplicaState,
    Resources,
    RestartMode,
)
from ironworks.gen.ironworks.builderd.v1 import build_pb
from ironworks.gen.ironworks.common.v1.common_pb import ImageConfig
from ironworks.gen.ironworks.metald.v1 import vm_pb
from ironworks.model.units import GIB

DEPLOYMENT = Deployment(
    deployment_id="dep_1",
    tenant_id="tnt_1",
    name="w" * 63,
    spec=DeploymentSpec(image="web", vcpus=2, memory_bytes=GIB, env={"B": "2", "A": "1"}),
    state=DeploymentState.DEPLOYING,
    reason="",
    host_label="",
    image_digest="",
    build_id="",
    rootfs_asset_id="ast_1",
    build_ms=0,
    build_reused=False,
    argv=("/app",),
    port=8080,
    generation=1,
    job_id="",
    labels={},
    created_at_ns=0,
    updated_at_ns=0,
)
REPLICA = Replica(
    vm_id="vm_1",
    deployment_id="dep_1",
    tenant_id="tnt_1",
    index=3,
    generation=1,
    host_id="hst_1",
    zone="",
    state=ReplicaState.PLACED,
    reason="",
    address="",
    resources=Resources(),
    boot_ordered_at_ns=0,
    boot_ms=0,
)


def test_a_replica_becomes_a_vm() -> None:
    spec = vm_spec(DEPLOYMENT, REPLICA)
    assert (spec.vcpus, spec.memory_bytes, spec.deployment_id) == (2, GIB, "dep_1")
    assert len(spec.name) <= 63
    assert spec.name.endswith("-3")
    assert spec.workload is not None
    assert (spec.workload.argv, spec.workload.env) == (["/app"], ["A=1", "B=2"])
    assert spec.assets is not None
    assert spec.assets.rootfs_asset_id == "ast_1"
    assert spec.readiness is not None
    assert spec.readiness.probe is not None
    assert spec.readiness.probe.value == 8080
    assert spec.restart is not None
    assert spec.restart.mode is vm_pb.RestartMode.NEVER
    assert spec.network is not None
    assert spec.network.egress == []


def test_checks_egress_and_restarts_are_handed_on() -> None:
    wish = replace(
        DEPLOYMENT.spec,
        readiness=Readiness(http_path="/ready", http_status=204, period_ms=500),
        restart=RestartMode.ALWAYS,
        egress=(EgressRule(cidr="10.0.0.0/8", ports=(53, 80)), EgressRule(cidr="::/0")),
    )
    spec = vm_spec(replace(DEPLOYMENT, spec=wish), REPLICA)
    assert spec.readiness is not None
    assert spec.readiness.probe is not None
    assert spec.readiness.probe.value == vm_pb.HttpProbe(
        port=8080, path="/ready", expected_status=204
    )
    assert spec.readiness.period_seconds == 0.5
    assert spec.network is not None
    rules = [(rule.cidr, rule.first_port, rule.last_port) for rule in spec.network.egress]
    assert rules == [("10.0.0.0/8", 53, 53), ("10.0.0.0/8", 80, 80), ("::/0", 0, 0)]
    assert spec.restart is not None
    assert spec.restart.mode is vm_pb.RestartMode.ALWAYS


@pytest.mark.parametrize(
    ("state", "phase"),
    [
        (vm_pb.VmState.CREATING, VmPhase.COMING),
        (vm_pb.VmState.CREATED, VmPhase.CREATED),
        (vm_pb.VmState.BOOTING, VmPhase.BOOTING),
        (vm_pb.VmState.RUNNING, VmPhase.RUNNING),
        (vm_pb.VmState.FAILED, VmPhase.ENDED),
        (vm_pb.VmState.STOPPED, VmPhase.ENDED),
        (vm_pb.VmState.PAUSED, VmPhase.ENDED),
        (vm_pb.VmState.DELETED, VmPhase.GONE),
    ],
)
def test_vms_have_phases(state: vm_pb.VmState, phase: VmPhase) -> None:
    assert view_of_vm(vm_pb.Vm(state=state)).phase is phase


def test_the_reason_of_an_ended_vm_has_its_last_words() -> None:
    ended = vm_pb.VmExit(sentence="The kernel panicked.", console_tail=["a", "b", "c", "d"])
    view = view_of_vm(vm_pb.Vm(reason="Boot failed.", exit=ended))
    assert view.reason == "Boot failed. The kernel panicked. Last on its console: b | c | d"
    assert view_of_vm(vm_pb.Vm(reason="Boot failed.")).reason == "Boot failed."


def test_builds_have_phases_progress_and_outcomes() -> None:
    state = build_pb.BuildState
    for one, phase in (
        (state.QUEUED, BuildPhase.RESOLVING),
        (state.REGISTERING, BuildPhase.BUILDING),
        (state.CANCELLED, BuildPhase.ENDED_BADLY),
        (state.FAILED, BuildPhase.ENDED_BADLY),
    ):
        assert view_of_build(build_pb.Build(state=one)).phase is phase
    failure = build_pb.BuildFailure(code="not_found", message="There is no such image.")
    failed = view_of_build(build_pb.Build(state=state.FAILED, failure=failure))
    assert (failed.code, failed.message) == ("not_found", "There is no such image.")
    assert view_of_build(build_pb.Build(state=state.CANCELLED)).code == "aborted"
    config = ImageConfig(entrypoint=["/app"], cmd=["x"], exposed_ports=["80/tcp"])
    done = view_of_build(
        build_pb.Build(
            state=state.COMPLETED,
            created_at_ns=1_000_000,
            ended_at_ns=6_000_000,
            reused_build_id="bld_0",
            result=build_pb.BuildResult(asset_id="ast_1", image_config=config),
        )
    )
    assert (done.build_ms, done.reused, done.rootfs_asset_id) == (5, True, "ast_1")
    assert (done.entrypoint, done.cmd, done.exposed_ports) == (("/app",), ("x",), ("80/tcp",))
