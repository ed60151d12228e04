"""The records of an ext4 as bytes: superblock, descriptors, inodes, extents, directories, xattrs.

No journal, no checksums, no hashed directories, no free room: an image is mounted read-only, and
its bytes are guarded by the asset's SHA-256.
Source: the kernel's `Documentation/filesystems/ext4/`, `fs/ext4/ext4.h`; `lib/ext2fs/ext_attr.c`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ironworks.builderd.flatten.headers import Entry, Kind
from ironworks.builderd.flatten.refusal import bad

BLOCK = 4096
INODE_BYTES = 256
FIRST_INODE = 11
ROOT_INODE = 2
MAX_GROUP_BLOCKS = MAX_GROUP_INODES = 8 * BLOCK
MAX_EXTENT_BLOCKS = 32_768
INLINE_EXTENTS = 4
LEAF_EXTENTS = (BLOCK - 12) // 12
MAX_XATTR_USERS = 1024
MAX_FAST_LINK_BYTES = 59
MAX_LINKS = 65_000
_EXTENTS_FLAG = 0x80000
_COMPAT = 0x8 | 0x200  # extended attributes; no backups of the superblock
_INCOMPAT = 0x2 | 0x40 | 0x200  # types in directories, extents, bitmaps anywhere
_RO_COMPAT = 0x2 | 0x8 | 0x20 | 0x40  # large and huge files, many subdirectories, large inodes
_MODES = {
    Kind.FIFO: 0o010000,
    Kind.CHARACTER: 0o020000,
    Kind.DIRECTORY: 0o040000,
    Kind.BLOCK: 0o060000,
    Kind.FILE: 0o100000,
    Kind.SYMLINK: 0o120000,
}
_TYPES = {
    Kind.FILE: 1,
    Kind.DIRECTORY: 2,
    Kind.CHARACTER: 3,
    Kind.BLOCK: 4,
    Kind.FIFO: 5,
    Kind.SYMLINK: 7,
}
_XATTR_KINDS = ((b"user.", 1), (b"trusted.", 4), (b"security.", 6))
_XATTR_MAGIC = 0xEA020000

Extent = tuple[int, int, int]
"""First block in the file, number of blocks, first block in the file system."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How a file system is divided.

    Attributes:
        blocks: All of them.
        used_blocks: Those from the beginning that are in use; there are no gaps.
        group_blocks: Blocks of each group but the last.
        group_inodes: Inodes of each group.
        used_inodes: Those from the beginning that are in use.
    """

    blocks: int
    used_blocks: int
    group_blocks: int
    group_inodes: int
    used_inodes: int

    @property
    def groups(self) -> int:
        """How many groups there are."""
        return -(-self.blocks // self.group_blocks)

    @property
    def bitmaps_at(self) -> int:
        """Where the bitmaps of blocks begin, followed by those of inodes."""
        return 1 + -(-32 * self.groups // BLOCK)

    @property
    def tables_at(self) -> int:
        """Where the inode tables begin, one after the other."""
        return self.bitmaps_at + 2 * self.groups

    @property
    def table_blocks(self) -> int:
        """Length of a group's inode table."""
        return self.group_inodes * INODE_BYTES // BLOCK

    @property
    def data_at(self) -> int:
        """Where data begin."""
        return self.tables_at + self.groups * self.table_blocks

    def blocks_of(self, group: int) -> int:
        """Blocks of a group."""
        return min(self.group_blocks, self.blocks - group * self.group_blocks)

    def used_blocks_of(self, group: int) -> int:
        """Blocks of a group that are in use."""
        return min(max(self.used_blocks - group * self.group_blocks, 0), self.group_blocks)

    def used_inodes_of(self, group: int) -> int:
        """Inodes of a group that are in use."""
        return min(max(self.used_inodes - group * self.group_inodes, 0), self.group_inodes)


def shape_of(data_blocks: int, used_inodes: int) -> Shape:
    """The smallest file system with room for so much."""
    groups = max(1, -(-used_inodes // MAX_GROUP_INODES))
    while True:
        group_inodes = -(-used_inodes // groups // 16) * 16
        front = Shape(
            blocks=groups,
            used_blocks=0,
            group_blocks=1,
            group_inodes=group_inodes,
            used_inodes=used_inodes,
        )
        used_blocks = front.data_at + data_blocks
        if used_blocks <= groups * MAX_GROUP_BLOCKS:
            break
        groups = -(-used_blocks // MAX_GROUP_BLOCKS)
    # Many files and few bytes: smaller groups, and free blocks so that there are as many as needed.
    group_blocks = MAX_GROUP_BLOCKS
    if (groups - 1) * group_blocks >= used_blocks:
        group_blocks = max(256, -(-used_blocks // groups // 8) * 8)
    return Shape(
        blocks=max(used_blocks, (groups - 1) * group_blocks + 8),
        used_blocks=used_blocks,
        group_blocks=group_blocks,
        group_inodes=group_inodes,
        used_inodes=used_inodes,
    )


def superblock(shape: Shape, identity: bytes) -> bytes:
    """The superblock; `identity` is 32 bytes that become UUID and hash seed."""
    inodes = shape.groups * shape.group_inodes
    block = bytearray(1024)
    struct.pack_into(
        "<11I", block, 0,
        inodes, shape.blocks, 0, shape.blocks - shape.used_blocks, inodes - shape.used_inodes,
        0, 2, 2, shape.group_blocks, shape.group_blocks, shape.group_inodes,
    )  # fmt: skip
    struct.pack_into("<6H", block, 0x34, 0, 0xFFFF, 0xEF53, 1, 1, 0)
    struct.pack_into("<I", block, 0x4C, 1)
    struct.pack_into("<IHH3I", block, 0x54, FIRST_INODE, INODE_BYTES, 0, _COMPAT, _INCOMPAT,
                     _RO_COMPAT)  # fmt: skip
    # A random UUID as RFC 4122 writes it, but always the same for the same image.
    uuid = bytearray(identity[:16])
    uuid[6], uuid[8] = uuid[6] & 0x0F | 0x40, uuid[8] & 0x3F | 0x80
    block[0x68:0x78] = uuid
    block[0xEC:0xFC] = identity[16:32]
    block[0xFC] = 1
    struct.pack_into("<I", block, 0x100, 0x000C)  # mounts with user xattrs and ACLs
    struct.pack_into("<HH", block, 0x15C, 32, 32)
    block[0x174] = 31  # all groups are one flexible group
    return bytes(block)


def descriptors(shape: Shape, directories: Sequence[int]) -> bytes:
    """Descriptors of all groups; `directories` counts those in each."""
    out = bytearray()
    for group in range(shape.groups):
        free_blocks = shape.blocks_of(group) - shape.used_blocks_of(group)
        free_inodes = shape.group_inodes - shape.used_inodes_of(group)
        out += struct.pack(
            "<3I4H12x",
            shape.bitmaps_at + group,
            shape.bitmaps_at + shape.groups + group,
            shape.tables_at + group * shape.table_blocks,
            free_blocks,
            free_inodes,
            directories[group],
            0,
        )
    return bytes(out)


def bitmap(used: int, total: int) -> bytes:
    """A block of bits: the first `used` are set, and those behind `total`."""
    bits = (1 << 8 * BLOCK) - (1 << total) | (1 << used) - 1
    return bits.to_bytes(BLOCK, "little")


def inode(
    entry: Entry, *, links: int, size: int, sectors: int, body: bytes, xattr_block: int
) -> bytes:
    """One inode.

    Args:
        entry: Kind, mode, owner and time.
        links: Names that it has.
        size: Length of its content.
        sectors: 512-byte sectors that its blocks take.
        body: At most 60 bytes: extents, a short link's target, a device's number.
        xattr_block: Where its extended attributes are; 0: none.
    """
    has_extents = entry.kind in (Kind.FILE, Kind.DIRECTORY) or (
        entry.kind is Kind.SYMLINK and size > MAX_FAST_LINK_BYTES
    )
    low, epoch = _time(entry.mtime)
    return struct.pack(
        "<HHIIIIIHHIII60sIIIIHHHHHHHHIIIII8x96x",
        _MODES[entry.kind] | entry.mode, entry.uid & 0xFFFF, size & 0xFFFFFFFF,
        low, low, low, 0,
        entry.gid & 0xFFFF, links if links < MAX_LINKS else 1, sectors & 0xFFFFFFFF,
        _EXTENTS_FLAG if has_extents else 0, 0,
        body, 0, xattr_block, size >> 32, 0,
        sectors >> 32, 0, entry.uid >> 16, entry.gid >> 16, 0, 0,
        32, 0, epoch, epoch, epoch, low, epoch,
    )  # fmt: skip


def _time(seconds: int) -> tuple[int, int]:
    """Low 32 bits, which are signed, and the two bits that extend them."""
    low = seconds & 0xFFFFFFFF
    signed = low - (1 << 32) if low & 0x80000000 else low
    return low, (seconds - signed) >> 32 & 3


def device(major: int, minor: int) -> bytes:
    """The body of a device's inode."""
    if major < 256 and minor < 256:  # noqa: PLR2004 - what the old encoding holds
        return struct.pack("<II", major << 8 | minor, 0)
    return struct.pack("<II", 0, minor & 0xFF | major << 8 | (minor & ~0xFF) << 12)


def extent_node(extents: Sequence[Extent], room: int) -> bytes:
    """A leaf of an extent tree, with room for so many."""
    body = struct.pack("<4HI", 0xF30A, len(extents), room, 0, 0)
    for logical, count, physical in extents:
        body += struct.pack("<IHHI", logical, count, physical >> 32, physical & 0xFFFFFFFF)
    return body


def extent_index(leaves: Sequence[tuple[int, int]]) -> bytes:
    """The root of an extent tree over leaves: (first block in the file, where the leaf is)."""
    body = struct.pack("<4HI", 0xF30A, len(leaves), INLINE_EXTENTS, 1, 0)
    for logical, at in leaves:
        body += struct.pack("<IIHH", logical, at & 0xFFFFFFFF, at >> 32, 0)
    return body


def directory_blocks(names: Iterable[bytes]) -> int:
    """Blocks that a directory takes."""
    blocks, room = 1, BLOCK - 24
    for name in names:
        needed = _name_bytes(name)
        if needed > room:
            blocks, room = blocks + 1, BLOCK
        room -= needed
    return blocks


def directory(own: int, parent: int, names: Iterable[tuple[bytes, int, Kind]]) -> bytes:
    """The content of a directory: names, inodes and kinds."""
    out = bytearray()
    last = 0
    for name, number, kind in (
        (b".", own, Kind.DIRECTORY),
        (b"..", parent, Kind.DIRECTORY),
        *names,
    ):
        needed = _name_bytes(name)
        room = -len(out) % BLOCK or BLOCK
        if out and needed > room != BLOCK:
            _stretch(out, last, room)
        last = len(out)
        out += struct.pack("<IHBB", number, needed, len(name), _TYPES[kind])
        out += name.ljust(needed - 8, b"\0")
    _stretch(out, last, -len(out) % BLOCK)
    return bytes(out)


def _name_bytes(name: bytes) -> int:
    return 8 + -(-len(name) // 4) * 4


def _stretch(out: bytearray, at: int, by: int) -> None:
    """Let the last entry of a block reach to its end."""
    (length,) = struct.unpack_from("<H", out, at + 4)
    struct.pack_into("<H", out, at + 4, length + by)
    out += bytes(by)


def xattr_block(xattrs: Mapping[bytes, bytes], name: bytes) -> bytes:
    """The block with a file's extended attributes, used by one file; see `with_users`.

    Raises:
        InvalidRequest: they do not fit.
    """
    found: list[tuple[int, int, bytes, bytes]] = []
    for key, value in xattrs.items():
        kind, index = next(one for one in _XATTR_KINDS if key.startswith(one[0]))
        short = key[len(kind) :]
        found.append((index, len(short), short, value))
    entries, values = bytearray(), bytearray()
    for index, length, short, value in sorted(found):
        values[:0] = value + bytes(-len(value) % 4)
        entries += struct.pack(
            "<BBHIII", length, index, (BLOCK - len(values)) & 0xFFFF, 0, len(value),
            _xattr_hash(short, value),
        )  # fmt: skip
        entries += short + bytes(-length % 4)
    if 32 + len(entries) + 4 + len(values) > BLOCK:
        raise bad("its extended attributes are more than the 4 KiB that ext4 has for them", name)
    middle = bytes(BLOCK - 32 - len(entries) - len(values))
    return struct.pack("<4I16x", _XATTR_MAGIC, 1, 1, 0) + entries + middle + values


def with_users(block: bytes, users: int) -> bytes:
    """A block of extended attributes that so many files share."""
    return block[:4] + struct.pack("<I", users) + block[8:]


def _xattr_hash(name: bytes, value: bytes) -> int:
    code = 0
    for byte in name:
        code = (code << 5 ^ code >> 27 ^ byte) & 0xFFFFFFFF
    padded = value + bytes(-len(value) % 4)
    for (word,) in struct.iter_unpack("<I", padded):
        code = (code << 16 ^ code >> 16 ^ word) & 0xFFFFFFFF
    return code
