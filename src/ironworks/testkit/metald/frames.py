"""Frames that a guest may not send, as bytes, and the rule that refuses each of them."""

import struct
from ipaddress import IPv4Address, IPv6Address

from ironworks.metald.network import naming

SPOOFED_MAC = "06:00:ac:10:00:99"
GUEST, GATEWAY = str(naming.GUEST_ADDRESS), str(naming.GATEWAY_ADDRESS)
GUEST_V6, GATEWAY_V6 = str(naming.GUEST_ADDRESS_V6), str(naming.GATEWAY_ADDRESS_V6)
IPV4, IPV6, ARP = 0x0800, 0x86DD, 0x0806
ICMPV6, EXPERIMENT = 58, 253


def mac(text: str) -> bytes:
    """A MAC address as bytes."""
    return bytes.fromhex(text.replace(":", ""))


def frame(kind: int, payload: bytes, source: str = naming.GUEST_MAC) -> bytes:
    """An Ethernet frame to the gateway."""
    return mac(naming.GATEWAY_MAC) + mac(source) + struct.pack("!H", kind) + payload


def checksum(data: bytes) -> int:
    """The internet's checksum (RFC 1071) of an even number of bytes."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def udp(source: str, target: str, port: int = 9) -> bytes:
    """A datagram over IPv4."""
    payload = struct.pack("!HHHH", 4000, port, 12, 0) + b"data"
    head = struct.pack(
        "!BBHHHBBH4s4s",
        *(0x45, 0, 20 + len(payload), 1, 0, 64, 17, 0),
        IPv4Address(source).packed,
        IPv4Address(target).packed,
    )
    return frame(IPV4, head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload)


def ipv6(source: str, target: str, protocol: int, payload: bytes) -> bytes:
    """A packet of a protocol over IPv6."""
    head = struct.pack(
        "!IHBB16s16s",
        *(0x60000000, len(payload), protocol, 255),
        IPv6Address(source).packed,
        IPv6Address(target).packed,
    )
    return frame(IPV6, head + payload)


def packet_v6(source: str, target: str) -> bytes:
    """A packet of a protocol that is nobody's, over IPv6."""
    return ipv6(source, target, EXPERIMENT, b"data")


def advertisement(of: str, source: str = GUEST_V6) -> bytes:
    """A neighbour advertisement: the MAC address of `of` is a false one."""
    payload = struct.pack("!BBHI16s", 136, 0, 0, 0x60000000, IPv6Address(of).packed)
    return ipv6(source, "ff02::1", ICMPV6, payload + b"\x02\x01" + mac(SPOOFED_MAC))


def router_advertisement() -> bytes:
    """A router advertisement."""
    payload = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
    return ipv6(str(naming.GUEST_LINK_LOCAL), "ff02::1", ICMPV6, payload)


def arp(sender_mac: str, sender: str) -> bytes:
    """An ARP request for the gateway, by a sender."""
    return frame(
        ARP,
        struct.pack("!HHBBH", 1, IPV4, 6, 4, 2)
        + mac(sender_mac)
        + IPv4Address(sender).packed
        + bytes(6)
        + IPv4Address(GATEWAY).packed,
    )


REFUSED: tuple[tuple[str, str, bytes], ...] = (
    ("the internet", "egress", udp(GUEST, "192.0.2.1")),
    ("the internet, IPv6", "egress", packet_v6(GUEST_V6, "2001:db8::1")),
    ("metadata", "metadata", udp(GUEST, "169.254.169.254", 80)),
    ("metadata, IPv6", "metadata", packet_v6(GUEST_V6, "fd00:ec2::254")),
    ("nobody's fabric address", "peer", udp(GUEST, "198.19.255.250")),
    ("nobody's, IPv6", "peer", packet_v6(GUEST_V6, "fd69:726f:6e77::fffe")),
    ("the host", "host", udp(GUEST, str(naming.HOST_ADDRESS))),
    ("the host, IPv6", "host", packet_v6(GUEST_V6, str(naming.HOST_ADDRESS_V6))),
    ("the namespace itself", "host", udp(GUEST, GATEWAY)),
    ("the namespace itself, IPv6", "host", packet_v6(GUEST_V6, GATEWAY_V6)),
    ("another address", "spoofed-address", udp("172.16.0.3", "192.0.2.1")),
    ("the host's address", "spoofed-address", udp("198.18.0.1", "192.0.2.1")),
    ("another, IPv6", "spoofed-address", packet_v6("fd69::9", "2001:db8::1")),
    ("an ARP lie of its MAC", "spoofed-address", arp(SPOOFED_MAC, GUEST)),
    ("an ARP lie: gateway", "spoofed-address", arp(naming.GUEST_MAC, GATEWAY)),
    ("an ND lie: gateway", "spoofed-address", advertisement(GATEWAY_V6)),
    ("an ND lie: who", "spoofed-address", advertisement(GUEST_V6, "fe80::99")),
    ("a router", "spoofed-address", router_advertisement()),
    ("a VLAN", "spoofed-address", frame(0x8100, bytes(46))),
    ("another MAC", "spoofed-mac", frame(IPV4, udp(GUEST, "192.0.2.1")[14:], SPOOFED_MAC)),
)
"""What it is, the rule that counts it, the frame."""
