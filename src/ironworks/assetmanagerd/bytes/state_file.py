"""The state file of a snapshot that Firecracker made.

Source: Firecracker `src/vmm/src/snapshot/mod.rs`. Magic number, version of the format as text,
state of the VM, CRC-64 of all before it. Up to v1.14 it is written with bincode (lengths are 64
bits), from v1.15 on with bitcode (columns: a byte of packing before the magic number, a byte of
length before the text). The state itself is laid out differently by each version: only that version
can read it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from ironworks.model.errors import InvalidRequest

_MAGIC = {0x0710_1984_8664_0000: "amd64", 0x0710_1984_AAAA_0000: "arm64"}
_MAGIC_BYTES = 8
_BITCODE_UNPACKED = b"\0"
_VERSION = re.compile(rb"(0|[1-9][0-9]{0,9})(\.(0|[1-9][0-9]{0,9})){2}")
_MAX_VERSION_CHARS = 32
_CRC_BYTES = 8
_CRC_POLYNOMIAL = 0x95AC_9329_AC4B_C9B5
"""Of Jones, as Redis has it, bits reversed."""
MAX_BYTES = 10 * 1024 * 1024
"""Firecracker reads no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What the beginning says; `version` is the format's, not Firecracker's."""

    architecture: str
    version: str


def read_header(head: bytes, size_bytes: int) -> Header | None:
    """The header, in either encoding; None: this is no state file.

    Raises:
        InvalidRequest: it begins like one, but cannot be one.
    """
    for prefix, length_bytes in ((b"", 8), (_BITCODE_UNPACKED, 1)):
        start = len(prefix) + _MAGIC_BYTES
        magic = int.from_bytes(head[len(prefix) : start], "little")
        if not head.startswith(prefix) or magic & ~0xFFFF not in _MAGIC:
            continue
        if magic not in _MAGIC:
            raise InvalidRequest("This state file was written by a Firecracker older than 1.7.")
        text_at = start + length_bytes
        length = int.from_bytes(head[start:text_at], "little")
        version = head[text_at : text_at + min(length, _MAX_VERSION_CHARS)]
        if not _VERSION.fullmatch(version) or len(version) != length:
            raise InvalidRequest("The header of this state file of Firecracker is damaged.")
        if not text_at + length + _CRC_BYTES <= size_bytes <= MAX_BYTES:
            raise InvalidRequest(f"A state file of Firecracker does not have {size_bytes} bytes.")
        return Header(architecture=_MAGIC[magic], version=version.decode())
    return None


def check_sum(body: bytes) -> None:
    """Compare the CRC-64 at the end with what is before it.

    Raises:
        InvalidRequest: they differ.
    """
    # Of bytes and the CRC behind them, the CRC is 0.
    if crc64(body):
        raise InvalidRequest("This state file of Firecracker is damaged: its CRC-64 is another.")


def crc64(body: bytes) -> int:
    """CRC-64 as Firecracker computes it."""
    table, crc = _table(), 0
    for byte in body:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc


@cache
def _table() -> tuple[int, ...]:
    def entry(byte: int) -> int:
        for _ in range(8):
            byte = byte >> 1 ^ (_CRC_POLYNOMIAL if byte & 1 else 0)
        return byte

    return tuple(entry(byte) for byte in range(256))
