from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ironworks.metald.sampling import sources
from ironworks.metald.sampling.types import AbsenceReason

from .conftest import ip

GONE, UNREADABLE, MALFORMED, NO_SOURCE = (
    -AbsenceReason.GONE,
    -AbsenceReason.UNREADABLE,
    -AbsenceReason.MALFORMED,
    -AbsenceReason.NO_SOURCE,
)


def reading(content: bytes, directory: Path, parse: Callable[[bytes], int] = int) -> int:
    """What a file with this content reads as."""
    path = directory / "counter"
    path.write_bytes(content)
    source = sources.open_source(str(path), parse)
    try:
        return source.read()
    finally:
        source.close()


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"0\n", 0),
        (b"18446744073709551615\n", (1 << 64) - 1),
        (b"18446744073709551616\n", MALFORMED),
        (b"-1\n", MALFORMED),
        (b"max\n", MALFORMED),
        (b"1.5\n", MALFORMED),
        (b"nan", MALFORMED),
        (b"", MALFORMED),
    ],
)
def test_a_plain_number(content: bytes, value: int, tmp_path: Path) -> None:
    assert reading(content, tmp_path) == value


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"usage_usec 1234\nuser_usec 1000\nsystem_usec 234\n", 1_234_000),
        (b"usage_usec -4\nuser_usec 1\n", MALFORMED),
        (b"usage_usec x\nuser_usec 1\n", MALFORMED),
        (b"123456789\n", 123_456_789),
        (b"user_usec 1\n", MALFORMED),
    ],
)
def test_cpu_time_of_both_kinds_of_cgroup_is_nanoseconds(
    content: bytes, value: int, tmp_path: Path
) -> None:
    assert reading(content, tmp_path, sources.cpu_nanoseconds) == value


def test_a_kept_file_is_read_anew_each_time(tmp_path: Path) -> None:
    path = tmp_path / "memory.current"
    path.write_text("5\n")
    source = sources.open_source(str(path))
    assert source.read() == 5
    path.write_text("70\n")
    assert source.read() == 70
    source.close()
    source.close()
    assert source.read() == UNREADABLE


def test_what_cannot_be_opened_is_absent_with_its_reason(tmp_path: Path) -> None:
    assert sources.open_source("").read() == NO_SOURCE
    assert sources.open_source(str(tmp_path / "none")).read() == GONE
    unopenable = sources.open_source(str(tmp_path))
    assert unopenable.read() == UNREADABLE
    unopenable.close()


def test_a_vm_without_network_has_no_tap() -> None:
    tap = sources.open_tap("", "")
    assert (tap.receive.read(), tap.transmit.read()) == (NO_SOURCE, NO_SOURCE)
    tap.close()


def test_a_namespace_that_is_gone_is_absent() -> None:
    tap = sources.open_tap("iw-none-such", "tap0")
    assert (tap.receive.read(), tap.transmit.read()) == (GONE, GONE)


SEND = """
import socket, sys
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
link.bind((sys.argv[1], 0))
for _ in range(100):
    link.send(b"\\xff" * 12 + b"\\x88\\xb5" + bytes(986))
"""
SENT_BYTES = 100_000
NOISE_BYTES = 10_000
"""Router solicitations and the like."""


@pytest.mark.root
def test_counters_are_read_from_the_guest_s_side(namespace: str) -> None:
    tap = sources.open_tap(namespace, "iwa")
    received, transmitted = tap.receive.read(), tap.transmit.read()
    ip("netns", "exec", namespace, sys.executable, "-c", SEND, "iwa")
    assert SENT_BYTES <= tap.receive.read() - received < SENT_BYTES + NOISE_BYTES
    assert tap.transmit.read() - transmitted < NOISE_BYTES
    received, transmitted = tap.receive.read(), tap.transmit.read()
    ip("netns", "exec", namespace, sys.executable, "-c", SEND, "iwb")
    assert tap.receive.read() - received < NOISE_BYTES
    assert SENT_BYTES <= tap.transmit.read() - transmitted < SENT_BYTES + NOISE_BYTES
    tap.close()


@pytest.mark.root
def test_opening_leaves_nothing_mounted_and_the_process_at_home(namespace: str) -> None:
    mounts = Path("/proc/self/mounts").read_text()
    home = Path("/proc/self/ns/net").readlink()
    tap = sources.open_tap(namespace, "iwa")
    assert Path("/proc/self/mounts").read_text() == mounts
    assert Path("/proc/self/ns/net").readlink() == home
    ip("-n", namespace, "link", "del", "iwa")
    assert (tap.receive.read(), tap.transmit.read()) == (GONE, GONE)
    tap.close()


@pytest.mark.root
def test_an_interface_that_is_not_there_is_absent(namespace: str) -> None:
    tap = sources.open_tap(namespace, "nothere")
    assert (tap.receive.read(), tap.transmit.read()) == (GONE, GONE)
    tap.close()
