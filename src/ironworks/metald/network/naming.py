"""Names and addresses of a network slot, pure. All begin with `iw`, so leaks can be found."""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

FABRIC = IPv4Network("198.18.0.0/15")
"""Benchmarking addresses of RFC 2544: they are nobody's on the internet or in a company."""

HOST_ADDRESS = FABRIC.network_address + 1
"""The root namespace's own address towards every VM."""

SLOT_COUNT = 1 << 17
"""Slots there can be; the first and last two addresses of the fabric stay unused."""

TAP = "iwtap0"
INNER_VETH = "iwveth0"
GUEST_ADDRESS = IPv4Address("172.16.0.2")
GATEWAY_ADDRESS = IPv4Address("172.16.0.1")
GUEST_PREFIX_LENGTH = 30
GUEST_MAC = "06:00:ac:10:00:02"
"""The same in every VM, as the addresses are: each has a link of its own."""

NETNS_DIRECTORY = Path("/run/netns")
_FIRST_OFFSET = 2
_NETNS = re.compile(r"iw-([0-9a-f]{6})-([0-9a-f]{5})")
_VETH = re.compile(r"iw([0-9a-f]{6})v([0-9a-f]{5})")
USABLE_SLOTS = SLOT_COUNT - 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotNames:
    """What a slot is called on this machine."""

    slot: int
    netns: str
    veth: str
    """In the root namespace; at most 15 characters."""
    address: IPv4Address
    """On the fabric, the VM's alone."""

    @property
    def netns_path(self) -> Path:
        """Where the namespace is bound."""
        return NETNS_DIRECTORY / self.netns


def first_slot(tag: str) -> int:
    """Where this platform begins to look for free slots, so that two rarely want the same."""
    return int(tag, 16) % USABLE_SLOTS


def names_of(tag: str, slot: int) -> SlotNames:
    """Names and address of `slot`, 0 to `USABLE_SLOTS` - 1."""
    return SlotNames(
        slot=slot,
        netns=f"iw-{tag}-{slot:05x}",
        veth=f"iw{tag}v{slot:05x}",
        address=FABRIC.network_address + _FIRST_OFFSET + slot,
    )


def slot_of_netns(tag: str, name: str) -> int | None:
    """The slot that a namespace belongs to; None if it is not this platform's."""
    return _slot(_NETNS, tag, name)


def slot_of_veth(tag: str, name: str) -> int | None:
    """The slot that an interface belongs to; None if it is not this platform's."""
    return _slot(_VETH, tag, name)


def _slot(pattern: re.Pattern[str], tag: str, name: str) -> int | None:
    match = pattern.fullmatch(name)
    return int(match[2], 16) if match is not None and match[1] == tag else None
