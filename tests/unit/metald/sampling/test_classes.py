from __future__ import annotations

import socket
import sys

import pytest

from ironworks.metald.network import rules
from ironworks.metald.sampling import classes, sources
from ironworks.metald.sampling.classes import InternalBytes, NoCounter
from ironworks.metald.sampling.types import AbsenceReason

from .conftest import ip

GONE, UNREADABLE, MALFORMED = (
    -AbsenceReason.GONE,
    -AbsenceReason.UNREADABLE,
    -AbsenceReason.MALFORMED,
)


class Numbers(NoCounter):
    """A counter that reads what it is told to, one after the other."""

    def __init__(self, *numbers: int) -> None:
        super().__init__(0)
        self.left = list(numbers)

    def read(self) -> int:
        return self.left.pop(0)


def test_the_firewall_has_the_counter_that_is_asked_for() -> None:
    assert (classes.TABLE, classes.COUNTER) == (rules.GUARD, rules.TO_VMS)


def test_a_vm_that_sends_nothing_is_not_asked_again() -> None:
    counter = Numbers(30)
    internal = InternalBytes(counter)
    assert [internal.at(100) for _ in range(3)] == [30, 30, 30]
    assert counter.left == []


def test_neither_class_ever_goes_back() -> None:
    # Frames of 50 bytes are counted as internal before the tap counts them, then as internet.
    internal = InternalBytes(Numbers(0, 150, 150, 150))
    told = [(at, internal.at(at)) for at in (100, 200, 250, 300)]
    assert told == [(100, 0), (200, 100), (250, 150), (300, 150)]


def test_no_more_than_all_that_was_sent_is_internal() -> None:
    assert InternalBytes(Numbers(70)).at(50) == 50


def test_a_firewall_that_begins_anew_takes_nothing_back() -> None:
    internal = InternalBytes(Numbers(60, 10, 25))
    assert [internal.at(at) for at in (100, 110, 125)] == [60, 70, 85]


def test_what_cannot_be_read_is_absent_and_caught_up_with_later() -> None:
    internal = InternalBytes(Numbers(10, UNREADABLE, 40))
    assert [internal.at(at) for at in (100, 130, 130)] == [10, UNREADABLE, 40]


def test_without_the_tap_nothing_is_said() -> None:
    internal = InternalBytes(Numbers(10))
    assert internal.at(GONE) == GONE


def nft(namespace: str, script: str) -> None:
    ip("netns", "exec", namespace, "nft", "-f", "-", given=script)


TABLE = f"""
table netdev {classes.TABLE} {{
  counter {classes.COUNTER} {{ }}
  chain from_guest {{
    type filter hook ingress device "iwa" priority -500; policy accept;
    ether type ip ip daddr 198.18.0.0/15 counter name {classes.COUNTER} accept
  }}
}}
"""
SEND = """
import socket, struct
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
link.bind(("iwb", 0))
for last in (b"\\xc6\\x12\\0\\x09", b"\\xcb\\0\\x71\\x09"):
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 986, 0, 0, 64, 17, 0, b"\\xac\\x10\\0\\x02", last)
    for _ in range(100):
        link.send(b"\\xff" * 12 + b"\\x08\\0" + head + bytes(966))
"""
FRAMES_BYTES = 100 * 1000


@pytest.mark.root
def test_bytes_to_vms_are_counted_as_the_tap_counts_them(namespace: str) -> None:
    nft(namespace, TABLE)
    tap = sources.open_tap(namespace, "iwa")
    sent, internal = tap.transmit.read(), tap.internal.at(tap.transmit.read())
    ip("netns", "exec", namespace, sys.executable, "-c", SEND)
    now = tap.transmit.read()
    assert now - sent >= 2 * FRAMES_BYTES
    assert tap.internal.at(now) - internal == FRAMES_BYTES
    tap.close()
    assert tap.internal.at(now + 1) == UNREADABLE


@pytest.mark.root
def test_a_counter_that_is_not_there_is_absent_until_it_is(namespace: str) -> None:
    tap = sources.open_tap(namespace, "iwa")
    assert tap.internal.at(100) == GONE
    nft(namespace, TABLE)
    assert tap.internal.at(100) == 0
    tap.close()


def test_an_answer_that_is_none_is_malformed() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        counter = classes.NftCounter(ours)
        for answer in (b"", b"short", bytes(100)):
            theirs.send(answer)
            assert counter.read() == MALFORMED
        assert counter.read() == UNREADABLE
