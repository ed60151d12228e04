"""Connect to registries, and to nothing else that this machine can reach.

Whoever names an image names a host, and a registry may send its clients on to another one. Names
are resolved here and the connection goes to the very address that was looked at.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
from dataclasses import dataclass
from functools import cached_property
from typing import cast

from ironworks.model.errors import PermissionDenied, Unavailable

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True, kw_only=True)
class Guard:
    """Who may be spoken to.

    Attributes:
        insecure: Registries that are spoken to without TLS.
        private: Registries that may be at addresses which are not public.
        timeout_seconds: Of each operation on a connection.
    """

    insecure: frozenset[str]
    private: frozenset[str]
    timeout_seconds: float

    def scheme_of(self, registry: str) -> str:
        """How a registry is spoken to."""
        return "http" if registry.lower() in self.insecure else "https"

    def connect(self, scheme: str, host: str, port: int | None, image: str) -> _Connection:
        """A connection that has been opened.

        Raises:
            PermissionDenied: it may not be spoken to, or not so; says why.
            Unavailable: its name is not known.
            OSError: it cannot be reached.
        """
        name = name_of(scheme, host, port)
        if scheme == "http" and name not in self.insecure:
            raise PermissionDenied(
                f"The registry of {image} leads to {name} without TLS, where builds do not go.",
                hint="Ask the operator to name it in the setting insecure_registries.",
            )
        if scheme not in _PORTS:
            raise PermissionDenied(f"The registry of {image} leads to {scheme}:, not to HTTP.")
        number = _PORTS[scheme] if port is None else port
        try:
            found = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError) as error:
            raise Unavailable(
                f"The registry of {image} cannot be reached: there is no host {host}.",
                hint="Check its name and the platform's network, then try again.",
            ) from error
        addresses = [str(one[4][0]) for one in found]
        if name not in self.private:
            addresses = [one for one in addresses if is_public(one)]
        if not addresses:
            raise PermissionDenied(
                f"The registry of {image} leads to {name}, which is at an address that is not "
                "public: builds do not go there.",
                hint="Ask the operator to name it in the setting private_registries.",
            )
        context = self._context if scheme == "https" else None
        return _open(addresses, host, number, self.timeout_seconds, context)

    @cached_property
    def _context(self) -> ssl.SSLContext:
        return ssl.create_default_context()


def name_of(scheme: str, host: str, port: int | None) -> str:
    """A host as settings name it: with its port, unless that is TLS's own."""
    host = f"[{host}]" if ":" in host else host
    number = _PORTS.get(scheme) if port is None else port
    return (host if number == _PORTS["https"] else f"{host}:{number}").lower()


def is_public(address: str) -> bool:
    """Whether an address is one of the Internet, and not of this machine or its neighbours."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.sixtofour is not None or ip.teredo is not None:
            return False
        embedded = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else ip.ipv4_mapped
        ip = embedded or ip
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


class _Connection(http.client.HTTPConnection):
    """Speaks over a socket that is open already."""

    def __init__(self, host: str, port: int, opened: socket.socket) -> None:
        super().__init__(host, port)
        self.sock = opened


def _open(
    addresses: list[str],
    host: str,
    port: int,
    timeout_seconds: float,
    context: ssl.SSLContext | None,
) -> _Connection:
    failure: OSError | None = None
    for address in dict.fromkeys(addresses):
        try:
            opened = socket.create_connection((address, port), timeout_seconds)
        except OSError as error:
            failure = error
            continue
        try:
            if context is not None:
                opened = cast("socket.socket", context.wrap_socket(opened, server_hostname=host))
        except BaseException:
            opened.close()
            raise
        return _Connection(host, port, opened)
    raise failure or OSError("no address")
