"""Write the finished tree as an ext4: everything is placed first, then written once, in order.

See docs/decisions/0007: neither `mke2fs -d`, which wants the tree as a directory, nor `debugfs`,
whose command language has no way to write some names, can be fed an image.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field

from ironworks.builderd.flatten import ext4_records as records
from ironworks.builderd.flatten.archive import Counts
from ironworks.builderd.flatten.ext4_records import BLOCK, Extent, Shape
from ironworks.builderd.flatten.headers import Entry, Kind
from ironworks.builderd.flatten.progress import Progress
from ironworks.builderd.flatten.refusal import bad
from ironworks.builderd.flatten.sparse import Runs
from ironworks.builderd.flatten.tree import Node, Tree
from ironworks.model.errors import Internal, InvalidRequest

_COPY_BYTES = 1 << 24
_SMALL_BYTES = 128 << 10
_TABLE_FLUSH_BYTES = 1 << 20
_TAIL_CHARS = 2000
_MAX_EXTENTS = records.INLINE_EXTENTS * records.LEAF_EXTENTS


@dataclass(slots=True)
class _Placed:
    """All inodes in the order of their numbers, and what is known of them before writing."""

    nodes: list[Node] = field(default_factory=list[Node])
    links: list[int] = field(default_factory=list[int])
    parents: list[int] = field(default_factory=list[int])
    """Number of the directory in which each was met first."""
    data_blocks: int = 0
    xattr_blocks: list[bytes] = field(default_factory=list[bytes])
    xattr_users: list[int] = field(default_factory=list[int])
    xattr_of: dict[int, int] = field(default_factory=dict[int, int])
    """Position of a node → position of its block of extended attributes."""
    counts: Counts = field(default_factory=Counts)


def write_ext4(
    output: str, tree: Tree, layers: Sequence[int], identity: bytes, progress: Progress
) -> Counts:
    """Write an ext4 of a tree; answers what is in it.

    Args:
        output: File to write; must not exist.
        tree: What to write.
        layers: Tars with the contents.
        identity: 32 bytes that are the image's own.
        progress: Is told what has been written.

    Raises:
        InvalidRequest: something does not fit an ext4.
        Internal: what was written is no ext4.
    """
    placed = _place(tree)
    progress.begin("writing the file system", placed.counts.unpacked_bytes)
    data_blocks = placed.data_blocks + len(placed.xattr_blocks)
    shape = records.shape_of(data_blocks, records.FIRST_INODE - 2 + len(placed.nodes))
    out = os.open(output, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(out, shape.blocks * BLOCK)
        _Writer(out, layers, shape, placed).write(identity, progress)
    finally:
        os.close(out)
    _check(output)
    return placed.counts


def _check(path: str) -> None:
    """Let e2fsck look at it: what it would mend, we have written wrongly."""
    done = subprocess.run(
        ["/usr/sbin/e2fsck", "-f", "-n", path], check=False, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise Internal(
            "The file system that was written is damaged.",
            context={"e2fsck": (done.stdout + done.stderr)[-_TAIL_CHARS:]},
        )


# --- placing --------------------------------------------------------------------------------------


def _place(tree: Tree) -> _Placed:
    placed = _Placed()
    shared: dict[bytes, int] = {}
    for parent, _, path, node in tree.walk():
        if parent is not None:
            placed.counts.file_count += 1
        if node.number:
            placed.links[_position(node.number)] += 1
            if placed.links[_position(node.number)] >= records.MAX_LINKS:
                raise bad("it has more names than a file of an ext4 may have", path)
            continue
        position = len(placed.nodes)
        node.number = _number(position)
        placed.nodes.append(node)
        placed.parents.append(parent.number if parent is not None else records.ROOT_INODE)
        placed.links.append(2 if node.children is not None else 1)
        if node.children is not None and parent is not None:
            placed.links[_position(parent.number)] += 1
        placed.data_blocks += _blocks_of(node, path)
        if node.entry.kind is Kind.FILE:
            placed.counts.unpacked_bytes += node.entry.size
        if node.entry.xattrs:
            _place_xattrs(placed, position, records.xattr_block(node.entry.xattrs, path), shared)
    placed.counts.inode_count = len(placed.nodes)
    return placed


def _place_xattrs(placed: _Placed, position: int, block: bytes, shared: dict[bytes, int]) -> None:
    at = shared.get(block)
    if at is None or placed.xattr_users[at] == records.MAX_XATTR_USERS:
        at = shared[block] = len(placed.xattr_blocks)
        placed.xattr_blocks.append(block)
        placed.xattr_users.append(0)
    placed.xattr_users[at] += 1
    placed.xattr_of[position] = at


def _number(position: int) -> int:
    return position + records.FIRST_INODE - 1 if position else records.ROOT_INODE


def _position(number: int) -> int:
    return 0 if number == records.ROOT_INODE else number - records.FIRST_INODE + 1


def _blocks_of(node: Node, path: bytes) -> int:
    if node.children is not None:
        return records.directory_blocks(sorted(node.children))
    if node.entry.kind is Kind.SYMLINK:
        return 1 if len(node.entry.target) > records.MAX_FAST_LINK_BYTES else 0
    if node.entry.kind is not Kind.FILE:
        return 0
    extents = _extents(node.entry, 0)
    if len(extents) > _MAX_EXTENTS:
        raise InvalidRequest(
            f"{path.decode('utf-8', 'replace')[:200]!r} is too large for the ext4 that is written.",
            hint="Ask for squashfs.",
        )
    return sum(count for _, count, _ in extents) + _leaves(extents)


def _leaves(extents: Sequence[Extent]) -> int:
    """Blocks that the tree of extents takes outside of the inode."""
    if len(extents) <= records.INLINE_EXTENTS:
        return 0
    return -(-len(extents) // records.LEAF_EXTENTS)


def _runs(entry: Entry) -> Runs:
    return ((0, entry.size),) if entry.runs is None else entry.runs


def _extents(entry: Entry, at: int) -> list[Extent]:
    """Extents of a file whose blocks stand one after the other from `at`."""
    extents = _extents_of(_runs(entry), at)
    if len(extents) <= _MAX_EXTENTS:
        return extents
    return _extents_of(((0, entry.size),), at)  # too many holes: written out as zeros


def _extents_of(runs: Runs, at: int) -> list[Extent]:
    ranges: list[tuple[int, int]] = []
    for offset, length in runs:
        first, end = offset // BLOCK, -(-(offset + length) // BLOCK)
        if ranges and first <= ranges[-1][1]:
            ranges[-1] = ranges[-1][0], end
        elif end > first:
            ranges.append((first, end))
    extents: list[Extent] = []
    for first, end in ranges:
        for logical in range(first, end, records.MAX_EXTENT_BLOCKS):
            count = min(records.MAX_EXTENT_BLOCKS, end - logical)
            extents.append((logical, count, at))
            at += count
    return extents


# --- writing --------------------------------------------------------------------------------------


class _Writer:
    """Writes blocks in order; `_next` is the first that is still free."""

    def __init__(self, out: int, layers: Sequence[int], shape: Shape, placed: _Placed) -> None:
        self._out = out
        self._layers = layers
        self._shape = shape
        self._placed = placed
        self._next = shape.data_at
        self._directories = [0] * shape.groups

    def write(self, identity: bytes, progress: Progress) -> None:
        placed, shape = self._placed, self._shape
        xattrs_at = self._next
        for block, users in zip(placed.xattr_blocks, placed.xattr_users, strict=True):
            self._append(records.with_users(block, users))
        table = bytearray(records.INODE_BYTES * (records.ROOT_INODE - 1))
        table_at = shape.tables_at * BLOCK
        for position, node in enumerate(placed.nodes):
            xattr = placed.xattr_of.get(position)
            table += self._inode(position, node, 0 if xattr is None else xattrs_at + xattr)
            progress.add(node.entry.size)
            if not position:
                reserved = records.FIRST_INODE - records.ROOT_INODE - 1
                table += bytes(records.INODE_BYTES * reserved)
            if len(table) >= _TABLE_FLUSH_BYTES:
                self._put(bytes(table), table_at)
                table_at += len(table)
                table.clear()
        self._put(bytes(table), table_at)
        if self._next != shape.used_blocks:
            raise Internal("An ext4 was placed and written differently.")
        self._front(identity)

    def _front(self, identity: bytes) -> None:
        shape = self._shape
        self._put(records.superblock(shape, identity), 1024)
        self._put(records.descriptors(shape, self._directories), BLOCK)
        for group in range(shape.groups):
            bits = records.bitmap(shape.used_blocks_of(group), shape.blocks_of(group))
            self._put(bits, (shape.bitmaps_at + group) * BLOCK)
            bits = records.bitmap(shape.used_inodes_of(group), shape.group_inodes)
            self._put(bits, (shape.bitmaps_at + shape.groups + group) * BLOCK)

    def _inode(self, position: int, node: Node, xattr_block: int) -> bytes:
        entry = node.entry
        before = self._next
        size, body = entry.size, b""
        if node.children is not None:
            self._directories[(node.number - 1) // self._shape.group_inodes] += 1
            names = ((name, *_named(node, name)) for name in sorted(node.children))
            data = records.directory(node.number, self._placed.parents[position], names)
            size, body = len(data), self._contiguous(data)
        elif entry.kind is Kind.FILE:
            body = self._file(node)
        elif entry.kind is Kind.SYMLINK:
            size = len(entry.target)
            fast = size <= records.MAX_FAST_LINK_BYTES
            body = entry.target if fast else self._contiguous(entry.target)
        elif entry.kind in (Kind.BLOCK, Kind.CHARACTER):
            size, body = 0, records.device(*entry.device)
        return records.inode(
            entry,
            links=self._placed.links[position],
            size=size,
            sectors=(self._next - before + bool(xattr_block)) * (BLOCK // 512),
            body=body,
            xattr_block=xattr_block,
        )

    def _contiguous(self, data: bytes) -> bytes:
        """Write data in blocks of their own; answers the inode's body."""
        extents = _extents_of(((0, len(data)),), self._next)
        self._append(data)
        return records.extent_node(extents, records.INLINE_EXTENTS)

    def _file(self, node: Node) -> bytes:
        extents = _extents(node.entry, self._next)
        self._next += sum(count for _, count, _ in extents)
        self._copy(node, extents)
        if len(extents) <= records.INLINE_EXTENTS:
            return records.extent_node(extents, records.INLINE_EXTENTS)
        leaves: list[tuple[int, int]] = []
        for first in range(0, len(extents), records.LEAF_EXTENTS):
            part = extents[first : first + records.LEAF_EXTENTS]
            leaves.append((part[0][0], self._next))
            self._append(records.extent_node(part, records.LEAF_EXTENTS))
        return records.extent_index(leaves)

    def _copy(self, node: Node, extents: Sequence[Extent]) -> None:
        layer, position = self._layers[node.layer], node.entry.offset
        within = 0
        for offset, length in _runs(node.entry):
            at, end = offset, offset + length
            while at < end:
                while extents[within][0] + extents[within][1] <= at // BLOCK:
                    within += 1
                logical, count, physical = extents[within]
                some = min(end, (logical + count) * BLOCK) - at
                self._move(layer, position, at + (physical - logical) * BLOCK, some)
                at, position = at + some, position + some

    def _move(self, layer: int, source: int, target: int, count: int) -> None:
        if count <= _SMALL_BYTES:
            data = os.pread(layer, count, source)
            if len(data) != count:
                raise EOFError
            self._put(data, target)
            return
        while count:
            # Within the kernel: both files lie in the scratch directory.
            done = os.copy_file_range(layer, self._out, min(count, _COPY_BYTES), source, target)
            if done == 0:
                raise EOFError
            source, target, count = source + done, target + done, count - done

    def _append(self, data: bytes) -> None:
        self._put(data, self._next * BLOCK)
        self._next += -(-len(data) // BLOCK)

    def _put(self, data: bytes, at: int) -> None:
        view = memoryview(data)
        while view:
            done = os.pwrite(self._out, view, at)
            view, at = view[done:], at + done


def _named(directory: Node, name: bytes) -> tuple[int, Kind]:
    node = (directory.children or {})[name][0]
    return node.number, node.entry.kind
