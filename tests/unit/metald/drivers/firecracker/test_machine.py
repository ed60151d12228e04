"""What Firecracker is told, without a Firecracker."""

import json
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from ironworks.metald.drivers.driver import GuestConfig, RateLimits, VmmSpec
from ironworks.metald.drivers.firecracker.api import MAX_BODY_BYTES, Json
from ironworks.metald.drivers.firecracker.machine import (
    Version,
    configuration,
    kernel_command_line,
    rate_limiter,
)
from ironworks.model.units import MIB

NEW: Version = (1, 16, 1)
SPEC = VmmSpec(
    vm_id="vm_1",
    vcpus=3,
    memory_bytes=256 * MIB,
    kernel_path=Path("/j/kernel"),
    initrd_path=Path("/j/initrd"),
    rootfs_path=Path("/j/rootfs"),
    rootfs_format="squashfs",
    guest=GuestConfig(hostname="web", argv=("/bin/true",)),
    jail_dir=Path("/j"),
    uid=1000001,
    gid=1000001,
    netns="iw-x",
    tap="iwtap0",
    mac="06:00:ac:10:00:02",
    cgroup_join_paths=(),
)


def told(spec: VmmSpec = SPEC, version: Version = NEW) -> dict[str, Json]:
    return dict(configuration(spec, version))


def test_a_whole_machine() -> None:
    machine = told()
    assert machine["/machine-config"] == {"vcpu_count": 3, "mem_size_mib": 256, "smt": False}
    assert machine["/boot-source"]["initrd_path"] == "initrd"
    assert machine["/drives/rootfs"]["is_read_only"] is True
    assert machine["/network-interfaces/eth0"] == {
        "iface_id": "eth0",
        "host_dev_name": "iwtap0",
        "guest_mac": "06:00:ac:10:00:02",
    }
    assert machine["/vsock"] == {"guest_cid": 3, "uds_path": "vsock.sock"}
    assert machine["/mmds/config"] == {"version": "V2", "network_interfaces": ["eth0"]}
    assert max(len(json.dumps(body)) for body in machine.values()) < MAX_BODY_BYTES


def test_disks_come_in_the_order_in_which_init_looks_for_them() -> None:
    paths = [path for path, _ in configuration(replace(SPEC, scratch_bytes=64 * MIB), NEW)]
    drives = [path for path in paths if path.startswith("/drives/")]
    assert drives == ["/drives/rootfs", "/drives/config", "/drives/scratch"]
    assert paths[0] == "/metrics"


def test_what_a_guest_may_write_to_is_flushed_when_it_asks() -> None:
    machine = told(replace(SPEC, scratch_bytes=64 * MIB))
    assert machine["/drives/scratch"]["cache_type"] == "Writeback"
    assert machine["/drives/scratch"]["is_read_only"] is False


@pytest.mark.parametrize(
    ("version", "paths"),
    [
        ((1, 3, 9), set[str]()),
        ((1, 15, 9), {"/entropy"}),
        ((1, 16, 0), {"/entropy", "/serial"}),
        ((2, 0, 0), {"/entropy", "/serial"}),
    ],
)
def test_a_version_is_not_told_what_it_does_not_know(version: Version, paths: set[str]) -> None:
    assert told(SPEC, version).keys() & {"/entropy", "/serial"} == paths


def test_limits_are_buckets_of_one_second() -> None:
    limits = RateLimits(
        disk_bytes=1001, disk_operations=10, network_in_bytes=500, network_out_bytes=600
    )
    machine = told(replace(SPEC, rate_limits=limits))
    assert machine["/drives/rootfs"]["rate_limiter"] == {
        "bandwidth": {"size": 1001, "refill_time": 1000},
        "ops": {"size": 10, "refill_time": 1000},
    }
    assert "rate_limiter" not in machine["/drives/config"]
    interface = machine["/network-interfaces/eth0"]
    assert interface["rx_rate_limiter"] == {"bandwidth": {"size": 500, "refill_time": 1000}}
    assert interface["tx_rate_limiter"] == {"bandwidth": {"size": 600, "refill_time": 1000}}
    assert rate_limiter(bytes_per_second=0) is None


def test_two_disks_share_the_limit() -> None:
    spec = replace(SPEC, rate_limits=RateLimits(disk_bytes=1001), scratch_bytes=64 * MIB)
    machine = told(spec)
    for name in ("rootfs", "scratch"):
        limiter = cast("dict[str, dict[str, int]]", machine[f"/drives/{name}"]["rate_limiter"])
        assert limiter["bandwidth"]["size"] == 501


def test_a_guest_ends_its_firecracker_by_a_reboot() -> None:
    words = kernel_command_line(["extra=1"]).split()
    assert "reboot=k" in words
    assert words[-1] == "extra=1"
