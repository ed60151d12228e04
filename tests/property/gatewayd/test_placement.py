"""Placement as properties: for any hosts and any wish."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from ironworks.gatewayd.placement import Place, free_of, place
from ironworks.gatewayd.types import DeploymentSpec, Host, HostState, Resources, shape_of
from ironworks.model.errors import FailedPrecondition, ResourceExhausted, Unavailable
from ironworks.model.units import MIB, NS_PER_SECOND

NOW_NS = 100 * NS_PER_SECOND

resources = st.builds(
    Resources,
    vcpus=st.integers(0, 12),
    memory_bytes=st.integers(0, 12).map(lambda count: count * 256 * MIB),
    disk_bytes=st.integers(0, 4).map(lambda count: count * MIB),
    vms=st.integers(0, 12),
)


@st.composite
def host_lists(draw: st.DrawFn) -> list[Host]:
    count = draw(st.integers(0, 5))
    return [
        Host(
            host_id=f"hst_{number}",
            name=f"h{number}",
            metald_url="http://127.0.0.1:1",
            zone=draw(st.sampled_from("abc")),
            region="",
            architecture="amd64",
            driver="fake",
            acceleration="none",
            capacity=draw(resources),
            allocated=draw(resources.map(lambda one: replace(one, vms=one.vms // 4))),
            labels=draw(st.dictionaries(st.sampled_from("xy"), st.sampled_from("12"))),
            state=draw(st.sampled_from([HostState.READY, HostState.READY, HostState.CORDONED])),
            version="",
            registered_at_ns=0,
            last_heartbeat_at_ns=draw(st.sampled_from([NOW_NS, NOW_NS, 0])),
        )
        for number in range(count)
    ]


wishes = st.builds(
    DeploymentSpec,
    image=st.just("web"),
    replicas=st.integers(0, 8),
    vcpus=st.integers(1, 3),
    memory_bytes=st.integers(1, 3).map(lambda count: count * 256 * MIB),
    disk_bytes=st.sampled_from([0, 0, MIB]),
    zones=st.sampled_from([(), (), ("a",), ("a", "b")]),
    host_labels=st.sampled_from([{}, {}, {"x": "1"}]),
)


def attempt(
    spec: DeploymentSpec, hosts: list[Host], placed: dict[str, Resources]
) -> tuple[Place, ...] | None:
    try:
        return place(spec, range(spec.replicas), hosts, placed, {}, NOW_NS)
    except (ResourceExhausted, FailedPrecondition, Unavailable):
        return None


@given(spec=wishes, hosts=host_lists(), taken=st.lists(resources, max_size=5), data=st.data())
def test_places_are_where_they_may_be_and_never_too_many(
    spec: DeploymentSpec, hosts: list[Host], taken: list[Resources], data: st.DataObject
) -> None:
    placed = {host.host_id: used for host, used in zip(hosts, taken, strict=False)}
    places = attempt(spec, hosts, placed)
    shuffled = data.draw(st.permutations(hosts))
    assert attempt(spec, shuffled, placed) == places
    if places is None:
        return
    assert [one.index for one in places] == list(range(spec.replicas))
    by_id = {host.host_id: host for host in hosts}
    given_away: dict[str, Resources] = {}
    for one in places:
        host = by_id[one.host_id]
        assert host.state is HostState.READY
        assert host.last_heartbeat_at_ns == NOW_NS
        assert one.zone == host.zone
        assert not spec.zones or host.zone in spec.zones
        assert spec.host_labels.items() <= host.labels.items()
        given_away[one.host_id] = given_away.get(one.host_id, Resources()) + shape_of(spec)
    for host_id, total in given_away.items():
        assert free_of(by_id[host_id], placed.get(host_id, Resources())).holds(total)


@given(spec=wishes, hosts=host_lists())
def test_what_is_refused_for_want_of_room_has_none(spec: DeploymentSpec, hosts: list[Host]) -> None:
    try:
        place(spec, range(spec.replicas), hosts, {}, {}, NOW_NS)
    except ResourceExhausted:
        shape = shape_of(spec)
        room = 0
        for host in hosts:
            free = free_of(host, Resources())
            suits = not spec.zones or host.zone in spec.zones
            suits = suits and spec.host_labels.items() <= host.labels.items()
            ready = host.state is HostState.READY and host.last_heartbeat_at_ns == NOW_NS
            while suits and ready and room < spec.replicas and free.holds(shape):
                free, room = free - shape, room + 1
        assert room < spec.replicas
    except (FailedPrecondition, Unavailable):
        return


@given(replicas=st.integers(1, 12), zones=st.lists(st.sampled_from("abc"), min_size=1, max_size=6))
def test_where_there_is_room_replicas_are_spread(replicas: int, zones: list[str]) -> None:
    ample = Resources(vcpus=1000, memory_bytes=1 << 50, disk_bytes=1 << 50, vms=1000)
    hosts = [
        Host(
            host_id=f"hst_{number}",
            name=f"h{number}",
            metald_url="",
            zone=zone,
            region="",
            architecture="amd64",
            driver="fake",
            acceleration="none",
            capacity=ample,
            allocated=Resources(),
            labels={},
            state=HostState.READY,
            version="",
            registered_at_ns=0,
            last_heartbeat_at_ns=NOW_NS,
        )
        for number, zone in enumerate(zones)
    ]
    places = place(
        DeploymentSpec(image="web", replicas=replicas), range(replicas), hosts, {}, {}, NOW_NS
    )
    by_zone = Counter(dict.fromkeys(zones, 0))
    by_zone.update(one.zone for one in places)
    assert max(by_zone.values()) - min(by_zone.values()) <= 1
    for zone in by_zone:
        by_host = Counter({host.host_id: 0 for host in hosts if host.zone == zone})
        by_host.update(one.host_id for one in places if one.zone == zone)
        assert max(by_host.values()) - min(by_host.values()) <= 1
