from __future__ import annotations

from dataclasses import replace

import pytest

from ironworks.gatewayd import placement
from ironworks.gatewayd.types import DeploymentSpec, Host, HostState, Resources
from ironworks.model.errors import FailedPrecondition, ResourceExhausted, Unavailable
from ironworks.model.units import GIB, MIB

NOW_NS = 1


def host(name: str, zone: str = "a", vms: int = 4, **labels: str) -> Host:
    return Host(
        host_id=name,
        name=name,
        metald_url="http://127.0.0.1:1",
        zone=zone,
        region="",
        architecture="amd64",
        driver="fake",
        acceleration="none",
        capacity=Resources(vcpus=vms, memory_bytes=vms * GIB, disk_bytes=GIB, vms=vms),
        allocated=Resources(),
        labels=labels,
        state=HostState.READY,
        version="",
        registered_at_ns=0,
        last_heartbeat_at_ns=NOW_NS,
    )


def hosts_of(spec: DeploymentSpec, hosts: list[Host], **taken: Resources) -> list[str]:
    places = placement.place(spec, range(spec.replicas), hosts, taken, {}, NOW_NS)
    return [one.host_id for one in places]


def spec(replicas: int = 1, zones: tuple[str, ...] = (), disk_bytes: int = 0) -> DeploymentSpec:
    return DeploymentSpec(
        image="web", replicas=replicas, memory_bytes=GIB, zones=zones, disk_bytes=disk_bytes
    )


def test_zones_come_before_hosts_and_room_before_names() -> None:
    hosts = [host("h1"), host("h2"), host("h3", zone="b")]
    assert hosts_of(spec(4), hosts) == ["h1", "h3", "h2", "h3"]
    half_full = Resources(vcpus=1, memory_bytes=GIB, vms=1)
    assert hosts_of(spec(1), [host("h1"), host("h2")], h1=half_full) == ["h2"]


def test_all_find_a_place_or_none() -> None:
    with pytest.raises(ResourceExhausted, match="4 of 5"):
        hosts_of(spec(5), [host("h1")])
    assert hosts_of(spec(0), []) == []


def test_what_is_reserved_or_reported_is_taken() -> None:
    full = Resources(vcpus=4, memory_bytes=4 * GIB, vms=4)
    with pytest.raises(ResourceExhausted):
        hosts_of(spec(1), [host("h1")], h1=full)
    one = host("h1", vms=1)
    reported = Resources(vcpus=1, memory_bytes=GIB, vms=1)
    assert placement.free_of(one, reported) == Resources(disk_bytes=GIB)


def test_only_hosts_that_suit_and_are_ready() -> None:
    gpu = host("h2", zone="b", kind="gpu")
    assert hosts_of(spec(1, zones=("b",)), [host("h1"), gpu]) == ["h2"]
    with pytest.raises(FailedPrecondition):
        hosts_of(spec(1, zones=("c",)), [host("h1"), gpu])
    late = NOW_NS + 16_000_000_000
    with pytest.raises(Unavailable):
        placement.place(spec(1), [0], [host("h1")], {}, {}, late)
    closed = [replace(host("h1"), reported=HostState.DRAINING)]
    closed += [replace(host("h2"), state=HostState.CORDONED)]
    with pytest.raises(FailedPrecondition, match="cordoned"):
        hosts_of(spec(1), closed)
    assert hosts_of(spec(1), [*closed, host("h3")]) == ["h3"]


def test_a_host_that_reports_no_disk_is_left_to_its_metald() -> None:
    assert hosts_of(spec(1, disk_bytes=GIB), [host("h1")]) == ["h1"]
    with pytest.raises(ResourceExhausted):
        hosts_of(spec(1, disk_bytes=GIB + MIB), [host("h1")])
    silent = replace(host("h1"), capacity=Resources(vcpus=1, memory_bytes=GIB, vms=1))
    assert hosts_of(spec(1, disk_bytes=GIB), [silent]) == ["h1"]
