"""Interfaces, addresses and routes: the typed face of pyroute2 and of the tun device."""

import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from pyroute2 import IPRoute, NetlinkError
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

Address = IPv4Address | IPv6Address
_Attribute = tuple[str, object]

_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_TUNSETOWNER = 0x400454CC
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFF_UP = 0x0001
_IFF_NOARP = 0x0080
_IFA_F_NODAD = 0x02
_NLM_F_REQUEST, _NLM_F_ACK = 0x01, 0x04
_CREATE = 0x0400 | 0x0200
_REPLACE = 0x0400 | 0x0100
_NEWLINK, _DELLINK, _NEWADDR, _NEWROUTE, _DELROUTE, _NEWNEIGH = 16, 17, 20, 24, 25, 28
_MAIN_TABLE, _PROTO_STATIC, _UNICAST, _V6 = 254, 4, 1, 6
_ANSWER_BYTES = 65536
_QUEUE_HANDLE = 0x10000
_NUD_PERMANENT = 0x80
_RTNH_F_ONLINK = 4
_LINK_SCOPE = 253
_SIOCGIFINDEX = 0x8933
_NO_SUCH = frozenset({errno.ENODEV, errno.ESRCH, errno.ENOENT, errno.EADDRNOTAVAIL, errno.EINVAL})
_BURST_SECONDS = 0.05
_MIN_BURST_BYTES = 16_000
"""A packet that the kernel has put together (GSO) must fit, else it never passes."""
_LATENCY_MS = 100


class LinkError(Exception):
    """The kernel refused a change of links; `number` is its errno."""

    def __init__(self, number: int, text: str) -> None:
        """Keep the errno beside the text."""
        super().__init__(text)
        self.number = number


class Links(AbstractContextManager["Links"]):
    """A netlink socket in the namespace of the thread that made it. Calls block.

    Any thread may call it afterwards, one at a time: a socket stays in its namespace. The messages
    are pyroute2's; its own `IPRoute` opens another socket in every thread that calls it, which
    would be one of that thread's namespace.
    """

    def __init__(self) -> None:
        """Open the socket."""
        self._netlink = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._ask = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._sequence = 0

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
        self._ask.close()
        self._netlink.close()

    def index(self, name: str) -> int | None:
        """Index of an interface; None if there is none of this name."""
        try:
            asked = struct.pack("16s16x", name.encode())
            answer = fcntl.ioctl(self._ask.fileno(), _SIOCGIFINDEX, asked)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            return None
        return int(struct.unpack_from("i", answer, 16)[0])

    def add_veth(
        self, name: str, peer: str, peer_netns: Path, *, link_address: str, index: int = 0
    ) -> None:
        """Make a veth pair with its peer in another namespace, this end up.

        Both have the same MAC address and ask for none (NOARP): whatever one sends is for the
        other, and there is no neighbour table to fill or to poison.

        Args:
            name: Of the end in this namespace.
            peer: Of the other end.
            peer_netns: Where the other end is to be.
            link_address: MAC address of both.
            index: Number of this end; 0: the kernel chooses one.

        Raises:
            LinkError: EEXIST if a name or the index is taken.
        """
        # The peer cannot be up before the pair is whole.
        state = {"flags": _IFF_UP | _IFF_NOARP, "change": _IFF_UP | _IFF_NOARP}
        its_state = {"flags": _IFF_NOARP, "change": _IFF_NOARP}
        with peer_netns.open("rb") as there:
            other = [
                ("IFLA_IFNAME", peer),
                ("IFLA_ADDRESS", link_address),
                ("IFLA_NET_NS_FD", there.fileno()),
            ]
            data = [("VETH_INFO_PEER", {**its_state, "attrs": other})]
            info = [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", {"attrs": data})]
            self._do(
                _NEWLINK,
                _CREATE,
                ifinfmsg(),
                {"index": index, **state},
                [
                    ("IFLA_IFNAME", name),
                    ("IFLA_ADDRESS", link_address),
                    ("IFLA_LINKINFO", {"attrs": info}),
                ],
            )

    def delete(self, name: str) -> bool:
        """Remove an interface; answers whether there was one."""
        index = self.index(name)
        if index is None:
            return False
        return self._gone(_DELLINK, ifinfmsg(), {"index": index}, [])

    def up(self, name: str) -> None:
        """Bring an interface up."""
        fields = {"index": self._known(name), "flags": _IFF_UP, "change": _IFF_UP}
        self._do(_NEWLINK, 0, ifinfmsg(), fields, [])

    def set_link_address(self, name: str, link_address: str) -> None:
        """Give an interface another MAC address."""
        attributes: list[_Attribute] = [("IFLA_ADDRESS", link_address)]
        self._do(_NEWLINK, 0, ifinfmsg(), {"index": self._known(name)}, attributes)

    def add_address(self, name: str, address: Address, prefix_length: int) -> None:
        """Give an interface an address, which is not asked for to be free.

        Raises:
            LinkError: EEXIST if it has it already.
        """
        fields = {
            "family": _family(address),
            "prefixlen": prefix_length,
            "index": self._known(name),
            "flags": _IFA_F_NODAD if address.version == _V6 else 0,
        }
        text = str(address)
        self._do(
            _NEWADDR, _CREATE, ifaddrmsg(), fields, [("IFA_LOCAL", text), ("IFA_ADDRESS", text)]
        )

    def add_neighbour(self, name: str, address: Address, link_address: str) -> None:
        """Say for good which MAC address an address has."""
        fields = {
            "family": _family(address),
            "ifindex": self._known(name),
            "state": _NUD_PERMANENT,
        }
        attributes = [("NDA_DST", str(address)), ("NDA_LLADDR", link_address)]
        self._do(_NEWNEIGH, _REPLACE, ndmsg(), fields, attributes)

    def add_route(
        self,
        address: Address | None,
        name: str,
        *,
        gateway: Address | None = None,
        source: Address | None = None,
    ) -> None:
        """Route one address through an interface; None: everything that has no other route.

        Raises:
            LinkError: EEXIST if there is such a route already, whosever it is.
        """
        fields, attributes = self._way(address, name, gateway)
        if source is not None:
            attributes.append(("RTA_PREFSRC", str(source)))
        self._do(_NEWROUTE, _CREATE, rtmsg(), fields, attributes)

    def delete_route(self, address: Address, name: str, gateway: Address | None = None) -> bool:
        """Remove the route of one address; answers whether there was one."""
        if self.index(name) is None:
            return False
        return self._gone(_DELROUTE, rtmsg(), *self._way(address, name, gateway))

    def _way(
        self, address: Address | None, name: str, gateway: Address | None
    ) -> tuple[dict[str, int], list[_Attribute]]:
        one = address or gateway
        if one is None:
            raise LinkError(errno.EINVAL, "A route needs an address or a gateway.")
        fields = {
            "family": _family(one),
            "dst_len": 0 if address is None else address.max_prefixlen,
            "table": _MAIN_TABLE,
            "proto": _PROTO_STATIC,
            "type": _UNICAST,
            "scope": _LINK_SCOPE if gateway is None and one.version != _V6 else 0,
            "flags": 0 if gateway is None else _RTNH_F_ONLINK,
        }
        attributes: list[_Attribute] = [("RTA_OIF", self._known(name))]
        if address is not None:
            attributes.append(("RTA_DST", str(address)))
        if gateway is not None:
            attributes.append(("RTA_GATEWAY", str(gateway)))
        return fields, attributes

    def _known(self, name: str) -> int:
        index = self.index(name)
        if index is None:
            raise LinkError(errno.ENODEV, f"There is no interface {name}.")
        return index

    def _gone(
        self, kind: int, message: object, fields: Mapping[str, int], attributes: list[_Attribute]
    ) -> bool:
        try:
            self._do(kind, 0, message, fields, attributes)
        except LinkError as error:
            if error.number not in _NO_SUCH:
                raise
            return False
        return True

    def _do(
        self,
        kind: int,
        flags: int,
        message: object,
        fields: Mapping[str, int],
        attributes: Sequence[_Attribute],
    ) -> None:
        """Send one request and read its acknowledgement."""
        self._sequence += 1
        request = cast("Any", message)
        for field, value in fields.items():
            request[field] = value
        request["attrs"] = attributes
        request["header"] = {
            "type": kind,
            "flags": _NLM_F_REQUEST | _NLM_F_ACK | flags,
            "sequence_number": self._sequence,
            "pid": 0,
        }
        request.encode()
        self._netlink.send(bytes(request.data))
        answer = self._netlink.recv(_ANSWER_BYTES)
        number = -int(struct.unpack_from("=i", answer, 16)[0])
        if number != 0:
            noun = type(message).__name__.removesuffix("msg")
            raise LinkError(number, f"{noun} {dict(attributes)}: {os.strerror(number)}")


def _family(address: Address) -> int:
    return int(socket.AF_INET6 if address.version == _V6 else socket.AF_INET)


def limit(name: str, bytes_per_second: int) -> None:
    """Let so much leave through an interface of this thread's namespace; 0: as much as comes.

    Raises:
        LinkError: there is no such interface.
    """
    with Links() as links:
        index = links.index(name)
    if index is None:
        raise LinkError(errno.ENODEV, f"There is no interface {name}.")
    with cast("Any", IPRoute()) as route:
        try:
            if bytes_per_second == 0:
                route.tc("del", index=index, root=True)
                return
            route.tc(
                "replace",
                kind="tbf",
                index=index,
                handle=_QUEUE_HANDLE,
                rate=bytes_per_second,
                burst=max(_MIN_BURST_BYTES, int(bytes_per_second * _BURST_SECONDS)),
                latency=f"{_LATENCY_MS}ms",
            )
        except NetlinkError as error:
            number = int(cast("Any", error).code)
            if bytes_per_second != 0 or number not in _NO_SUCH:
                raise LinkError(number, f"tc {name}: {os.strerror(number)}") from error


def device_names() -> frozenset[str]:
    """Names of all interfaces of this thread's namespace."""
    text = Path("/proc/thread-self/net/dev").read_text(encoding="ascii")
    return frozenset(line.partition(":")[0].strip() for line in text.splitlines()[2:])


def device_bytes(name: str) -> tuple[int, int]:
    """Bytes that an interface of this thread's namespace has received and sent; 0, 0 without it."""
    for line in Path("/proc/thread-self/net/dev").read_text(encoding="ascii").splitlines()[2:]:
        found, _, rest = line.partition(":")
        if found.strip() == name:
            words = rest.split()
            return int(words[0]), int(words[8])
    return 0, 0


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
        # One system call less than to ask first whether it is there.
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(f"/proc/sys/net/{name}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(descriptor, value.encode())
            finally:
                os.close(descriptor)


def read_sysctl(name: str) -> str:
    """A network sysctl of this thread's namespace; empty if the kernel lacks it."""
    try:
        return (Path("/proc/sys/net") / name).read_text(encoding="ascii").strip()
    except OSError:
        return ""
