from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ironworks.machine.ports import (
    DEFAULT_PORTS,
    PortTaken,
    Reservations,
    any_free,
    choose,
    is_free,
)


class Ports:
    """Ports of a machine, some of them taken."""

    def __init__(self, taken: set[int]) -> None:
        self.taken = set(taken)

    def take(self, _host: str, port: int) -> bool:
        free = port not in self.taken
        self.taken.add(port)
        return free


def test_defaults_when_they_are_free() -> None:
    assert choose("h", {}, take=Ports(set()).take) == dict(DEFAULT_PORTS)


def test_a_default_that_is_taken_is_replaced() -> None:
    chosen = choose("h", {}, take=Ports({8080}).take, other=lambda _host: 40000)
    assert chosen["metald"] == 40000
    assert chosen["edge"] == DEFAULT_PORTS["edge"]


def test_a_port_that_the_operator_set_is_taken_or_refused() -> None:
    assert choose("h", {"edge": 443}, take=Ports(set()).take)["edge"] == 443
    with pytest.raises(PortTaken, match="Port 443, set for edge, is taken"):
        choose("h", {"edge": 443}, take=Ports({443}).take)


def test_a_port_that_was_set_is_given_to_nobody_else() -> None:
    chosen = choose("h", {"edge": 8080}, take=Ports(set()).take, other=lambda _host: 40000)
    assert (chosen["edge"], chosen["metald"]) == (8080, 40000)


def test_a_restart_keeps_its_ports_if_they_are_free() -> None:
    before = {"edge": 5000, "metald": 5001}
    chosen = choose("h", {}, take=Ports({5001}).take, before=before, other=lambda _host: 40000)
    assert (chosen["edge"], chosen["metald"]) == (5000, 40000)


def test_it_ends_when_nothing_is_free() -> None:
    with pytest.raises(PortTaken, match="No free port"):
        choose("h", {}, take=lambda _host, _port: False, other=lambda _host: 40000)


@given(st.sets(st.sampled_from(sorted(DEFAULT_PORTS.values()))))
def test_no_two_services_share_a_port(taken: set[int]) -> None:
    numbers = iter(range(8080, 9000))  # the kernel may well offer another service's default
    chosen = choose("h", {}, take=Ports(taken).take, other=lambda _host: next(numbers))
    assert len(set(chosen.values())) == len(DEFAULT_PORTS)
    assert not set(chosen.values()) & taken


def test_a_listener_makes_a_port_not_free() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert not is_free("127.0.0.1", port)
        with Reservations() as reservations:
            assert not reservations.take("127.0.0.1", port)
    assert is_free("127.0.0.1", any_free("127.0.0.1"))


def test_two_platforms_that_start_together_do_not_choose_the_same() -> None:
    port = any_free("127.0.0.1")
    with Reservations() as one, Reservations() as other:
        assert one.take("127.0.0.1", port)
        assert not other.take("127.0.0.1", port)
    with Reservations() as later:
        assert later.take("127.0.0.1", port)
