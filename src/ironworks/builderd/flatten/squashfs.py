"""Feed a tar stream to sqfstar and finish what it leaves open.

lz4, since it is by far the fastest both to write and to read, and Debian's kernels mount it. The
result depends on the stream alone: times are fixed, the number of processors does not matter.
sqfstar 4.5.1 (Debian 12) ignores `-root-uid`, `-root-gid` and `-root-time` and gives the root the
time of the day, so the root's inode is corrected afterwards; for this the inode table is left
uncompressed (`-noI`), which costs some 40 bytes a file. The user who runs it enters the table of
owners: in the sandbox that is always 65534, whoever builderd is. It does not look for duplicates:
4.5.1 then reads back what it is still writing, and fails now and then where many files have the
same size ("lz4 uncompress failed").
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence

from ironworks.builderd.flatten.archive import ArchiveWriter, Counts
from ironworks.builderd.flatten.blobs import no_room
from ironworks.builderd.flatten.headers import Entry
from ironworks.builderd.flatten.plan import Plan
from ironworks.builderd.flatten.progress import Progress
from ironworks.builderd.flatten.tree import Item, Tree
from ironworks.builderd.flatten.writeback import written_back
from ironworks.model.errors import Internal, InvalidRequest

_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC0"}
"""Nothing of ours: sqfstar would take times from it."""
_PIPE_BYTES = 1 << 20
_QUEUE_BYTES = "64M"
"""Of blocks that wait; more only has the kernel clear more memory."""
_UNCOMPRESSED = 0x8000
_METADATA_BYTES = 8192
_TAIL_BYTES = 2000
_MAX_OWNERS = 1 << 16
_WRITER = 65534


def write_squashfs(
    plan: Plan,
    tree: Tree,
    layers: Sequence[int],
    progress: Progress,
    fed: Callable[[], None],
) -> Counts:
    """Write a squashfs of a tree; answers what is in it.

    Args:
        plan: File to write, which must not exist, and how many threads do it.
        tree: What to write; its items can be had once.
        layers: Tars with the contents.
        progress: Is told what has been fed.
        fed: Is called once the tars are not needed any more, while the writer has still to do.

    Raises:
        InvalidRequest: something does not fit a squashfs.
        ResourceExhausted: the disk is full.
        Internal: the writer failed, or wrote something else than it was fed.
    """
    root = tree.root.entry
    progress.begin("writing the file system", _looked_over(tree))
    counts: Counts | None = None
    argv = [
        "sqfstar", "-comp", "lz4", "-noI", "-mkfs-time", "0", "-root-mode", f"{root.mode:o}",
        "-exit-on-error", "-no-progress", "-quiet", "-no-duplicates",
        "-processors", str(plan.processors), "-mem", _QUEUE_BYTES, plan.output,
    ]  # fmt: skip
    with subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=_ENVIRONMENT,
    ) as writer:
        if writer.stdin is None or writer.stderr is None:
            raise Internal("A pipe to sqfstar could not be made.")
        pipe = writer.stdin.fileno()
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        try:
            with written_back(plan.output):
                counts = ArchiveWriter(pipe, layers).write(_told(tree, progress))
                writer.stdin.close()
                fed()
                words = writer.stderr.read()  # until it ends
        except BrokenPipeError:
            counts, words = None, writer.stderr.read()  # its message says why
        except BaseException:
            writer.kill()
            raise
        said = words[-_TAIL_BYTES:].decode(errors="replace").strip()
        status = writer.wait()
    if "No space left" in said or "File too large" in said:
        raise no_room()
    if status != 0 or counts is None:
        raise Internal("The file system could not be written.", context={"sqfstar": said})
    _finish(plan.output, root, counts.inode_count)
    return counts


def _looked_over(tree: Tree) -> int:
    """Bytes of all files."""
    size_bytes, owners = 0, {_WRITER}
    for _, _, _, node in tree.walk():
        size_bytes += node.entry.size
        owners.update((node.entry.uid, node.entry.gid))
    if len(owners) > _MAX_OWNERS:
        raise InvalidRequest(
            f"The image has files of more than {_MAX_OWNERS} users and groups.",
            hint="Ask for ext4.",
        )
    return size_bytes


def _told(tree: Tree, progress: Progress) -> Iterator[Item]:
    for item in tree.items():
        yield item
        progress.add(item.entry.size)


def _finish(path: str, root: Entry, inodes: int) -> None:
    with open(path, "r+b") as image:  # noqa: PTH123 - used in place
        head = image.read(96)
        found_inodes = struct.unpack_from("<I", head, 4)[0]
        if head[:4] != b"hsqs" or found_inodes != inodes:
            raise Internal(
                "The file system that was written is not what was fed to its writer.",
                context={"fed_inodes": inodes, "found_inodes": found_inodes},
            )
        (reference,) = struct.unpack_from("<Q", head, 32)
        (inode_table,) = struct.unpack_from("<Q", head, 64)
        block, offset = reference >> 16, reference & 0xFFFF
        _fix_root(image.fileno(), inode_table + block, offset, root, _ids(image.fileno(), head))
        image.flush()


def _ids(fd: int, head: bytes) -> list[int]:
    """The table of owners; `-noI` leaves it uncompressed too."""
    (count,) = struct.unpack_from("<H", head, 26)
    (table,) = struct.unpack_from("<Q", head, 48)
    ids: list[int] = []
    for index in range((4 * count + _METADATA_BYTES - 1) // _METADATA_BYTES):
        (at,) = struct.unpack("<Q", os.pread(fd, 8, table + 8 * index))
        (header,) = struct.unpack("<H", os.pread(fd, 2, at))
        if not header & _UNCOMPRESSED:
            raise Internal("The file system's owner table is compressed.")
        body = os.pread(fd, header & ~_UNCOMPRESSED, at + 2)
        ids.extend(struct.unpack(f"<{len(body) // 4}I", body))
    return ids


def _fix_root(fd: int, block: int, offset: int, root: Entry, ids: list[int]) -> None:
    (header,) = struct.unpack("<H", os.pread(fd, 2, block))
    at = block + 2 + offset
    kind, mode, _, _ = struct.unpack("<4H", os.pread(fd, 8, at))
    if not header & _UNCOMPRESSED or offset + 12 > _METADATA_BYTES or kind not in (1, 8):
        raise Internal("The file system's root is not where it should be.")
    for owner in (root.uid, root.gid):
        if owner not in ids:
            raise InvalidRequest(
                f"The root directory of the image belongs to {owner}, which owns nothing else.",
                hint="Give the root directory to root.",
            )
    uid, gid = ids.index(root.uid), ids.index(root.gid)
    os.pwrite(fd, struct.pack("<4HI", kind, mode, uid, gid, root.mtime), at)
