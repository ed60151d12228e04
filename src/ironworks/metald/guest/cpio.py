"""A writer of newc archives (cpio), the format of an initramfs; the same input, the same bytes.

Source: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

_MAGIC = "070701"
_TRAILER = "TRAILER!!!"
_ALIGN_BYTES = 4
_BLOCK_BYTES = 512
MAX_NAME_BYTES = 4095


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One member: a directory, a regular file or a character device."""

    name: str
    """Relative, without a leading slash."""
    mode: int
    """Type and permissions, as in `st_mode`."""
    data: bytes = b""
    device: tuple[int, int] = (0, 0)
    """Major and minor of a character device."""

    @classmethod
    def directory(cls, name: str, permissions: int = 0o755) -> Self:
        """A directory."""
        return cls(name=name, mode=stat.S_IFDIR | permissions)

    @classmethod
    def file(cls, name: str, data: bytes, permissions: int = 0o644) -> Self:
        """A regular file."""
        return cls(name=name, mode=stat.S_IFREG | permissions, data=data)

    @classmethod
    def character_device(cls, name: str, major: int, minor: int, permissions: int) -> Self:
        """A character device; none is made on the host."""
        return cls(name=name, mode=stat.S_IFCHR | permissions, device=(major, minor))


def _pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGN_BYTES)


def _member(entry: Entry, inode: int) -> bytes:
    name = entry.name.encode() + b"\0"
    if not entry.name or entry.name.startswith("/") or len(name) > MAX_NAME_BYTES:
        raise ValueError(f"not a name for an archive: {entry.name!r}")
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    # inode, mode, uid, gid, links, mtime, size, device of the file system (major, minor), device of
    # the node itself (major, minor), size of the name, checksum (unused by newc)
    fields = (
        inode,
        entry.mode,
        0,
        0,
        links,
        0,
        len(entry.data),
        0,
        0,
        *entry.device,
        len(name),
        0,
    )
    header = _MAGIC + "".join(f"{field:08X}" for field in fields)
    return _pad(header.encode() + name) + _pad(entry.data)


def write_archive(entries: Iterable[Entry]) -> bytes:
    """Write an archive with these members in this order.

    Directories must come before what is in them. Owner is root, times are zero, inodes count up:
    nothing of the machine that writes gets in.
    """
    parts = [_member(entry, inode) for inode, entry in enumerate(entries, start=1)]
    parts.append(_member(Entry(name=_TRAILER, mode=0), 0))
    archive = b"".join(parts)
    return archive + bytes(-len(archive) % _BLOCK_BYTES)
