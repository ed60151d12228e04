import pytest
from protobuf import Oneof

from ironworks.gen.ironworks.metald.v1 import vm_pb as pb
from ironworks.metald.api import messages
from ironworks.metald.types import (
    Readiness,
    RestartMode,
    RestartPolicy,
    Transition,
    VmFilter,
    VmState,
    Workload,
)
from ironworks.model.errors import InvalidRequest
from ironworks.testkit.metald import KERNEL, ROOTFS, TENANT

FULL = pb.VmSpec(
    name="web",
    vcpus=2,
    memory_bytes=1 << 28,
    assets=pb.VmAssets(rootfs_asset_id=ROOTFS, kernel_asset_id=KERNEL),
    workload=pb.Workload(
        argv=["/bin/a", "b c"],
        env=["A=1"],
        user="app",
        working_directory="/srv",
        stop_signal="SIGINT",
        stop_grace_seconds=3,
    ),
    readiness=pb.ReadinessCheck(
        probe=Oneof("tcp_port", 8080), period_seconds=0.5, timeout_seconds=2
    ),
    cpu_weight=50,
    deployment_id="dep_x",
    labels={"b": "2", "a": "1"},
)


def spec(**changes: object) -> pb.VmSpec:
    base: dict[str, object] = {"vcpus": 1, "assets": pb.VmAssets(rootfs_asset_id=ROOTFS)}
    return pb.VmSpec(**{**base, **changes})  # pyright: ignore[reportArgumentType] - by name


def test_a_full_specification_is_read() -> None:
    read = messages.read_spec(FULL)
    assert (read.name, read.vcpus, read.memory_bytes) == ("web", 2, 1 << 28)
    assert (read.rootfs_asset_id, read.kernel_asset_id, read.initrd_asset_id) == (
        ROOTFS,
        KERNEL,
        "",
    )
    assert read.workload == Workload(
        argv=("/bin/a", "b c"),
        env=("A=1",),
        user="app",
        working_directory="/srv",
        stop_signal="SIGINT",
        stop_grace_seconds=3,
    )
    assert read.readiness == Readiness(port=8080, period_seconds=0.5, timeout_seconds=2)
    assert list(read.labels) == ["a", "b"]
    assert read.cpu_weight == 50


def test_what_is_left_empty_gets_its_documented_default() -> None:
    read = messages.read_spec(
        spec(vcpus=2, readiness=pb.ReadinessCheck(probe=Oneof("tcp_port", 1)))
    )
    assert read.cpu_weight == 200
    assert read.workload == Workload(stop_grace_seconds=10)
    assert read.readiness == Readiness(port=1, period_seconds=1, timeout_seconds=1)
    assert messages.read_spec(spec(readiness=pb.ReadinessCheck())).readiness is None


@pytest.mark.parametrize("message", [None, pb.VmSpec(), pb.VmSpec(assets=pb.VmAssets())])
def test_a_specification_without_a_root_is_refused(message: pb.VmSpec | None) -> None:
    with pytest.raises(InvalidRequest):
        messages.read_spec(message)


def test_checks_and_policies_are_read() -> None:
    http = pb.HttpProbe(port=80, expected_status=204)
    check = pb.ReadinessCheck(probe=Oneof("http", http), failure_threshold=5, success_threshold=2)
    policy = pb.RestartPolicy(mode=pb.RestartMode.ON_FAILURE, min_backoff_seconds=90)
    read = messages.read_spec(spec(readiness=check, restart=policy, disk_bytes=7))
    assert read.readiness == Readiness(
        port=80, http_path="/", expected_status=204, failure_threshold=5, success_threshold=2
    )
    # A longest wait that is not given is never less than the first.
    assert read.restart == RestartPolicy(
        mode=RestartMode.ON_FAILURE, min_backoff_seconds=90, max_backoff_seconds=90
    )
    assert read.disk_bytes == 7
    with pytest.raises(InvalidRequest, match="mode"):
        messages.read_spec(spec(restart=pb.RestartPolicy(mode=pb.RestartMode(77))))


def test_what_asks_for_nothing_is_no_demand() -> None:
    messages.read_spec(
        spec(
            restart=pb.RestartPolicy(mode=pb.RestartMode.NEVER, max_restarts=3),
            network=pb.VmNetworkSpec(),
            rate_limits=pb.RateLimits(),
        )
    )


def test_a_tenant_filters_within_its_own() -> None:
    message = pb.VmFilter(
        states=[pb.VmState.RUNNING], name="web", labels={"b": "2", "a": "1"}, tenant_id="tnt_other"
    )
    assert messages.read_filter(message, TENANT) == VmFilter(
        states=(VmState.RUNNING,),
        name="web",
        labels=(("a", "1"), ("b", "2")),
        tenant_id=TENANT,
    )
    assert messages.read_filter(message, None).tenant_id == "tnt_other"
    assert messages.read_filter(None, None) == VmFilter()


@pytest.mark.parametrize(
    "message",
    [
        pb.VmFilter(states=[pb.VmState.UNSPECIFIED]),
        pb.VmFilter(labels={f"k{number}": "" for number in range(9)}),
    ],
)
def test_a_filter_out_of_bounds_is_refused(message: pb.VmFilter) -> None:
    with pytest.raises(InvalidRequest):
        messages.read_filter(message, None)


def test_every_state_has_its_number_and_back() -> None:
    numbers = {
        messages.transition_message(
            Transition(before=None, after=state, at_ns=1, reason="why", generation=2)
        ).to
        for state in VmState
    }
    assert numbers == set(pb.VmState) - {pb.VmState.UNSPECIFIED}
    line = Transition(
        before=VmState.BOOTING, after=VmState.RUNNING, at_ns=1, reason="why", generation=2
    )
    message = messages.transition_message(line)
    assert (message.from_, message.to) == (pb.VmState.BOOTING, pb.VmState.RUNNING)
    assert (message.at_ns, message.reason, message.generation) == (1, "why", 2)
