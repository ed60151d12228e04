import pytest

from ironworks.metald import bounds
from ironworks.metald.drivers.scratch import MIN_SCRATCH_BYTES
from ironworks.metald.types import Readiness, RestartPolicy, Workload
from ironworks.model.errors import InvalidRequest
from ironworks.model.units import GIB, MIB
from ironworks.testkit.metald import vm_spec


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"name": "Web"}, "name"),
        ({"name": "a" * 64}, "name"),
        ({"vcpus": 0}, "vcpus"),
        ({"vcpus": 33}, "vcpus"),
        ({"memory_bytes": 63 * MIB}, "memory_bytes"),
        ({"memory_bytes": 65 * GIB}, "memory_bytes"),
        ({"memory_bytes": 64 * MIB + 1}, "multiple"),
        ({"cpu_weight": 0}, "cpu_weight"),
        ({"rootfs_asset_id": "../etc"}, "rootfs_asset_id"),
        ({"kernel_asset_id": "x"}, "kernel_asset_id"),
        ({"deployment_id": "x"}, "deployment_id"),
        ({"labels": {"Bad Key": "x"}}, "labels"),
        ({"labels": {"k": "x" * 256}}, "labels"),
        ({"labels": {f"k{n}": "" for n in range(33)}}, "labels"),
        ({"readiness": Readiness(port=0)}, "tcp_port"),
        ({"readiness": Readiness(port=65_536)}, "tcp_port"),
        ({"readiness": Readiness(port=80, period_seconds=0)}, "period_seconds"),
        ({"readiness": Readiness(port=80, timeout_seconds=61)}, "timeout_seconds"),
        ({"readiness": Readiness(port=0, http_path="/")}, r"http\.port"),
        ({"readiness": Readiness(port=80, http_path="x")}, r"http\.path"),
        ({"readiness": Readiness(port=80, http_path="/a b")}, r"http\.path"),
        ({"readiness": Readiness(port=80, http_path="/\r\nX: y")}, r"http\.path"),
        ({"readiness": Readiness(port=80, http_path="/" * 2001)}, r"http\.path"),
        ({"readiness": Readiness(port=80, http_path="/", expected_status=99)}, "expected_status"),
        ({"readiness": Readiness(port=80, failure_threshold=21)}, "failure_threshold"),
        ({"readiness": Readiness(port=80, success_threshold=0)}, "success_threshold"),
        ({"restart": RestartPolicy(min_backoff_seconds=0)}, "min_backoff_seconds"),
        ({"restart": RestartPolicy(max_backoff_seconds=3601)}, "max_backoff_seconds"),
        (
            {"restart": RestartPolicy(min_backoff_seconds=9, max_backoff_seconds=8)},
            "less than min_backoff_seconds",
        ),
        ({"restart": RestartPolicy(max_restarts=0)}, "max_restarts"),
        ({"disk_bytes": -1}, "disk_bytes"),
        ({"disk_bytes": MIN_SCRATCH_BYTES - 1}, "disk_bytes"),
        ({"workload": Workload(argv=("",))}, "argv"),
        ({"workload": Workload(argv=("a\0b",))}, "NUL"),
        ({"workload": Workload(argv=("a",) * 1025)}, "arguments"),
        ({"workload": Workload(argv=("a" * 140_000,))}, "larger"),
        ({"workload": Workload(env=("NOVALUE",))}, "NAME=value"),
        ({"workload": Workload(env=("=x",))}, "NAME=value"),
        ({"workload": Workload(working_directory="srv")}, "absolute"),
        ({"workload": Workload(stop_signal="kill -9")}, "stop_signal"),
        ({"workload": Workload(stop_grace_seconds=0)}, "stop_grace_seconds"),
        ({"workload": Workload(stop_grace_seconds=float("nan"))}, "stop_grace_seconds"),
    ],
)
def test_a_spec_out_of_bounds_is_refused_by_name(changes: dict[str, object], names: str) -> None:
    with pytest.raises(InvalidRequest, match=names):
        bounds.check_spec(vm_spec(**changes))


def test_the_bounds_themselves_are_allowed() -> None:
    for spec in (
        vm_spec(vcpus=1, memory_bytes=64 * MIB),
        vm_spec(vcpus=32, memory_bytes=64 * GIB, readiness=Readiness(port=65_535)),
    ):
        assert bounds.check_spec(spec) is spec
