"""What the disk is asked for: whole files, durable names, SHA-256 of what is there.

All calls block: run them in a thread.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ironworks.assetmanagerd.bytes.formats import HEAD_BYTES
from ironworks.model.errors import DataLoss, ResourceExhausted

CHUNK_BYTES = 1024 * 1024
FILE_MODE = 0o444
_TELL_THE_OPERATOR = "Tell the operator; register or build it again."


@dataclass(frozen=True, slots=True, kw_only=True)
class Hashed:
    """What was found when bytes were read: the head is what formats are known by."""

    sha256: str
    size_bytes: int
    head: bytes


@contextmanager
def disk_errors(what: str) -> Generator[None]:
    """Turn a full disk within the block into an error that says so."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise no_room(what) from error
        raise


def no_room(what: str) -> ResourceExhausted:
    """The disk is full."""
    return ResourceExhausted(
        f"There is no room on the disk for {what}.",
        hint="Free space in the data directory, or delete assets, then repeat.",
    )


def sync_directory(path: Path) -> None:
    """Make names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Hasher:
    """SHA-256 of bytes as they come, their number, and their head."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._head = bytearray()
        self.size_bytes = 0

    def update(self, chunk: bytes | bytearray | memoryview) -> None:
        """Take the next bytes."""
        if len(self._head) < HEAD_BYTES:
            self._head += chunk[: HEAD_BYTES - len(self._head)]
        self._digest.update(chunk)
        self.size_bytes += len(chunk)

    def result(self) -> Hashed:
        """What the bytes were so far."""
        return Hashed(
            sha256=self._digest.hexdigest(), size_bytes=self.size_bytes, head=bytes(self._head)
        )


def hash_file(fd: int, hasher: Hasher | None = None) -> Hashed:
    """Read an open file from its beginning to its end."""
    hasher = hasher or Hasher()
    buffer = memoryview(bytearray(CHUNK_BYTES))
    at = 0
    while count := os.preadv(fd, [buffer], at):
        hasher.update(buffer[:count])
        at += count
    return hasher.result()


def digest(name: str) -> str:
    """SHA-256 of the bytes that are kept under a name."""
    return name.partition(".")[0]


def read_head(path: Path) -> bytes:
    """The first `HEAD_BYTES` of a file, or all of it."""
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


def seal(path: Path) -> None:
    """Make a file read-only, and what is in it durable."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fchmod(fd, FILE_MODE)
        os.fsync(fd)
    finally:
        os.close(fd)


def gone(sha256: str, why: object) -> DataLoss:
    """Bytes that should be there are not."""
    return DataLoss(
        "The bytes of this asset are gone.",
        hint=_TELL_THE_OPERATOR,
        context={"sha256": sha256, "error": str(why)},
    )


def damaged(sha256: str, why: object) -> DataLoss:
    """Bytes that should be there are others."""
    return DataLoss(
        "The bytes of this asset are damaged.",
        hint=_TELL_THE_OPERATOR,
        context={"sha256": sha256, "error": str(why)},
    )


def open_exact(path: Path, sha256: str, size_bytes: int) -> int:
    """A descriptor of a file that should have these bytes, for reading; the caller closes it.

    Raises:
        DataLoss: it is gone, or has another length.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        raise gone(sha256, error) from error
    if os.fstat(fd).st_size != size_bytes:
        os.close(fd)
        raise damaged(sha256, "another length")
    return fd


def file_problem(path: Path, sha256: str, size_bytes: int) -> str:
    """What is wrong with a file that should have these bytes; empty if nothing."""
    try:
        fd = open_exact(path, sha256, size_bytes)
    except DataLoss as error:
        return error.message
    try:
        found = hash_file(fd)
    finally:
        os.close(fd)
    return "" if found.sha256 == sha256 else "The stored bytes have another SHA-256."
