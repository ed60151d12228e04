"""Names and addresses of network slots and of the fabric, pure.

All names begin with `iw`, so that what leaks can be found. A slot is a number; the rest follows.
"""

import hashlib
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

FABRIC = IPv4Network("198.18.0.0/15")
"""Benchmarking addresses of RFC 2544: they are nobody's on the internet or in a company."""

FABRIC_V6 = IPv6Network("fd69:726f:6e77::/48")
"""Unique local addresses (RFC 4193)."""

HOST_ADDRESS = FABRIC.network_address + 1
"""The root namespace's own address towards every VM."""

HOST_ADDRESS_V6 = FABRIC_V6.network_address + 1
ROUTER_ADDRESS = FABRIC.broadcast_address - 1
"""The fabric's own address: next hop of every VM and of the host. It answers nothing."""

ROUTER_ADDRESS_V6 = IPv6Address("fe80::1")

SLOT_COUNT = 1 << 17
"""Slots there can be; the first and last two addresses of the fabric stay unused."""

TAP = "iwtap0"
INNER_VETH = "iwveth0"
INNER_UPLINK = "iwuplink"
GUEST_ADDRESS = IPv4Address("172.16.0.2")
GATEWAY_ADDRESS = IPv4Address("172.16.0.1")
GUEST_PREFIX_LENGTH = 30
GUEST_ADDRESS_V6 = IPv6Address("fd69:726f:6e77:ffff::2")
GATEWAY_ADDRESS_V6 = IPv6Address("fd69:726f:6e77:ffff::1")
GUEST_PREFIX_LENGTH_V6 = 64
GUEST_MAC = "06:00:ac:10:00:02"
"""The same in every VM, as the addresses are: each has a link of its own."""

GATEWAY_MAC = "06:00:ac:10:00:01"
"""Of the tap, the same in every VM too: a clone of a snapshot goes on with what it knows."""

GUEST_LINK_LOCAL = IPv6Address("fe80::400:acff:fe10:2")
"""What a guest's kernel makes of `GUEST_MAC`."""

NETNS_DIRECTORY = Path("/run/netns")
_FIRST_OFFSET = 2
_FIRST_INDEX = 1 << 16
_NETNS = re.compile(r"iw-([0-9a-f]{6})-([0-9a-f]{5})")
_VETH = re.compile(r"iw([0-9a-f]{6})v([0-9a-f]{5})")
USABLE_SLOTS = SLOT_COUNT - 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotNames:
    """What a slot is called on this machine."""

    slot: int
    netns: str
    veth: str
    """In the fabric's namespace; at most 15 characters."""
    address: IPv4Address
    """On the fabric, the VM's alone."""
    address_v6: IPv6Address

    @property
    def netns_path(self) -> Path:
        """Where the namespace is bound."""
        return NETNS_DIRECTORY / self.netns

    @property
    def veth_index(self) -> int:
        """Number of the interface in the fabric's namespace: chosen, so that none must be asked."""
        return _FIRST_INDEX + self.slot

    @property
    def link_address(self) -> str:
        """MAC address of both ends of the veth pair: what one sends is for the other."""
        return "06:01:" + ":".join(f"{byte:02x}" for byte in self.slot.to_bytes(4, "big"))


@dataclass(frozen=True, slots=True, kw_only=True)
class FabricNames:
    """What a platform's fabric is called on this machine."""

    netns: str
    uplink: str
    """In the root namespace."""
    table: str
    """Of nftables, in the root namespace."""

    @property
    def netns_path(self) -> Path:
        """Where the namespace is bound."""
        return NETNS_DIRECTORY / self.netns


def fabric_of(tag: str) -> FabricNames:
    """Names of the fabric of the platform `tag`."""
    return FabricNames(netns=f"iw-{tag}-fabric", uplink=f"iw{tag}up", table=f"iw_{tag}")


def tenant_label(tenant_id: str) -> str:
    """A tenant's part in names of nftables, which take no other characters and no long names."""
    return hashlib.blake2b(tenant_id.encode(), digest_size=16).hexdigest()


def first_slot(tag: str) -> int:
    """Where this platform begins to look for free slots, so that two rarely want the same."""
    return int(tag, 16) % USABLE_SLOTS


def names_of(tag: str, slot: int) -> SlotNames:
    """Names and addresses of `slot`, 0 to `USABLE_SLOTS` - 1."""
    offset = _FIRST_OFFSET + slot
    return SlotNames(
        slot=slot,
        netns=f"iw-{tag}-{slot:05x}",
        veth=f"iw{tag}v{slot:05x}",
        address=FABRIC.network_address + offset,
        address_v6=FABRIC_V6.network_address + offset,
    )


def slot_of_netns(tag: str, name: str) -> int | None:
    """The slot that a namespace belongs to; None if it is not this platform's."""
    return _slot(_NETNS, tag, name)


def slot_of_veth(tag: str, name: str) -> int | None:
    """The slot that an interface belongs to; None if it is not this platform's."""
    return _slot(_VETH, tag, name)


def slot_of_address(address: str) -> int:
    """The slot of a fabric address of either family."""
    if ":" in address:
        return int(IPv6Address(address)) - int(FABRIC_V6.network_address) - _FIRST_OFFSET
    return int(IPv4Address(address)) - int(FABRIC.network_address) - _FIRST_OFFSET


def _slot(pattern: re.Pattern[str], tag: str, name: str) -> int | None:
    match = pattern.fullmatch(name)
    return int(match[2], 16) if match is not None and match[1] == tag else None
