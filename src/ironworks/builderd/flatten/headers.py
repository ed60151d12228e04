"""Read the headers of a tar: v7, ustar, GNU and PAX.

Source: POSIX.1-2017 pax, "ustar Interchange Format"; the GNU tar manual, "Basic Tar Format". Reads
what OCI layers may have and refuses the rest with the reason. Data are not read, only located.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from ironworks.builderd.flatten.plan import Limits
from ironworks.model.errors import InvalidRequest

BLOCK = 512
_ZEROS = bytes(BLOCK)
_FIELDS = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")
_MAX_EXTENDED_BYTES = 1 << 20
_MAX_COMPONENT_BYTES = 255
_MAX_ID = (1 << 32) - 2
_MAX_SIZE = 1 << 44
_XATTR = b"SCHILY.xattr."
_KEPT_XATTRS = (b"user.", b"trusted.", b"security.")


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
        offset: Where its data are in the layer's tar.
        device: Major and minor number.
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
    xattrs: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])


def bad(message: str, name: bytes = b"") -> InvalidRequest:
    """A refusal of a layer; names the entry."""
    where = f" at {printable(name)}" if name else ""
    return InvalidRequest(f"A layer of the image is refused{where}: {message}.")


def printable(name: bytes) -> str:
    """A name for people: bounded, without control characters."""
    text = name.decode("utf-8", "backslashreplace")[:200]
    return "".join(char if char.isprintable() else "?" for char in text)


def components(name: bytes, limits: Limits) -> tuple[bytes, ...]:
    """The components of a name in an image.

    Raises:
        InvalidRequest: it is absolute, has `..` or NUL, or is too long.
    """
    if name.startswith(b"/"):
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
    extended = _Extended()
    while position < size:
        block = os.pread(fd, BLOCK, position)
        if len(block) < BLOCK:
            raise bad("its tar is cut off")
        if block == _ZEROS:
            return
        fields = _FIELDS.unpack(block)
        _check_sum(block, fields)
        data, kind = position + BLOCK, fields[7]
        length = _number(fields[4], "size")
        if kind in b"xgLK":
            if length > _MAX_EXTENDED_BYTES:
                raise bad("it has an extended header of more than 1 MiB")
            body = os.pread(fd, length, data)
            if len(body) < length:
                raise bad("its tar is cut off")
            extended.add(kind, body)
            position = data + _padded(length)
            continue
        entry = _entry(fields, extended, data, limits)
        extended = _Extended()
        position = data + _padded(entry.size)
        if data + entry.size > size:
            raise bad("it is longer than the layer", b"/".join(entry.path))
        yield entry


def _padded(length: int) -> int:
    return (length + BLOCK - 1) // BLOCK * BLOCK


class _Extended:
    """What PAX and GNU headers say of the entry that follows."""

    def __init__(self) -> None:
        self.records: dict[bytes, bytes] = {}
        self.xattrs: dict[bytes, bytes] = {}

    def add(self, kind: bytes, body: bytes) -> None:
        if kind == b"L":
            self.records[b"path"] = body.split(b"\0", 1)[0]
        elif kind == b"K":
            self.records[b"linkpath"] = body.split(b"\0", 1)[0]
        elif kind == b"x":
            self._parse(body)
        # Global headers ("g") carry comments in practice, and other readers of images ignore them.

    def _parse(self, body: bytes) -> None:
        position = 0
        while position < len(body) and body[position]:
            space = body.find(b" ", position, position + 20)
            length = body[position:space]
            end = position + int(length) if space > 0 and length.isdigit() else -1
            equals = body.find(b"=", space, end)
            if not space < equals < end <= len(body) or body[end - 1 : end] != b"\n":
                raise bad("it has a damaged PAX header")
            key, value = body[space + 1 : equals], body[equals + 1 : end - 1]
            if key.startswith(_XATTR):
                name = key[len(_XATTR) :]
                # An empty value takes a record back (POSIX.1-2017, pax).
                if value and name.startswith(_KEPT_XATTRS):
                    self.xattrs[name] = value
            elif key.startswith(b"GNU.sparse."):
                raise bad("it is a sparse file, which this version does not read")
            else:
                self.records[key] = value
            position = end


def _entry(fields: tuple[bytes, ...], extended: _Extended, data: int, limits: Limits) -> Entry:
    records = extended.records
    name = records.get(b"path") or _ustar_name(fields)
    kind = _kind(fields[7], name)
    size = 0
    if kind is Kind.FILE:
        size = _decimal(records, b"size", _number(fields[4], "size"))
        if not 0 <= size <= _MAX_SIZE:
            raise bad("its size is impossible", name)
    target = _text(records.get(b"linkpath", fields[8]))
    entry = Entry(
        path=components(name, limits),
        kind=kind,
        mode=_number(fields[1], "mode") & 0o7777,
        uid=_identity(records, b"uid", fields[2], name),
        gid=_identity(records, b"gid", fields[3], name),
        mtime=_mtime(records, fields[5]),
        size=size,
        offset=data,
        xattrs=extended.xattrs,
    )
    if kind is Kind.HARD_LINK:
        entry.target = b"/".join(components(target, limits))
    elif kind is Kind.SYMLINK:
        if not target or len(target) > limits.path_bytes:
            raise bad("it is a symbolic link to nothing, or to a name that is too long", name)
        entry.target = target
    elif kind in (Kind.CHARACTER, Kind.BLOCK):
        entry.device = _number(fields[13], "major"), _number(fields[14], "minor")
        if not (0 <= entry.device[0] < 1 << 12 and 0 <= entry.device[1] < 1 << 20):
            raise bad("its device number is impossible", name)
    return entry


def _kind(raw: bytes, name: bytes) -> Kind:
    if raw in b"\x007":
        raw = b"0"
    if raw == b"0" and name.endswith(b"/"):
        return Kind.DIRECTORY
    if raw == b"S":
        raise bad("it is a sparse file, which this version does not read", name)
    try:
        return Kind(raw)
    except ValueError:
        raise bad(f"its kind {printable(raw)!r} is not known", name) from None


def _ustar_name(fields: tuple[bytes, ...]) -> bytes:
    name = _text(fields[0])
    # GNU uses the place of the prefix for other things.
    prefix = _text(fields[15]) if fields[9] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _text(field_bytes: bytes) -> bytes:
    return field_bytes.split(b"\0", 1)[0]


def _number(raw: bytes, what: str) -> int:
    if raw[0] & 0x80:  # base 256, GNU
        value = int.from_bytes(raw, "big") & ((1 << (8 * len(raw) - 1)) - 1)
        return value - (1 << (8 * len(raw) - 1)) if raw[0] & 0x40 else value
    text = raw.strip(b" \0")
    try:
        return int(text, 8) if text else 0
    except ValueError:
        raise bad(f"its {what} is not a number") from None


def _decimal(records: dict[bytes, bytes], key: bytes, default: int) -> int:
    value = records.get(key)
    if value is None or value == b"":
        return default
    if not value.isdigit() or len(value) > 20:  # noqa: PLR2004 - digits of a 64-bit number
        raise bad(f"its {key.decode()} is not a number")
    return int(value)


def _identity(records: dict[bytes, bytes], key: bytes, raw: bytes, name: bytes) -> int:
    value = _decimal(records, key, _number(raw, key.decode()))
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
        seconds = _number(raw, "mtime")
    return min(max(seconds, 0), (1 << 32) - 1)


def _check_sum(block: bytes, fields: tuple[bytes, ...]) -> None:
    claimed = _number(fields[6], "checksum")
    rest = sum(block) - sum(block[148:156]) + 8 * 32
    if claimed == rest:
        return
    signed = sum(byte - 256 if byte > 127 else byte for byte in block[:148] + block[156:])  # noqa: PLR2004 - as old tars summed
    if claimed != signed + 8 * 32:
        raise bad("its tar is damaged: a header has a wrong checksum")
