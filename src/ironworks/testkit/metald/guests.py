"""A guest without a VM: a namespace with a kernel's own network behind the tap of a slot.

    slot's namespace: iwtap0 ◄── frames are carried across ──► eth0: guest's namespace

It answers ARP and neighbour discovery, speaks TCP over IPv4 and IPv6, and can be made to lie.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from ironworks.metald.network import namespace, naming
from ironworks.metald.network.naming import SlotNames

_T = TypeVar("_T")
_TUNSETIFF = 0x400454CA
_TAP_FLAGS = 0x0002 | 0x1000 | 0x4000
_FRAME_BYTES = 70_000
CONNECT_SECONDS = 1.0
_FRAME_HEADER_BYTES = 10
"""What the kernel puts before each frame of a tap (virtio_net_hdr)."""

INTERNET = "203.0.113.9"
"""Address of the host that stands for all of the internet."""


def open_tap(name: str) -> int:
    """A descriptor of a tap of this thread's namespace, made if it is not there."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP_FLAGS))
    return descriptor


def sh(*commands: str) -> None:
    """Run commands in this thread's namespace."""
    for command in commands:
        subprocess.run(command.split(), check=True, capture_output=True)


class Guest:
    """A guest in the slot `names`; `close` it."""

    def __init__(self, names: SlotNames) -> None:
        """Open the slot's tap and stand behind it."""
        self.names = names
        self.path = naming.NETNS_DIRECTORY / f"guest-{names.veth}"
        self._slot_end = namespace.run_in(names.netns_path, lambda: open_tap(naming.TAP))
        self._own_end = namespace.create(self.path, self._dress)
        self._stop_read, self._stop_write = os.pipe()
        self._carrier = threading.Thread(target=self._carry, name="guest", daemon=True)
        self._carrier.start()

    @staticmethod
    def _dress() -> int:
        descriptor = open_tap("eth0")
        sh(
            "ip link set lo up",
            f"ip link set eth0 address {naming.GUEST_MAC} up",
            f"ip address add {naming.GUEST_ADDRESS}/{naming.GUEST_PREFIX_LENGTH} dev eth0",
            f"ip route add default via {naming.GATEWAY_ADDRESS}",
            f"ip address add {naming.GUEST_ADDRESS_V6}/64 dev eth0 nodad",
            f"ip route add default via {naming.GATEWAY_ADDRESS_V6}",
        )
        return descriptor

    def _carry(self) -> None:
        ends = {self._slot_end: self._own_end, self._own_end: self._slot_end}
        with selectors.DefaultSelector() as selector:
            for one in (*ends, self._stop_read):
                selector.register(one, selectors.EVENT_READ)
            while True:
                ready = [key.fd for key, _ in selector.select()]
                if self._stop_read in ready:
                    return
                for one in ready:
                    with contextlib.suppress(OSError):
                        os.write(ends[one], os.read(one, _FRAME_BYTES))

    def close(self) -> None:
        """Take it away."""
        os.write(self._stop_write, b"x")
        self._carrier.join()
        for descriptor in (self._slot_end, self._own_end, self._stop_read, self._stop_write):
            os.close(descriptor)
        namespace.remove(self.path)

    def run(self, work: Callable[[], _T]) -> _T:
        """Do something in the guest's namespace."""
        return namespace.run_in(self.path, work)

    def send_frame(self, frame: bytes) -> None:
        """Send a frame exactly as it is."""
        os.write(self._slot_end, bytes(_FRAME_HEADER_BYTES) + frame)

    @contextmanager
    def serves(self, port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> Generator[None]:
        """Answer `hello` on a port, over IPv4 and IPv6."""
        listener = self.run(lambda: _listen(port, kind))
        thread = threading.Thread(target=_answer, args=(listener,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR) if kind is socket.SOCK_STREAM else None
            listener.close()

    def reaches(self, address: str, port: int) -> bool:
        """Whether a TCP connection that the guest opens is answered."""
        return self.run(lambda: answers(address, port))


def own_addresses() -> set[str]:
    """Addresses of this machine by which others reach it; its name need not resolve."""
    done = subprocess.run(
        ["ip", "-j", "addr", "show", "scope", "global"], capture_output=True, check=True
    )
    links: list[dict[str, Any]] = json.loads(done.stdout)
    return {
        str(one["local"])
        for link in links
        if not str(link.get("ifname", "")).startswith("iw")
        for one in link.get("addr_info", ())
        if "local" in one
    }


def answers(address: str, port: int) -> bool:
    """Whether `hello` comes from a TCP port, seen from this thread's namespace."""
    try:
        with socket.create_connection((address, port), timeout=CONNECT_SECONDS) as connection:
            return connection.recv(16) == b"hello"
    except OSError:
        return False


def _listen(port: int, kind: socket.SocketKind) -> socket.socket:
    listener = socket.socket(socket.AF_INET6, kind)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind(("::", port))
    if kind is socket.SOCK_STREAM:
        listener.listen(16)
    return listener


def _answer(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"hello")


@contextmanager
def internet(name: str = "iwtestout") -> Generator[Path]:
    """A host beyond this one, which this one forwards to; yields its namespace."""
    path = naming.NETNS_DIRECTORY / name
    namespace.create(path, lambda: sh("ip link set lo up"))
    try:
        sh(
            f"ip link add {name} type veth peer name eth0 netns {name}",
            f"ip address add 203.0.113.1/24 dev {name}",
            f"ip link set {name} up",
        )
        Path(f"/proc/sys/net/ipv4/conf/{name}/forwarding").write_text("1")
        namespace.run_in(
            path,
            lambda: sh(
                f"ip address add {INTERNET}/24 dev eth0",
                "ip link set eth0 up",
                "ip route add default via 203.0.113.1",
            ),
        )
        yield path
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            sh(f"ip link delete {name}")
        namespace.remove(path)


@contextmanager
def serving(path: Path, port: int) -> Generator[None]:
    """Answer `hello` on a port of another namespace."""
    listener = namespace.run_in(path, lambda: _listen(port, socket.SOCK_STREAM))
    thread = threading.Thread(target=_answer, args=(listener,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
