"""The order of `iron deploy`."""

from __future__ import annotations

from pathlib import Path

import pytest

from ironworks.cli.deploy import (
    RESTARTS,
    absolute_image,
    parse_egress,
    parse_env,
    parse_restart,
)
from ironworks.model.errors import InvalidRequest

HERE = Path("/srv/dev/app")


@pytest.mark.parametrize(
    ("image", "absolute"),
    [
        ("docker.io/library/nginx:1.27", "docker.io/library/nginx:1.27"),
        ("nginx", "nginx"),
        ("oci:layout", "oci:/srv/dev/app/layout"),
        ("oci:/srv/layout:v1", "oci:/srv/layout:v1"),
        ("oci-archive:../x.tar", "oci-archive:/srv/dev/app/../x.tar"),
        ("./layout", "/srv/dev/app/layout"),
        ("../x.tar", "/srv/dev/x.tar"),
        ("/srv/x.tar", "/srv/x.tar"),
        ("oci:", "oci:"),
    ],
)
def test_relative_paths_become_absolute(image: str, absolute: str) -> None:
    assert absolute_image(image, HERE) == absolute


def test_environment_is_read_as_the_shell_writes_it() -> None:
    assert parse_env(["A=1", "B=x=y", "C=", "A=2"]) == {"A": "2", "B": "x=y", "C": ""}


@pytest.mark.parametrize("assignment", ["A", "=1", ""])
def test_what_is_no_assignment(assignment: str) -> None:
    with pytest.raises(InvalidRequest, match="--env NAME=value"):
        parse_env([assignment])


def test_what_a_vm_may_connect_to_is_a_network_with_or_without_ports() -> None:
    for text, cidr, ports in (
        ("203.0.113.0/24", "203.0.113.0/24", []),
        ("203.0.113.0/24:80,443", "203.0.113.0/24", [80, 443]),
        ("2001:db8::/32", "2001:db8::/32", []),
        ("[2001:db8::/32]:443", "2001:db8::/32", [443]),
    ):
        rule = parse_egress(text)
        assert (rule.cidr, list(rule.ports)) == (cidr, ports)
    with pytest.raises(InvalidRequest, match="no network with ports"):
        parse_egress("203.0.113.0/24:http")


def test_a_restart_policy_is_one_of_three_words() -> None:
    assert [parse_restart(word) for word in RESTARTS] == list(RESTARTS.values())
    with pytest.raises(InvalidRequest, match="never, on-failure, always"):
        parse_restart("sometimes")
