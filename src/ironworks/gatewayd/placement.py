"""Placement: which hosts get the replicas of a deployment. Pure.

Replicas are spread over zones first, then over hosts: each goes to the zone that has the fewest of
the deployment, there to the host that has the fewest, there to the one with the most memory left
(so that hosts fill evenly), and by host id where all that is equal (so that the same state always
gives the same answer). Either all replicas find a place or none does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ironworks.gatewayd.decide import host_state
from ironworks.gatewayd.types import DeploymentSpec, Host, HostState, Resources, shape_of
from ironworks.model.errors import FailedPrecondition, ResourceExhausted, Unavailable

UNKNOWN_DISK_BYTES = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one replica goes."""

    index: int
    host_id: str
    zone: str


_CLOSED = frozenset({HostState.CORDONED, HostState.DRAINING})


def _suits(spec: DeploymentSpec, host: Host) -> bool:
    in_zone = not spec.zones or host.zone in spec.zones
    return in_zone and all(host.labels.get(key) == value for key, value in spec.host_labels.items())


def _suiting(spec: DeploymentSpec, hosts: Sequence[Host], now_ns: int) -> list[Host]:
    """Hosts that may have replicas of this deployment, by id."""
    states = [host_state(host, now_ns) for host in hosts]
    ready = [host for host, state in zip(hosts, states, strict=True) if state is HostState.READY]
    if states and all(state in _CLOSED for state in states):
        raise FailedPrecondition(
            "Every host is cordoned or is being drained.",
            hint="`iron host list` shows them; `iron host uncordon` opens one again.",
        )
    if not ready:
        raise Unavailable("No host is ready.", hint="See `iron host list`; is metald running?")
    suiting = sorted((host for host in ready if _suits(spec, host)), key=lambda host: host.host_id)
    if not suiting:
        raise FailedPrecondition(
            "No host suits the placement that was asked for.",
            hint="Compare spec.placement with the zones and labels of `iron host list`.",
        )
    return suiting


def free_of(host: Host, placed: Resources) -> Resources:
    """What a host has left.

    `placed` is what this directory has put there, `host.allocated` what the host last reported.
    Each may be ahead of the other (a replica placed a moment ago; a VM that was not made by us), so
    the greater of both counts as taken. A host that reports no disk leaves the judgement about disk
    to its metald.
    """
    left = host.capacity - host.allocated.at_least(placed)
    return left if host.capacity.disk_bytes else replace(left, disk_bytes=UNKNOWN_DISK_BYTES)


def place(
    spec: DeploymentSpec,
    indexes: Sequence[int],
    hosts: Sequence[Host],
    placed: Mapping[str, Resources],
    present: Mapping[str, int],
    now_ns: int,
) -> tuple[Place, ...]:
    """A place for each replica.

    Args:
        spec: What each replica needs, and where it may be.
        indexes: The replicas to place.
        hosts: The directory.
        placed: By host, what the replicas of all deployments have reserved.
        present: By host, how many replicas this deployment has there.
        now_ns: The time: silent hosts get nothing.

    Raises:
        Unavailable: no host is ready; that may pass.
        FailedPrecondition: all are cordoned or drained, or none of those that are ready suits.
        ResourceExhausted: those that suit have no room for all.
    """
    if not indexes:
        return ()
    suiting = _suiting(spec, hosts, now_ns)
    shape = shape_of(spec)
    free = {host.host_id: free_of(host, placed.get(host.host_id, Resources())) for host in suiting}
    by_host = Counter({host.host_id: present.get(host.host_id, 0) for host in suiting})
    by_zone: Counter[str] = Counter()
    for host in suiting:
        by_zone[host.zone] += by_host[host.host_id]
    places: list[Place] = []
    for index in indexes:
        roomy = [host for host in suiting if free[host.host_id].holds(shape)]
        if not roomy:
            raise ResourceExhausted(
                f"The hosts have room for {len(places)} of {len(indexes)} VMs of this size.",
                hint="Use smaller or fewer VMs, delete some, or add a host.",
            )
        best = min(
            roomy,
            key=lambda host: (
                by_zone[host.zone],
                by_host[host.host_id],
                -free[host.host_id].memory_bytes,
                host.host_id,
            ),
        )
        free[best.host_id] = free[best.host_id] - shape
        by_host[best.host_id] += 1
        by_zone[best.zone] += 1
        places.append(Place(index=index, host_id=best.host_id, zone=best.zone))
    return tuple(places)
