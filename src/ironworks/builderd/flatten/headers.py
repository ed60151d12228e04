"""Read the headers of a tar: v7, ustar, GNU and PAX.

Source: POSIX.1-2017 pax, "ustar Interchange Format"; the GNU tar manual, "Basic Tar Format". Reads
what OCI layers may have and refuses the rest with the reason. Data are not read, only located.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

from ironworks.builderd.flatten.extended import Extended
from ironworks.builderd.flatten.plan import Limits
from ironworks.builderd.flatten.refusal import bad, printable
from ironworks.builderd.flatten.sparse import Runs, is_sparse, octal, read_old, read_pax

BLOCK = 512
_ZEROS = bytes(BLOCK)
_FIELDS = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")
_MAX_COMPONENT_BYTES = 255
_MAX_ID = (1 << 32) - 2
_MAX_SIZE = 1 << 44
_NO_XATTRS: Mapping[bytes, bytes] = MappingProxyType({})


class Kind(Enum):
    """What an entry is."""

    FILE = b"0"
    HARD_LINK = b"1"
    SYMLINK = b"2"
    CHARACTER = b"3"
    BLOCK = b"4"
    DIRECTORY = b"5"
    FIFO = b"6"


@dataclass(slots=True)
class Entry:
    """One entry of a layer.

    Attributes:
        path: Components of its name; empty: the root directory.
        target: Of a hard link, components of the linked name, joined by `/`; of a symbolic link,
            its text.
        size: Of the file, with its holes.
        offset: Where its data are in the layer's tar.
        device: Major and minor number.
        runs: Of a sparse file, what is not a hole; the data of all runs stand one after the other.
    """

    path: tuple[bytes, ...]
    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime: int
    size: int
    offset: int
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[bytes, bytes] = field(default_factory=lambda: _NO_XATTRS)
    runs: Runs | None = None


def components(name: bytes, limits: Limits) -> tuple[bytes, ...]:
    """The components of a name in an image.

    Raises:
        InvalidRequest: it is absolute, has `..` or NUL, or is too long.
    """
    # "/" alone is the root itself, as `umoci insert DIRECTORY /` writes it.
    if name.startswith(b"/") and name.strip(b"/"):
        raise bad("its name is absolute", name)
    if len(name) > limits.path_bytes:
        raise bad(f"its name is longer than {limits.path_bytes} bytes", name)
    parts = tuple(part for part in name.split(b"/") if part not in (b"", b"."))
    for part in parts:
        if part == b"..":
            raise bad("its name leads upwards by ..", name)
        if len(part) > _MAX_COMPONENT_BYTES:
            raise bad(f"a part of its name is longer than {_MAX_COMPONENT_BYTES} bytes", name)
    if b"\0" in name:
        raise bad("its name has a NUL", name)
    return parts


def read_entries(fd: int, size: int, limits: Limits) -> Iterator[Entry]:
    """All entries of a tar of `size` bytes, in order.

    Raises:
        InvalidRequest: the tar is damaged, cut off, or has what an image may not have.
    """
    position = 0
    # Modes and times repeat: one object each, as there may be a million entries.
    modes: dict[int, int] = {}
    times: dict[int, int] = {}
    extended = Extended()
    while position < size:
        block = os.pread(fd, BLOCK, position)
        if len(block) < BLOCK:
            raise bad("its tar is cut off")
        if block == _ZEROS:
            return
        header = _Header(block, _FIELDS.unpack(block))
        header.check_sum()
        data = position + BLOCK
        if header.kind in b"xgLK":
            length = octal(header.fields[4], "size")
            extended.spend(length)
            body = os.pread(fd, length, data)
            if len(body) < length:
                raise bad("its tar is cut off")
            extended.add(header.kind, body)
            position = data + _padded(length)
            continue
        entry, position = _entry(fd, header, extended, data, limits)
        extended = Extended()
        if _end(entry) > size:
            raise bad("it is longer than the layer", b"/".join(entry.path))
        entry.mode = modes.setdefault(entry.mode, entry.mode)
        entry.mtime = times.setdefault(entry.mtime, entry.mtime)
        yield entry


def _padded(length: int) -> int:
    return (length + BLOCK - 1) // BLOCK * BLOCK


def _end(entry: Entry) -> int:
    # Padding after the last byte may be absent.
    stored = entry.size if entry.runs is None else sum(length for _, length in entry.runs)
    return entry.offset + stored


@dataclass(slots=True)
class _Header:
    """One block, taken apart."""

    block: bytes
    fields: tuple[bytes, ...]

    @property
    def kind(self) -> bytes:
        return self.fields[7]

    def name(self) -> bytes:
        name = _text(self.fields[0])
        # GNU uses the place of the prefix for other things.
        prefix = _text(self.fields[15]) if self.fields[9] == b"ustar\0" else b""
        return prefix + b"/" + name if prefix else name

    def check_sum(self) -> None:
        claimed = octal(self.fields[6], "checksum")
        rest = sum(self.block) - sum(self.block[148:156]) + 8 * 32
        if claimed == rest:
            return
        # Old tars summed signed bytes.
        high = sum(1 for byte in self.block[:148] + self.block[156:] if byte > 0x7F)  # noqa: PLR2004
        if claimed != rest - 256 * high:
            raise bad("its tar is damaged: a header has a wrong checksum")


def _entry(
    fd: int, header: _Header, extended: Extended, data: int, limits: Limits
) -> tuple[Entry, int]:
    """The entry that a header and what stands before it describe, and where the next one is."""
    records = extended.records
    name = records.get(b"path") or header.name()
    name = records.get(b"GNU.sparse.name") or name
    kind = _kind(header.kind, name)
    entry = Entry(
        path=components(name, limits),
        kind=kind,
        mode=octal(header.fields[1], "mode") & 0o7777,
        uid=_identity(extended, b"uid", header.fields[2], name),
        gid=_identity(extended, b"gid", header.fields[3], name),
        mtime=_mtime(records, header.fields[5]),
        size=0,
        offset=data,
        xattrs=extended.xattrs or _NO_XATTRS,
    )
    stored = 0
    if kind is Kind.FILE:
        stored = extended.decimal(b"size", octal(header.fields[4], "size"))
        if not 0 <= stored <= _MAX_SIZE:
            raise bad("its size is impossible", name)
        entry.size = stored
        if header.kind == b"S":
            entry.runs, entry.size, entry.offset = read_old(fd, header.block, data, stored, name)
            data = entry.offset
        elif is_sparse(extended):
            entry.runs, entry.size, entry.offset = read_pax(fd, data, stored, extended, name)
        if not 0 <= entry.size <= _MAX_SIZE:
            raise bad("its size is impossible", name)
    else:
        _read_target(entry, header, records, limits, name)
    return entry, data + _padded(stored)


def _read_target(
    entry: Entry, header: _Header, records: dict[bytes, bytes], limits: Limits, name: bytes
) -> None:
    target = _text(records.get(b"linkpath", header.fields[8]))
    if entry.kind is Kind.HARD_LINK:
        entry.target = b"/".join(components(target, limits))
    elif entry.kind is Kind.SYMLINK:
        if not target or len(target) > limits.path_bytes:
            raise bad("it is a symbolic link to nothing, or to a name that is too long", name)
        entry.target = target
    elif entry.kind in (Kind.CHARACTER, Kind.BLOCK):
        entry.device = octal(header.fields[13], "major"), octal(header.fields[14], "minor")
        if not (0 <= entry.device[0] < 1 << 12 and 0 <= entry.device[1] < 1 << 20):
            raise bad("its device number is impossible", name)


def _kind(raw: bytes, name: bytes) -> Kind:
    if raw in b"\x007S":
        raw = b"0"
    if raw == b"0" and name.endswith(b"/"):
        return Kind.DIRECTORY
    try:
        return Kind(raw)
    except ValueError:
        raise bad(f"its kind {printable(raw)!r} is not known", name) from None


def _text(field_bytes: bytes) -> bytes:
    return field_bytes.split(b"\0", 1)[0]


def _identity(extended: Extended, key: bytes, raw: bytes, name: bytes) -> int:
    value = extended.decimal(key, octal(raw, key.decode()))
    if not 0 <= value <= _MAX_ID:
        raise bad(f"its {key.decode()} is impossible", name)
    return value


def _mtime(records: dict[bytes, bytes], raw: bytes) -> int:
    """Whole seconds, within what a squashfs can hold (0 to 2106)."""
    value = records.get(b"mtime", b"")
    if value:
        whole, _, fraction = value.partition(b".")
        digits = whole.removeprefix(b"-")
        if not digits.isdigit() or len(digits) > 20:  # noqa: PLR2004 - digits of a 64-bit number
            raise bad("its mtime is not a number")
        seconds = int(whole) - (whole.startswith(b"-") and fraction.strip(b"0") != b"")
    else:
        seconds = octal(raw, "mtime")
    return min(max(seconds, 0), (1 << 32) - 1)
