from dataclasses import replace

import pytest

from ironworks.metald import decide_network as d
from ironworks.metald.drivers.driver import RateLimits
from ironworks.metald.types import EgressRule, NetworkSpec, Protocol, PublishedPort
from ironworks.model.errors import AlreadyExists, InvalidRequest, ResourceExhausted


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("203.0.113.0/24", "203.0.113.0/24"),
        ("203.0.113.7", "203.0.113.7/32"),
        ("2001:DB8:0::/32", "2001:db8::/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
    ],
)
def test_a_network_is_taken_in_its_usual_form(text: str, normal: str) -> None:
    assert d.normal_cidr(text, "cidr") == normal


@pytest.mark.parametrize("text", ["", "everything", "10.0.0.0/33", "10.0.0/8x", "1.2.3.4/24"])
def test_what_is_no_network_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(InvalidRequest, match="cidr"):
        d.normal_cidr(text, "cidr")


def test_an_address_within_a_network_is_told_the_network() -> None:
    with pytest.raises(InvalidRequest) as refused:
        d.normal_cidr("203.0.113.7/24", "cidr")
    assert "203.0.113.0/24" in refused.value.hint


ANY = EgressRule(cidr="0.0.0.0/0")


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (NetworkSpec(egress=(ANY,) * 65), "at most 64"),
        (NetworkSpec(egress=(replace(ANY, first_port=65_536, last_port=65_536),)), "65535"),
        (NetworkSpec(egress=(replace(ANY, first_port=-1),)), "65535"),
        (NetworkSpec(egress=(replace(ANY, last_port=80),)), "no first_port"),
        (NetworkSpec(egress=(replace(ANY, first_port=90, last_port=80),)), "less than"),
        (NetworkSpec(egress=(EgressRule(cidr="nowhere"),)), "no IPv4 or IPv6 network"),
        (NetworkSpec(published_ports=(PublishedPort(host_port=1, guest_port=0),)), "guest_port"),
        (NetworkSpec(published_ports=(PublishedPort(host_port=70_000, guest_port=1),)), "host_"),
        (NetworkSpec(published_ports=(PublishedPort(host_port=0, guest_port=1),) * 65), "most 64"),
        (NetworkSpec(published_ports=(PublishedPort(host_port=8, guest_port=1),) * 2), "twice"),
        (NetworkSpec(nameservers=("1.1.1.1",) * 4), "at most 3"),
        (NetworkSpec(nameservers=("dns.example",)), "no address"),
        (NetworkSpec(nameservers=("127.0.0.1",)), "can reach"),
        (NetworkSpec(nameservers=("0.0.0.0",)), "can reach"),  # noqa: S104
    ],
)
def test_what_is_out_of_bounds_is_refused_with_its_reason(network: NetworkSpec, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        d.check_network(network)


@pytest.mark.parametrize(
    "limits",
    [
        RateLimits(disk_bytes=-1),
        RateLimits(disk_bytes=1),
        RateLimits(disk_operations=-5),
        RateLimits(network_in_bytes=100),
        RateLimits(network_out_bytes=1 << 41),
    ],
)
def test_limits_that_nothing_could_live_with_are_refused(limits: RateLimits) -> None:
    with pytest.raises(InvalidRequest, match="rate_limits"):
        d.check_rate_limits(limits)


def test_limits_within_bounds_and_none_at_all_are_taken() -> None:
    d.check_rate_limits(RateLimits())
    d.check_rate_limits(RateLimits(disk_bytes=1 << 20, network_in_bytes=4096))


def ports(*numbers: int) -> NetworkSpec:
    return NetworkSpec(
        published_ports=tuple(PublishedPort(host_port=number, guest_port=80) for number in numbers)
    )


def test_a_named_port_is_kept_and_a_missing_one_is_chosen() -> None:
    taken = frozenset({(Protocol.TCP, d.FIRST_CHOSEN_PORT)})
    chosen = d.choose_ports(
        ports(8080, 0, 0),
        taken=taken,
        is_free=lambda port: port[1] != d.FIRST_CHOSEN_PORT + 1,
    )
    numbers = [port.host_port for port in chosen.published_ports]
    assert numbers == [8080, d.FIRST_CHOSEN_PORT + 2, d.FIRST_CHOSEN_PORT + 3]
    assert d.as_asked(chosen, ports(8080, 0, 0)) == ports(8080, 0, 0)
    assert d.as_asked(chosen, ports(8081, 0, 0)) != ports(8081, 0, 0)
    assert d.as_asked(chosen, ports(8080)) == chosen


@pytest.mark.parametrize("by", ["a VM", "a program of the host"])
def test_a_port_that_is_taken_is_refused_and_the_same_number_of_udp_is_not(by: str) -> None:
    taken = d.host_ports([ports(8080)]) if by == "a VM" else frozenset[d.HostPort]()
    is_free = {"a VM": True}.get(by, False)
    with pytest.raises(AlreadyExists, match="8080/tcp"):
        d.choose_ports(ports(8080), taken=taken, is_free=lambda _: is_free)
    udp = PublishedPort(host_port=8080, guest_port=80, protocol=Protocol.UDP)
    network = NetworkSpec(published_ports=(udp,))
    assert d.choose_ports(network, taken=taken, is_free=lambda _: True) == network


def test_no_port_left_is_said() -> None:
    with pytest.raises(ResourceExhausted, match="No port"):
        d.choose_ports(ports(0), taken=frozenset(), is_free=lambda _: False)
