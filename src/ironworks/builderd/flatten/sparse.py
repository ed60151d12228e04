"""Sparse files in a tar: which bytes of a file are there, all others being zero.

Four formats are in use: that of old GNU headers, and GNU's 0.0, 0.1 and 1.0 in PAX headers. The
data of all runs stand one after the other in the tar.
Source: the GNU tar manual, "Storing Sparse Files".
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from ironworks.builderd.flatten.extended import MAX_EXTENDED_BYTES, Extended, number
from ironworks.builderd.flatten.refusal import bad

Runs = tuple[tuple[int, int], ...]
"""Offset in the file and length of each run of data, in order, not touching one another."""

_BLOCK = 512
_OLD_RUNS = slice(386, 386 + 4 * 24)
_OLD_MORE = 482
_OLD_SIZE = slice(483, 495)
_EXTENSION_RUNS = slice(0, 21 * 24)
_EXTENSION_MORE = 504
_MAX_RUNS = MAX_EXTENDED_BYTES // 8


def is_sparse(extended: Extended) -> bool:
    """Whether PAX headers announce a sparse file."""
    return b"GNU.sparse.major" in extended.records or b"GNU.sparse.size" in extended.records


def checked(runs: Iterable[tuple[int, int]], size: int, stored: int, name: bytes) -> Runs:
    """Runs that lie in a file of `size` bytes, of which `stored` are in the tar.

    Raises:
        InvalidRequest: they do not.
    """
    kept: list[tuple[int, int]] = []
    end = total = 0
    for offset, length in runs:
        if offset < end or length < 0 or offset + length > size:
            raise bad("its sparse map is impossible", name)
        end = offset + length
        total += length
        if length:
            kept.append((offset, length))
    if total != stored:
        raise bad("its sparse map and its size disagree", name)
    return tuple(kept)


def read_pax(
    fd: int, data: int, stored: int, extended: Extended, name: bytes
) -> tuple[Runs, int, int]:
    """Runs, size of the file, and where the data begin, for the formats in PAX headers.

    Args:
        fd: The tar.
        data: Where the entry's bytes begin.
        stored: How many they are.
        extended: What the headers say.
        name: The entry, for refusals.

    Raises:
        InvalidRequest: the map is damaged.
    """
    version = extended.records.get(b"GNU.sparse.major"), extended.records.get(b"GNU.sparse.minor")
    if version == (b"1", b"0"):
        size = extended.decimal(b"GNU.sparse.realsize", -1)
        numbers, map_bytes = _map_before_data(fd, data, stored, name)
        runs = checked(_pairs(numbers, name), size, stored - map_bytes, name)
        return runs, size, data + map_bytes
    if version not in ((None, None), (b"0", b"0"), (b"0", b"1")):
        raise bad("it is a sparse file of an unknown format", name)
    size = extended.decimal(b"GNU.sparse.size", -1)
    raw = extended.sparse_runs
    if b"GNU.sparse.map" in extended.records:
        text = extended.records[b"GNU.sparse.map"]
        raw = text.split(b",") if text else []
    numbers = [number(one, "sparse map") for one in raw]
    return checked(_pairs(numbers, name), size, stored, name), size, data


def _map_before_data(fd: int, data: int, stored: int, name: bytes) -> tuple[list[int], int]:
    """The map of format 1.0: decimal lines, the first their count, padded to a block."""
    text = os.pread(fd, min(stored, MAX_EXTENDED_BYTES), data)
    head, _, rest = text.partition(b"\n")
    count = number(head, "sparse map")
    if count > _MAX_RUNS:
        raise bad("its sparse map is too long", name)
    lines = rest.split(b"\n", 2 * count)
    if len(lines) <= 2 * count:
        raise bad("its sparse map is cut off", name)
    numbers = [number(line, "sparse map") for line in lines[: 2 * count]]
    used = len(text) - len(lines[2 * count])
    return numbers, min((used + _BLOCK - 1) // _BLOCK * _BLOCK, stored)


def _pairs(numbers: list[int], name: bytes) -> list[tuple[int, int]]:
    if len(numbers) % 2:
        raise bad("its sparse map is cut off", name)
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def read_old(fd: int, block: bytes, data: int, stored: int, name: bytes) -> tuple[Runs, int, int]:
    """Runs, size of the file, and where the data begin, for old GNU headers.

    Raises:
        InvalidRequest: the map is damaged.
    """
    runs = _old_runs(block[_OLD_RUNS])
    more = block[_OLD_MORE]
    while more:
        if len(runs) > _MAX_RUNS:
            raise bad("its sparse map is too long", name)
        extension = os.pread(fd, _BLOCK, data)
        if len(extension) < _BLOCK:
            raise bad("its tar is cut off", name)
        runs += _old_runs(extension[_EXTENSION_RUNS])
        more = extension[_EXTENSION_MORE]
        data += _BLOCK
    size = octal(block[_OLD_SIZE], "size")
    return checked(runs, size, stored, name), size, data


def _old_runs(table: bytes) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for at in range(0, len(table), 24):
        if not table[at]:
            break
        runs.append((octal(table[at : at + 12], "offset"), octal(table[at + 12 : at + 24], "size")))
    return runs


def octal(raw: bytes, what: str) -> int:
    """A number of a header: octal digits, or base 256 (GNU).

    Raises:
        InvalidRequest: it is neither.
    """
    if raw[0] & 0x80:
        value = int.from_bytes(raw, "big") & ((1 << (8 * len(raw) - 1)) - 1)
        return value - (1 << (8 * len(raw) - 1)) if raw[0] & 0x40 else value
    text = raw.strip(b" \0").partition(b"\0")[0].rstrip(b" ")
    # Python takes more for a number than tar does: "0o5", "1_0", "+1".
    if text.strip(b"01234567"):
        raise bad(f"its {what} is not a number")
    return int(text or b"0", 8)
