"""Write the finished tree as one tar stream: ustar headers, PAX where they do not suffice.

The stream is the same for the same tree, whatever the layers it came from looked like.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ironworks.builderd.flatten.headers import BLOCK, Entry, Kind
from ironworks.builderd.flatten.tree import Item, Tree

_MAX_NAME_BYTES = 100
_MAX_OCTAL_ID = 0o7777777
_MAX_OCTAL_SIZE = 0o77777777777
_FLUSH_BYTES = 1 << 20
_SMALL_BYTES = 128 << 10
_SEND_BYTES = 1 << 24


@dataclass(slots=True)
class Counts:
    """What a tree has: bytes of its files, names but the root's, inodes with the root's."""

    unpacked_bytes: int = 0
    file_count: int = 0
    inode_count: int = 1

    def add(self, item: Item) -> None:
        """Count one name."""
        self.file_count += 1
        if not item.link_to:
            self.inode_count += 1
            if item.entry.kind is Kind.FILE:
                self.unpacked_bytes += item.entry.size


def count(tree: Tree) -> Counts:
    """What a tree has that is not written."""
    counts = Counts()
    for item in tree.items():
        counts.add(item)
    return counts


class ArchiveWriter:
    """Writes items to a pipe; data go from the layers' tars to the pipe within the kernel."""

    def __init__(self, pipe: int, layers: Sequence[int]) -> None:
        self._pipe = pipe
        self._layers = layers
        self._buffer = bytearray()
        self._counts = Counts()

    def write(self, items: Iterable[Item]) -> Counts:
        """Write all items and the end of the archive; answers what was written.

        Raises:
            BrokenPipeError: the reader has gone.
        """
        for item in items:
            self._item(item)
        self._buffer += bytes(2 * BLOCK)
        self._flush()
        return self._counts

    def _item(self, item: Item) -> None:
        self._counts.add(item)
        self._buffer += headers_of(item)
        if not item.link_to and item.entry.kind is Kind.FILE:
            self._data(self._layers[item.layer], item.entry)
        if len(self._buffer) >= _FLUSH_BYTES:
            self._flush()

    def _data(self, layer: int, entry: Entry) -> None:
        position, at = entry.offset, 0
        runs = ((0, entry.size),) if entry.runs is None else entry.runs
        for offset, length in runs:
            self._zeros(offset - at)
            self._copy(layer, position, length)
            position += length
            at = offset + length
        self._zeros(entry.size - at)
        self._buffer += bytes(-entry.size % BLOCK)

    def _copy(self, layer: int, position: int, length: int) -> None:
        if length <= _SMALL_BYTES:
            data = os.pread(layer, length, position)
            if len(data) != length:
                raise EOFError
            self._buffer += data
            return
        self._flush()
        end = position + length
        while position < end:
            sent = os.sendfile(self._pipe, layer, position, min(end - position, _SEND_BYTES))
            if sent == 0:
                raise EOFError
            position += sent

    def _zeros(self, count: int) -> None:
        while count:
            # sqfstar makes holes of blocks of zeros.
            some = min(count, _FLUSH_BYTES)
            self._buffer += bytes(some)
            count -= some
            if len(self._buffer) >= _FLUSH_BYTES:
                self._flush()

    def _flush(self) -> None:
        view = memoryview(self._buffer)
        position = 0
        while position < len(view):
            position += os.write(self._pipe, view[position:])
        view.release()
        self._buffer.clear()


def headers_of(item: Item) -> bytes:
    """The header blocks of one item."""
    entry = item.entry
    kind = Kind.HARD_LINK if item.link_to else entry.kind
    size = entry.size if kind is Kind.FILE else 0
    target = item.link_to or (entry.target if kind is Kind.SYMLINK else b"")
    records: list[tuple[bytes, bytes]] = []
    if len(item.path) > _MAX_NAME_BYTES:
        records.append((b"path", item.path))
    if len(target) > _MAX_NAME_BYTES:
        records.append((b"linkpath", target))
    for key, value, maximum in (
        (b"size", size, _MAX_OCTAL_SIZE),
        (b"uid", entry.uid, _MAX_OCTAL_ID),
        (b"gid", entry.gid, _MAX_OCTAL_ID),
    ):
        if value > maximum:
            records.append((key, str(value).encode()))
    if not item.link_to:
        records.extend(
            (b"SCHILY.xattr." + name, value) for name, value in sorted(entry.xattrs.items())
        )
    out = b""
    if records:
        body = b"".join(_record(key, value) for key, value in records)
        out = _block(b"pax", b"x", len(body)) + body + bytes(-len(body) % BLOCK)
    return out + _block(
        item.path[:_MAX_NAME_BYTES],
        kind.value,
        size if size <= _MAX_OCTAL_SIZE else 0,
        mode=entry.mode,
        uid=entry.uid if entry.uid <= _MAX_OCTAL_ID else 0,
        gid=entry.gid if entry.gid <= _MAX_OCTAL_ID else 0,
        mtime=entry.mtime,
        target=target[:_MAX_NAME_BYTES],
        device=entry.device,
    )


def _record(key: bytes, value: bytes) -> bytes:
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length = len(str(length)) + len(rest)
    return str(length).encode() + rest


def _block(  # noqa: PLR0913 - the fields of a header
    name: bytes,
    kind: bytes,
    size: int,
    *,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: int = 0,
    target: bytes = b"",
    device: tuple[int, int] = (0, 0),
) -> bytes:
    block = b"".join(
        (
            name.ljust(100, b"\0"),
            b"%07o\0%07o\0%07o\0" % (mode, uid, gid),
            b"%011o\0%011o\0" % (size, mtime),
            b" " * 8,
            kind,
            target.ljust(100, b"\0"),
            b"ustar\x0000",
            bytes(64),
            b"%07o\0%07o\0" % device,
            bytes(167),
        )
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
