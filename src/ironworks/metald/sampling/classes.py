"""How many of a guest's bytes went to other VMs: a named counter of nftables, asked by netlink.

The counter stands in the VM's own namespace, on the tap, where the tap's own counter counts all. It
is asked only when that one has moved: a VM that sends nothing costs nothing here, one that does
some five microseconds a tick.
"""

from __future__ import annotations

import socket
import struct

from ironworks.metald.sampling.types import AbsenceReason

TABLE = "iwguard"
COUNTER = "to_vms"

_NETFILTER = 12
_GET_OBJECT = (10 << 8) | 19
_ERROR = 2
_REQUEST = 1
_FAMILY_NETDEV = 5
_TABLE, _NAME, _TYPE, _DATA = 1, 2, 3, 4
_KIND_COUNTER = 1
_BYTES, _PACKETS = 1, 2
_HEADER = struct.Struct("=IHHII")
_HEADERS_BYTES = _HEADER.size + 4
_ATTRIBUTE = struct.Struct("=HH")
_NUMBER = struct.Struct(">Q")
_ANSWER_BYTES = 1024
ETHERNET_BYTES = 14
"""Of each frame, which the tap counts and nftables does not."""


def _attribute(kind: int, content: bytes) -> bytes:
    size = _ATTRIBUTE.size + len(content)
    return _ATTRIBUTE.pack(size, kind) + content + bytes(-size % 4)


def _question() -> bytes:
    body = struct.pack(">BBH", _FAMILY_NETDEV, 0, 0)
    body += _attribute(_TABLE, TABLE.encode() + b"\0")
    body += _attribute(_NAME, COUNTER.encode() + b"\0")
    body += _attribute(_TYPE, struct.pack(">I", _KIND_COUNTER))
    return _HEADER.pack(_HEADER.size + len(body), _GET_OBJECT, _REQUEST, 1, 0) + body


_QUESTION = _question()


def _places(answer: bytes, start: int, end: int) -> dict[int, tuple[int, int]]:
    """Kind of attribute → where its content begins and ends."""
    found: dict[int, tuple[int, int]] = {}
    while start + _ATTRIBUTE.size <= end:
        size, kind = _ATTRIBUTE.unpack_from(answer, start)
        if size < _ATTRIBUTE.size:
            break
        found[kind & 0x3FFF] = (start + _ATTRIBUTE.size, min(start + size, end))
        start += size + -size % 4
    return found


class NftCounter:
    """The counter of one namespace, as the tap would count: Ethernet headers included."""

    def __init__(self, channel: socket.socket) -> None:
        """Ask through `channel`, a netfilter socket of that namespace."""
        self._channel = channel
        self._at: dict[int, tuple[int, int]] = {}

    def read(self) -> int:
        """Bytes so far, or minus an `AbsenceReason`."""
        try:
            self._channel.send(_QUESTION)
            # The kernel has answered when `send` returns: nothing is ever waited for.
            answer = self._channel.recv(_ANSWER_BYTES, socket.MSG_DONTWAIT)
            if _HEADER.unpack_from(answer)[1] == _ERROR:
                return -AbsenceReason.GONE
            at_bytes, at_packets = self._at.get(len(answer)) or self._find(answer)
            packets = _NUMBER.unpack_from(answer, at_packets)[0]
            return _NUMBER.unpack_from(answer, at_bytes)[0] + packets * ETHERNET_BYTES
        except OSError:
            return -AbsenceReason.UNREADABLE
        except (KeyError, struct.error):
            return -AbsenceReason.MALFORMED

    def _find(self, answer: bytes) -> tuple[int, int]:
        """Where bytes and packets stand in an answer of this length: always in the same place."""
        outer = _places(answer, _HEADERS_BYTES, len(answer))
        numbers = _places(answer, *outer[_DATA])
        found = numbers[_BYTES][0], numbers[_PACKETS][0]
        self._at[len(answer)] = found
        return found

    def close(self) -> None:
        """Let go of the socket; later readings are UNREADABLE."""
        self._channel.close()


class NoCounter:
    """Stands for a counter that is not there."""

    def __init__(self, reason: int) -> None:
        self._value = reason

    def read(self) -> int:
        """Always the same absence."""
        return self._value

    def close(self) -> None:
        """Nothing to let go of."""


def open_counter() -> NftCounter | NoCounter:
    """The counter of this thread's namespace, whether it is there yet or not. Never raises."""
    try:
        return NftCounter(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER))
    except OSError:
        return NoCounter(-AbsenceReason.NO_SOURCE)


class InternalBytes:
    """What the guest has sent to VMs, beside what it has sent in all.

    The two counters are not read in the same instant, and the firewall's begins anew if somebody
    takes it away. So what is told never goes back, and neither does what is left for the internet.
    """

    def __init__(self, counter: NftCounter | NoCounter) -> None:
        self._counter = counter
        self._transmit_bytes = -1
        self._told = -1
        self._internet_bytes = 0
        self._lost_bytes = 0
        self._counted = 0

    def at(self, transmit_bytes: int) -> int:
        """The reading that goes with the tap's, or minus an `AbsenceReason`.

        Args:
            transmit_bytes: What the tap has just been read as; negative: why it was not.
        """
        if transmit_bytes < 0:
            return transmit_bytes
        if transmit_bytes != self._transmit_bytes or self._told < 0:
            self._told = self._ask(transmit_bytes)
            self._transmit_bytes = transmit_bytes
        return self._told

    def _ask(self, transmit_bytes: int) -> int:
        counted = self._counter.read()
        if counted < 0:
            return counted
        if counted < self._counted:
            self._lost_bytes += self._counted
        self._counted = counted
        internet_bytes = transmit_bytes - counted - self._lost_bytes
        # Asked after the tap: what came between is in one and not yet in the other.
        self._internet_bytes = min(max(internet_bytes, self._internet_bytes), transmit_bytes)
        return transmit_bytes - self._internet_bytes

    def close(self) -> None:
        """Let go of the counter."""
        self._counter.close()
