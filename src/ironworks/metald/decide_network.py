"""Decisions about networks and limits of VMs: what is within bounds, which host port; pure."""

import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import replace

from ironworks.metald import types as t
from ironworks.metald.types import EgressRule, NetworkSpec, Protocol, PublishedPort, RateLimits
from ironworks.model.errors import AlreadyExists, InvalidRequest, ResourceExhausted

MIN_NETWORK_BYTES_PER_SECOND = 4096
"""Below it a single full packet would take a noticeable part of a second."""
MIN_DISK_BYTES_PER_SECOND = 64 * 1024
MAX_PER_SECOND = 1 << 40
FIRST_CHOSEN_PORT, LAST_CHOSEN_PORT = 40_000, 59_999
"""Where metald looks for a host port when the caller names none."""

HostPort = tuple[Protocol, int]


def normal_cidr(text: str, field: str) -> str:
    """The network that `text` names, in its usual form; an address alone is a network of one.

    Raises:
        InvalidRequest: it is none, or has bits beyond its prefix, which is most often a mistake.
    """
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        pass
    try:
        meant = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise InvalidRequest(
            f"{field} {text[:64]!r} is no IPv4 or IPv6 network.",
            hint="Write it as 203.0.113.0/24 or 2001:db8::/32.",
        ) from None
    raise InvalidRequest(
        f"{field} {text[:64]!r} names an address within a network.", hint=f"Write {meant}."
    )


def check_network(network: NetworkSpec) -> None:
    """Refuse what is out of bounds.

    Raises:
        InvalidRequest: says which field and why.
    """
    for items, most, field in (
        (network.egress, t.MAX_EGRESS_RULES, "egress"),
        (network.published_ports, t.MAX_PUBLISHED_PORTS, "published_ports"),
        (network.nameservers, t.MAX_NAMESERVERS, "nameservers"),
    ):
        if len(items) > most:
            raise InvalidRequest(f"spec.network.{field} may have at most {most} items.")
    for index, rule in enumerate(network.egress):
        _check_rule(rule, f"spec.network.egress[{index}]")
    for index, port in enumerate(network.published_ports):
        _check_published(port, f"spec.network.published_ports[{index}]")
    for name in network.nameservers:
        _check_nameserver(name)
    wanted = [(port.protocol, port.host_port) for port in network.published_ports if port.host_port]
    for protocol, number in wanted:
        if wanted.count((protocol, number)) > 1:
            raise InvalidRequest(f"spec.network.published_ports has {number}/{protocol} twice.")


def _check_rule(rule: EgressRule, field: str) -> None:
    normal_cidr(rule.cidr, f"{field}.cidr")
    if not (0 <= rule.first_port <= t.MAX_PORT and 0 <= rule.last_port <= t.MAX_PORT):
        raise InvalidRequest(f"{field}: ports must be 1 to {t.MAX_PORT}, or 0 for all.")
    if rule.first_port == 0 and rule.last_port != 0:
        raise InvalidRequest(f"{field} has a last_port and no first_port.")
    if rule.last_port < rule.first_port:
        raise InvalidRequest(f"{field}.last_port is less than first_port.")


def _check_published(port: PublishedPort, field: str) -> None:
    if not 1 <= port.guest_port <= t.MAX_PORT:
        raise InvalidRequest(f"{field}.guest_port must be 1 to {t.MAX_PORT}.")
    if not 0 <= port.host_port <= t.MAX_PORT:
        raise InvalidRequest(
            f"{field}.host_port must be 1 to {t.MAX_PORT}, or 0 to have one chosen."
        )


def _check_nameserver(text: str) -> None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise InvalidRequest(f"spec.network.nameservers: {text[:64]!r} is no address.") from None
    if address.is_unspecified or address.is_multicast or address.is_loopback:
        raise InvalidRequest(
            f"spec.network.nameservers: {text} is no address that a guest can reach."
        )


def check_rate_limits(limits: RateLimits) -> None:
    """Refuse what is out of bounds.

    Raises:
        InvalidRequest: says which field and why.
    """
    for value, least, field in (
        (limits.disk_bytes, MIN_DISK_BYTES_PER_SECOND, "disk_bytes_per_second"),
        (limits.disk_operations, 1, "disk_operations_per_second"),
        (
            limits.network_in_bytes,
            MIN_NETWORK_BYTES_PER_SECOND,
            "network_in_bytes_per_second",
        ),
        (
            limits.network_out_bytes,
            MIN_NETWORK_BYTES_PER_SECOND,
            "network_out_bytes_per_second",
        ),
    ):
        if value != 0 and not least <= value <= MAX_PER_SECOND:
            raise InvalidRequest(
                f"spec.rate_limits.{field} must be {least} to {MAX_PER_SECOND}, or 0 for none."
            )


def host_ports(networks: Iterable[NetworkSpec]) -> frozenset[HostPort]:
    """The host ports that these VMs have."""
    return frozenset(
        (port.protocol, port.host_port) for network in networks for port in network.published_ports
    )


def choose_ports(
    network: NetworkSpec, *, taken: frozenset[HostPort], is_free: Callable[[HostPort], bool]
) -> NetworkSpec:
    """The network with every host port chosen.

    Args:
        network: Within its bounds.
        taken: What other VMs have.
        is_free: Whether no program of the host uses a port.

    Raises:
        AlreadyExists: a port that was named is taken.
        ResourceExhausted: none is left to choose.
    """
    ours: set[HostPort] = set()
    for port in network.published_ports:
        wanted = (port.protocol, port.host_port)
        if port.host_port == 0:
            continue
        if wanted in taken or not is_free(wanted):
            raise AlreadyExists(
                f"Port {port.host_port}/{port.protocol} of the host is taken.",
                hint="Name another host_port, or 0 to have one chosen.",
            )
        ours.add(wanted)
    chosen: list[PublishedPort] = []
    for port in network.published_ports:
        if port.host_port == 0:
            number = _free_port(port.protocol, taken | ours, is_free)
            ours.add((port.protocol, number))
            chosen.append(replace(port, host_port=number))
        else:
            chosen.append(port)
    return replace(network, published_ports=tuple(chosen))


def _free_port(
    protocol: Protocol, taken: frozenset[HostPort], is_free: Callable[[HostPort], bool]
) -> int:
    for number in range(FIRST_CHOSEN_PORT, LAST_CHOSEN_PORT + 1):
        if (protocol, number) not in taken and is_free((protocol, number)):
            return number
    raise ResourceExhausted(
        "No port of the host is left to publish.",
        hint=f"Name one outside of {FIRST_CHOSEN_PORT} to {LAST_CHOSEN_PORT}.",
    )


def as_asked(network: NetworkSpec, asked: NetworkSpec) -> NetworkSpec:
    """`network` with 0 for the host ports that `asked` left to be chosen: to compare the two."""
    if len(network.published_ports) != len(asked.published_ports):
        return network
    published = tuple(
        replace(ours, host_port=theirs.host_port and ours.host_port)
        for ours, theirs in zip(network.published_ports, asked.published_ports, strict=True)
    )
    return replace(network, published_ports=published)
