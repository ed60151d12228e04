"""Ports of a platform: the defaults, or free ones where a default is taken."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Self

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


MAX_TRIES = 50


class PortTaken(FailedPrecondition):
    """Somebody else listens on a port that the operator set."""

    exit_status = 82


class Reservations:
    """Ports that this process has set aside for its children, until it closes them or dies.

    A port is nobody's between the moment it is chosen and the moment a child listens on it. An
    abstract unix socket named after it, which lives in the same network namespace as the port,
    tells another platform that starts at the same time to choose another one.
    """

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for held in self._held:
            held.close()

    def take(self, host: str, port: int) -> bool:
        """Set `port` aside; False if it is set aside already, or somebody listens on it."""
        mark = socket.socket(socket.AF_UNIX)
        try:
            mark.bind(f"\0ironworks-port-{port}")
        except OSError:
            mark.close()
            return False
        if not is_free(host, port):
            mark.close()
            return False
        self._held.append(mark)
        return True


def is_free(host: str, port: int) -> bool:
    """Whether nobody listens on `host:port` now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()
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
    take: Callable[[str, int], bool],
    before: Mapping[str, int] | None = None,
    other: Callable[[str], int] = any_free,
) -> dict[str, int]:
    """A port for every name of `DEFAULT_PORTS`, each taken.

    Args:
        host: Address to bind.
        wanted: Ports that the operator set: these, or none.
        take: Takes a port if it is free; `Reservations.take`.
        before: Ports of the run before: kept if they are free, so that URLs outlive a restart.
        other: Answers another port that may be free.

    Raises:
        PortTaken: a port that the operator set is taken; names it.
    """
    chosen: dict[str, int] = {}
    # What was set comes first: it must not be given to a service that takes any port.
    for name, port in wanted.items():
        if not take(host, port):
            raise PortTaken(
                f"Port {port}, set for {name}, is taken on {host}.",
                hint="Stop what listens there, or set another port.",
            )
        chosen[name] = port
    for name, default in DEFAULT_PORTS.items():
        if name in chosen:
            continue
        port = (before or {}).get(name, default)
        for _ in range(MAX_TRIES):
            if take(host, port):
                break
            port = other(host)
        else:
            raise PortTaken(f"No free port for {name} was found on {host}.")
        chosen[name] = port
    return chosen
