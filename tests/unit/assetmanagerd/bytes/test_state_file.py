"""State files of Firecracker of all its versions are known, and damaged ones are."""

from __future__ import annotations

import struct

import pytest

from ironworks.assetmanagerd.bytes.state_file import MAX_BYTES, check_sum, crc64, read_header
from ironworks.model.errors import InvalidRequest
from ironworks.testkit.assets import firecracker_state

# Written by bitcode 0.6.9, the release that Firecracker 1.15 and 1.16 have, of a header and an
# empty state: what of the encoding matters here.
BITCODE_AMD64 = "0000006486841910070631302e302e300600000000000000a8c696b540d48bda"
BITCODE_ARM64 = "000000aaaa8419100705392e302e300600000000000000c7863816ec8a7f3c"


def test_the_sum_is_firecrackers() -> None:
    """The figure is from the documentation of its `CRC64Writer`."""
    assert crc64(bytes([123] * 16)) == 0x29D5_3572_1632_6566


@pytest.mark.parametrize("version", ["2.0.0", "8.0.0", "12.34.5"])
@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
def test_bincode_up_to_1_14(version: str, architecture: str) -> None:
    body = firecracker_state(architecture, version)
    header = read_header(body, len(body))
    assert header is not None
    assert (header.architecture, header.version) == (architecture, version)
    check_sum(body)


@pytest.mark.parametrize(
    ("text", "architecture", "version"),
    [(BITCODE_AMD64, "amd64", "10.0.0"), (BITCODE_ARM64, "arm64", "9.0.0")],
)
def test_bitcode_from_1_15_on(text: str, architecture: str, version: str) -> None:
    body = bytes.fromhex(text)
    header = read_header(body, len(body))
    assert header is not None
    assert (header.architecture, header.version) == (architecture, version)
    check_sum(body)


@pytest.mark.parametrize("body", [firecracker_state(), bytes.fromhex(BITCODE_AMD64)])
def test_each_byte_counts(body: bytes) -> None:
    for at in range(len(body)):
        damaged = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        with pytest.raises(InvalidRequest, match="CRC-64"):
            check_sum(damaged)
    with pytest.raises(InvalidRequest, match="CRC-64"):
        check_sum(body[:-1])


def head(magic: int, length: int, version: bytes) -> bytes:
    return struct.pack("<QQ", magic, length) + version.ljust(64, b"\0")


@pytest.mark.parametrize(
    ("body", "size_bytes", "reason"),
    [
        (head(0x0710_1984_8664_0001, 5, b"1.0.0"), 80, r"older than 1\.7"),
        (head(0x0710_1984_8664_0000, 5, b"1.0.x"), 80, "header"),
        (head(0x0710_1984_8664_0000, 0, b"1.0.0"), 80, "header"),
        (head(0x0710_1984_8664_0000, 1 << 63, b"1.0.0"), 80, "header"),
        (firecracker_state()[:12], 12, "header"),
        (firecracker_state(), 24, "24 bytes"),
        (firecracker_state(), MAX_BYTES + 1, "bytes"),
    ],
)
def test_what_begins_like_one_and_is_none(body: bytes, size_bytes: int, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        read_header(body, size_bytes)


@pytest.mark.parametrize(
    "body", [b"", b"\0", bytes(4096), head(0x0710_1984_5555_0000, 5, b"1.0.0")]
)
def test_what_is_something_else(body: bytes) -> None:
    assert read_header(body, len(body)) is None
