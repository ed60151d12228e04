"""What a guest may not send, frame by frame, sent by a test behind the tap: refused and counted."""

import asyncio
import struct
from ipaddress import IPv4Address, IPv6Address

import pytest

from ironworks.metald.network import naming
from ironworks.metald.network.plan import Plan
from ironworks.metald.network.slots import HostNetwork
from ironworks.testkit.metald.guests import Guest

from .conftest import MakeGuest

pytestmark = pytest.mark.root
SPOOFED_MAC = "06:00:ac:10:00:99"
GUEST, GATEWAY = str(naming.GUEST_ADDRESS), str(naming.GATEWAY_ADDRESS)
GUEST_V6, GATEWAY_V6 = str(naming.GUEST_ADDRESS_V6), str(naming.GATEWAY_ADDRESS_V6)
IPV4, IPV6, ARP = 0x0800, 0x86DD, 0x0806
ICMPV6, EXPERIMENT = 58, 253


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def frame(kind: int, payload: bytes, source: str = naming.GUEST_MAC) -> bytes:
    return mac(naming.GATEWAY_MAC) + mac(source) + struct.pack("!H", kind) + payload


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def udp(source: str, target: str, port: int = 9) -> bytes:
    payload = struct.pack("!HHHH", 4000, port, 12, 0) + b"data"
    head = struct.pack(
        "!BBHHHBBH4s4s",
        *(0x45, 0, 20 + len(payload), 1, 0, 64, 17, 0),
        IPv4Address(source).packed,
        IPv4Address(target).packed,
    )
    return frame(IPV4, head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload)


def ipv6(source: str, target: str, protocol: int, payload: bytes) -> bytes:
    head = struct.pack(
        "!IHBB16s16s",
        *(0x60000000, len(payload), protocol, 255),
        IPv6Address(source).packed,
        IPv6Address(target).packed,
    )
    return frame(IPV6, head + payload)


def packet_v6(source: str, target: str) -> bytes:
    return ipv6(source, target, EXPERIMENT, b"data")


def advertisement(of: str, source: str = GUEST_V6) -> bytes:
    payload = struct.pack("!BBHI16s", 136, 0, 0, 0x60000000, IPv6Address(of).packed)
    return ipv6(source, "ff02::1", ICMPV6, payload + b"\x02\x01" + mac(SPOOFED_MAC))


def router_advertisement() -> bytes:
    payload = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
    return ipv6(str(naming.GUEST_LINK_LOCAL), "ff02::1", ICMPV6, payload)


def arp(sender_mac: str, sender: str) -> bytes:
    return frame(
        ARP,
        struct.pack("!HHBBH", 1, IPV4, 6, 4, 2)
        + mac(sender_mac)
        + IPv4Address(sender).packed
        + bytes(6)
        + IPv4Address(GATEWAY).packed,
    )


async def counts(network: HostNetwork, guest: Guest) -> dict[str, int]:
    stats = await network.stats(guest.names.slot)
    return {one.rule: one.packets for one in stats.denied}


@pytest.fixture
async def guest(make_guest: MakeGuest) -> Guest:
    guest = await make_guest(Plan(tenant_id="tnt_one"))
    with guest.serves(80):
        for _ in range(50):
            # The kernel drops what comes before it has noticed the tap's carrier.
            if await asyncio.to_thread(guest.reaches, "127.0.0.1", 80):
                break
    return guest


@pytest.mark.parametrize(
    ("rule", "sent"),
    [
        pytest.param("egress", udp(GUEST, "192.0.2.1"), id="the internet"),
        pytest.param("egress", packet_v6(GUEST_V6, "2001:db8::1"), id="the internet, IPv6"),
        pytest.param("metadata", udp(GUEST, "169.254.169.254", 80), id="metadata"),
        pytest.param("metadata", packet_v6(GUEST_V6, "fd00:ec2::254"), id="metadata, IPv6"),
        pytest.param("peer", udp(GUEST, "198.19.255.250"), id="nobody's fabric address"),
        pytest.param("peer", packet_v6(GUEST_V6, "fd69:726f:6e77::fffe"), id="nobody's, IPv6"),
        pytest.param("host", udp(GUEST, str(naming.HOST_ADDRESS)), id="the host"),
        pytest.param("host", packet_v6(GUEST_V6, str(naming.HOST_ADDRESS_V6)), id="the host, IPv6"),
        pytest.param("host", udp(GUEST, GATEWAY), id="the namespace itself"),
        pytest.param("host", packet_v6(GUEST_V6, GATEWAY_V6), id="the namespace itself, IPv6"),
        pytest.param("spoofed-address", udp("172.16.0.3", "192.0.2.1"), id="another address"),
        pytest.param("spoofed-address", udp("198.18.0.1", "192.0.2.1"), id="the host's address"),
        pytest.param("spoofed-address", packet_v6("fd69::9", "2001:db8::1"), id="another, IPv6"),
        pytest.param("spoofed-address", arp(SPOOFED_MAC, GUEST), id="an ARP lie of its MAC"),
        pytest.param("spoofed-address", arp(naming.GUEST_MAC, GATEWAY), id="an ARP lie: gateway"),
        pytest.param("spoofed-address", advertisement(GATEWAY_V6), id="an ND lie: gateway"),
        pytest.param("spoofed-address", advertisement(GUEST_V6, "fe80::99"), id="an ND lie: who"),
        pytest.param("spoofed-address", router_advertisement(), id="a router"),
        pytest.param("spoofed-address", frame(0x8100, bytes(46)), id="a VLAN"),
        pytest.param(
            "spoofed-mac", frame(IPV4, udp(GUEST, "192.0.2.1")[14:], SPOOFED_MAC), id="another MAC"
        ),
    ],
)
async def test_what_a_guest_may_not_send_is_refused_and_counted(
    network: HostNetwork, guest: Guest, rule: str, sent: bytes
) -> None:
    before = await counts(network, guest)
    await asyncio.to_thread(guest.send_frame, sent)
    after = await counts(network, guest)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {rule}


async def test_what_a_kernel_says_by_itself_is_no_denied_traffic(
    network: HostNetwork, guest: Guest
) -> None:
    with guest.serves(80):
        assert await asyncio.to_thread(guest.reaches, str(guest.names.address), 80)
    assert (await counts(network, guest))["spoofed-mac"] == 0
    assert (await counts(network, guest))["spoofed-address"] == 0
