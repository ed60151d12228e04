"""Ports of a platform: the defaults, or free ones where a default is taken."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping

from ironworks.model.errors import FailedPrecondition

DEFAULT_PORTS: Mapping[str, int] = {
    "metald": 8080,
    "billaged": 8081,
    "builderd": 8082,
    "assetmanagerd": 8083,
    "aggregatord": 8084,
    "gatewayd": 8085,
    "edge": 8443,
}


class PortTaken(FailedPrecondition):
    """Somebody else listens on a port that the operator set."""

    exit_status = 82


def is_free(host: str, port: int) -> bool:
    """Whether nobody listens on `host:port` now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def any_free(host: str) -> int:
    """A free port, chosen by the kernel."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def choose(
    host: str,
    wanted: Mapping[str, int],
    *,
    free: Callable[[str, int], bool] = is_free,
    other: Callable[[str], int] = any_free,
) -> dict[str, int]:
    """A port for every name of `DEFAULT_PORTS`.

    Args:
        host: Address to bind.
        wanted: Ports that the operator set: these, or none.
        free: Whether a port is free.
        other: Answers another free port.

    Raises:
        PortTaken: a port that the operator set is taken; names it.
    """
    chosen: dict[str, int] = {}
    for name, default in DEFAULT_PORTS.items():
        port = wanted.get(name, default)
        if not free(host, port):
            if name in wanted:
                raise PortTaken(
                    f"Port {port}, set for {name}, is taken on {host}.",
                    hint="Stop what listens there, or set another port.",
                )
            port = other(host)
        while port in chosen.values():
            port = other(host)
        chosen[name] = port
    return chosen
