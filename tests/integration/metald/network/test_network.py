"""A slot's network on the real machine, with a test in the place of the guest behind the tap."""

import asyncio
import fcntl
import json
import os
import select
import socket
import struct
import subprocess
from collections.abc import AsyncGenerator, Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from ironworks.metald.network import namespace, naming
from ironworks.metald.network.links import Links
from ironworks.metald.network.naming import SlotNames, first_slot
from ironworks.metald.network.slots import HostNetwork, SlotTakenError
from ironworks.runtime.settings import tag_of

pytestmark = pytest.mark.root
UID = 1_900_200
SPOOFED_MAC = "06:00:ac:10:00:99"
GUEST, GATEWAY = str(naming.GUEST_ADDRESS), str(naming.GATEWAY_ADDRESS)
IPV4, ARP = 0x0800, 0x0806


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def ipv4(source: str, target: str, protocol: int, payload: bytes) -> bytes:
    head = struct.pack(
        "!BBHHHBBH4s4s",
        0x45,
        0,
        20 + len(payload),
        1,
        0,
        64,
        protocol,
        0,
        IPv4Address(source).packed,
        IPv4Address(target).packed,
    )
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def udp(source: str, target: str, port: int = 9) -> bytes:
    payload = b"data"
    return ipv4(source, target, 17, struct.pack("!HHHH", 4000, port, 12, 0) + payload)


def arp(source_mac: str, source: str, target: str) -> bytes:
    return (
        struct.pack("!HHBBH", 1, IPV4, 6, 4, 1)
        + mac(source_mac)
        + IPv4Address(source).packed
        + bytes(6)
        + IPv4Address(target).packed
    )


class Tap:
    """The guest's end of the tap."""

    def __init__(self, names: SlotNames) -> None:
        self._names = names
        self._descriptor = namespace.run_in(names.netns_path, self._open)
        self.gateway_mac = "ff:ff:ff:ff:ff:ff"

    @staticmethod
    def _open() -> int:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        flags = 0x0002 | 0x1000 | 0x4000
        fcntl.ioctl(descriptor, 0x400454CA, struct.pack("16sH22x", naming.TAP.encode(), flags))
        return descriptor

    def close(self) -> None:
        os.close(self._descriptor)

    def send(self, kind: int, payload: bytes, source: str = naming.GUEST_MAC) -> None:
        frame = mac(self.gateway_mac) + mac(source) + struct.pack("!H", kind) + payload
        os.write(self._descriptor, bytes(10) + frame)

    def receive(self, wanted: Callable[[bytes], bool]) -> bytes | None:
        """The next frame that is wanted; None if none comes."""
        while select.select([self._descriptor], [], [], 1.0)[0]:
            frame = os.read(self._descriptor, 65536)[10:]
            if wanted(frame):
                return frame
        return None

    def learn_gateway(self) -> None:
        answer = None
        for _ in range(5):
            # The kernel may drop what comes before it has noticed the tap's carrier.
            self.send(ARP, arp(naming.GUEST_MAC, GUEST, GATEWAY))
            answer = self.receive(lambda frame: frame[12:14] == b"\x08\x06" and frame[21] == 2)
            if answer is not None:
                break
        assert answer is not None
        self.gateway_mac = answer[6:12].hex(":")


def counters(names: SlotNames) -> dict[str, int]:
    done = subprocess.run(
        ["ip", "netns", "exec", names.netns, "nft", "-j", "list", "counters"],
        check=True,
        capture_output=True,
    )
    listed: list[dict[str, Any]] = json.loads(done.stdout)["nftables"]
    return {one["counter"]["name"]: one["counter"]["packets"] for one in listed if "counter" in one}


@pytest.fixture
async def network(tmp_path: Path) -> AsyncGenerator[HostNetwork]:
    network = HostNetwork(tag_of(tmp_path))
    yield network
    for slot in await network.present():
        await network.remove(slot)


@pytest.fixture
async def names(network: HostNetwork, tmp_path: Path) -> SlotNames:
    return await network.create(first_slot(tag_of(tmp_path)), UID)


@pytest.fixture
async def tap(names: SlotNames) -> AsyncGenerator[Tap]:
    tap = await asyncio.to_thread(Tap, names)
    await asyncio.to_thread(tap.learn_gateway)
    yield tap
    tap.close()


def interfaces() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def routes() -> str:
    return Path("/proc/net/route").read_text()


async def test_a_slot_is_made_found_and_removed_without_a_trace(
    network: HostNetwork, tmp_path: Path
) -> None:
    slot = first_slot(tag_of(tmp_path))
    before = interfaces(), routes()
    names = await network.create(slot, UID)
    assert names.veth in interfaces()
    assert names.netns_path.exists()
    assert await network.present() == {slot}
    assert await network.drift(slot) == ()
    assert await HostNetwork("ffffff").present() == frozenset()
    await network.remove(slot)
    await network.remove(slot)
    assert await network.present() == frozenset()
    assert (interfaces(), routes()) == before
    assert not names.netns_path.exists()
    assert len(await network.drift(slot)) == 2


async def test_a_slot_that_is_there_is_left_alone(network: HostNetwork, names: SlotNames) -> None:
    with pytest.raises(SlotTakenError):
        await network.create(names.slot, UID)
    assert await network.drift(names.slot) == ()


async def test_an_address_of_another_platform_is_not_touched(
    names: SlotNames, tmp_path: Path
) -> None:
    other = HostNetwork(tag_of(tmp_path / "other"))
    before = routes()
    with pytest.raises(SlotTakenError):
        await other.create(names.slot, UID)
    assert await other.present() == frozenset()
    assert routes() == before


def unlink(name: str) -> None:
    with Links() as links:
        assert links.delete(name)
        assert not links.delete(name)


async def test_what_is_half_there_is_removed(network: HostNetwork, names: SlotNames) -> None:
    await asyncio.to_thread(unlink, names.veth)
    assert await network.present() == {names.slot}
    assert await network.drift(names.slot) == (f"Its interface {names.veth} on the host is gone.",)
    await network.remove(names.slot)
    assert await network.present() == frozenset()


async def test_the_host_reaches_the_guest_by_its_fabric_address(names: SlotNames, tap: Tap) -> None:
    def talk() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host:
            host.settimeout(5)
            host.sendto(b"ping", (str(names.address), 7))
            frame = tap.receive(lambda one: one[12:14] == b"\x08\x00" and one[23] == 17)
            if frame is None:
                # The namespace asks for the guest's MAC first.
                raise AssertionError("nothing came")
            assert frame[30:34] == naming.GUEST_ADDRESS.packed
            assert frame[26:30] == naming.HOST_ADDRESS.packed
            port = struct.unpack("!H", frame[34:36])[0]
            answer = struct.pack("!HHHH", 7, port, 12, 0) + b"pong"
            tap.send(IPV4, ipv4(GUEST, str(naming.HOST_ADDRESS), 17, answer))
            data, sender = host.recvfrom(100)
            assert data == b"pong"
            assert sender == (str(names.address), 7)

    await asyncio.to_thread(talk)
    assert set(counters(names).values()) == {0}


@pytest.mark.parametrize(
    ("rule", "packet"),
    [
        ("egress", udp(GUEST, "192.0.2.1")),
        ("metadata", udp(GUEST, "169.254.169.254", 80)),
        ("peer", udp(GUEST, "198.19.255.250")),
        ("peer", udp(GUEST, str(naming.HOST_ADDRESS))),
        ("host", udp(GUEST, GATEWAY)),
        ("spoofed_address", udp("172.16.0.3", "192.0.2.1")),
        ("spoofed_address", udp("198.18.0.1", "192.0.2.1")),
    ],
)
async def test_what_the_guest_may_not_send_is_refused_and_counted(
    names: SlotNames, tap: Tap, rule: str, packet: bytes
) -> None:
    before = counters(names)
    await asyncio.to_thread(tap.send, IPV4, packet)
    after = counters(names)
    assert {name for name in after if after[name] != before[name]} == {rule}


async def test_another_mac_is_refused(names: SlotNames, tap: Tap) -> None:
    before = counters(names)
    tap.send(IPV4, udp(GUEST, "192.0.2.1"), source=SPOOFED_MAC)
    tap.send(ARP, arp(SPOOFED_MAC, GUEST, GATEWAY), source=SPOOFED_MAC)
    assert counters(names)["spoofed_mac"] == before["spoofed_mac"] + 2


async def test_an_arp_lie_is_refused(names: SlotNames, tap: Tap) -> None:
    before = counters(names)
    tap.send(ARP, arp(SPOOFED_MAC, GUEST, GATEWAY))
    tap.send(ARP, arp(naming.GUEST_MAC, GATEWAY, GATEWAY))
    tap.send(0x86DD, bytes(40))
    assert counters(names)["spoofed_address"] == before["spoofed_address"] + 3


async def test_only_the_owner_may_open_the_tap(names: SlotNames) -> None:
    code = (
        "import fcntl, os, struct, sys\n"
        "fd = os.open('/dev/net/tun', os.O_RDWR)\n"
        "os.setresgid(5, 5, 5); os.setresuid(*[int(sys.argv[1])] * 3)\n"
        "fcntl.ioctl(fd, 0x400454CA, struct.pack('16sH22x', b'iwtap0', 0x5002))\n"
    )

    async def attempt(uid: int) -> int | None:
        process = await asyncio.create_subprocess_exec(
            *("ip", "netns", "exec", names.netns, "/usr/bin/python3", "-c", code, str(uid)),
            stderr=asyncio.subprocess.DEVNULL,
        )
        return await process.wait()

    assert await attempt(UID) == 0
    assert await attempt(UID + 1) != 0
