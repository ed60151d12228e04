"""Interfaces, addresses and routes: the typed face of pyroute2 and of the tun device."""

import errno
import fcntl
import os
import struct
from collections.abc import Iterable
from contextlib import AbstractContextManager
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from pyroute2 import IPRoute, NetlinkError

_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_TUNSETOWNER = 0x400454CC
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_LINK_SCOPE = 253


class LinkError(Exception):
    """The kernel refused a change of links; `number` is its errno."""

    def __init__(self, number: int, text: str) -> None:
        """Keep the errno beside the text."""
        super().__init__(text)
        self.number = number


class Links(AbstractContextManager["Links"]):
    """A netlink socket in the namespace of the thread that made it. Calls block."""

    def __init__(self) -> None:
        """Open the socket."""
        self._route = cast("Any", IPRoute())

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the socket."""
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._route.close()

    def index(self, name: str) -> int | None:
        """Index of an interface; None if there is none of this name."""
        found = self._route.link_lookup(ifname=name)
        return int(found[0]) if found else None

    def names(self) -> list[str]:
        """Names of all interfaces."""
        return [str(link.get_attr("IFLA_IFNAME")) for link in self._route.get_links()]

    def add_veth(self, name: str, peer: str, peer_netns: Path) -> None:
        """Make a veth pair with its peer in another namespace.

        Raises:
            LinkError: EEXIST if the name is taken.
        """
        peer_in = {"ifname": peer, "net_ns_fd": str(peer_netns)}
        self._do("link", "add", ifname=name, kind="veth", peer=peer_in)

    def delete(self, name: str) -> bool:
        """Remove an interface; answers whether there was one."""
        index = self.index(name)
        if index is None:
            return False
        try:
            self._do("link", "del", index=index)
        except LinkError as error:
            if error.number != errno.ENODEV:
                raise
            return False
        return True

    def up(self, name: str) -> None:
        """Bring an interface up."""
        self._do("link", "set", index=self._known(name), state="up")

    def add_address(self, name: str, address: IPv4Address, prefix_length: int) -> None:
        """Give an interface an address."""
        index = self._known(name)
        self._do("addr", "add", index=index, address=str(address), prefixlen=prefix_length)

    def add_host_route(self, address: IPv4Address, name: str, source: IPv4Address) -> None:
        """Route one address through an interface.

        Raises:
            LinkError: EEXIST if there is such a route already, whosever it is.
        """
        self._do(
            "route",
            "add",
            dst=f"{address}/32",
            oif=self._known(name),
            scope=_LINK_SCOPE,
            prefsrc=str(source),
        )

    def add_default_route(self, gateway: IPv4Address, name: str) -> None:
        """Route everything else through an interface."""
        self._do("route", "add", dst="default", gateway=str(gateway), oif=self._known(name))

    def _known(self, name: str) -> int:
        index = self.index(name)
        if index is None:
            raise LinkError(errno.ENODEV, f"There is no interface {name}.")
        return index

    def _do(self, noun: str, verb: str, /, **arguments: object) -> None:
        try:
            getattr(self._route, noun)(verb, **arguments)
        except NetlinkError as error:
            number = int(cast("Any", error).code)
            raise LinkError(number, f"{noun} {verb}: {os.strerror(number)}") from error


def make_tap(name: str, owner_uid: int) -> None:
    """Make a persistent tap in this thread's namespace that only `owner_uid` may open.

    Raises:
        OSError: no /dev/net/tun, or not permitted.
    """
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        fcntl.ioctl(descriptor, _TUNSETOWNER, owner_uid)
        fcntl.ioctl(descriptor, _TUNSETPERSIST, 1)
    finally:
        os.close(descriptor)


def set_sysctls(settings: Iterable[tuple[str, str]]) -> None:
    """Write network sysctls of this thread's namespace; those that the kernel lacks are skipped."""
    for name, value in settings:
        path = Path("/proc/sys/net") / name
        if path.exists():
            path.write_text(value, encoding="ascii")
