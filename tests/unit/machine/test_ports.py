from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ironworks.machine.ports import DEFAULT_PORTS, any_free, choose, is_free
from ironworks.model.errors import FailedPrecondition


def test_defaults_when_they_are_free() -> None:
    assert choose("127.0.0.1", {}, free=lambda _host, _port: True) == dict(DEFAULT_PORTS)


def test_a_default_that_is_taken_is_replaced() -> None:
    chosen = choose(
        "127.0.0.1", {}, free=lambda _host, port: port != 8080, other=lambda _host: 40000
    )
    assert chosen["metald"] == 40000
    assert chosen["edge"] == DEFAULT_PORTS["edge"]


def test_a_port_that_the_operator_set_is_taken_or_refused() -> None:
    assert choose("h", {"edge": 443}, free=lambda _host, _port: True)["edge"] == 443
    with pytest.raises(FailedPrecondition, match="Port 443, set for edge, is taken"):
        choose("h", {"edge": 443}, free=lambda _host, port: port != 443)


@given(st.sets(st.sampled_from(sorted(DEFAULT_PORTS.values()))))
def test_no_two_services_share_a_port(taken: set[int]) -> None:
    numbers = iter(range(8080, 9000))  # the kernel may well offer another service's default
    chosen = choose(
        "h", {}, free=lambda _host, port: port not in taken, other=lambda _host: next(numbers)
    )
    assert len(set(chosen.values())) == len(DEFAULT_PORTS)


def test_a_listener_makes_a_port_not_free() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert not is_free("127.0.0.1", listener.getsockname()[1])
    assert is_free("127.0.0.1", any_free("127.0.0.1"))
