"""Bytes in a local directory, named by what they are.

    objects/sha256/ab/abcd…   read-only, fsynced, complete
    staging/                  what is on its way in; shared with builderd

All calls block: run them in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from ironworks.assetmanagerd.bytes.formats import HEAD_BYTES
from ironworks.model.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    ResourceExhausted,
)

_CHUNK_BYTES = 1024 * 1024
_MODE = 0o444


@contextmanager
def disk_errors(what: str) -> Generator[None]:
    """Turn a full disk within the block into an error that says so."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceExhausted(
                f"There is no room on the disk for {what}.",
                hint="Free space in the data directory, or delete assets, then repeat.",
            ) from error
        raise


def sync_directory(path: Path) -> None:
    """Make names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def hash_file(fd: int) -> tuple[str, int, bytes]:
    """SHA-256, length and head of an open file, read from its beginning."""
    digest = hashlib.sha256()
    size, head = 0, b""
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    while count := os.preadv(fd, [buffer], size):
        if len(head) < HEAD_BYTES:
            head += bytes(buffer[: min(count, HEAD_BYTES - len(head))])
        digest.update(buffer[:count])
        size += count
    return digest.hexdigest(), size, head


class LocalBytes:
    """Content-addressed files below one directory."""

    def __init__(self, root: Path, *, min_free_bytes: int) -> None:
        self.staging = root / "staging"
        self._objects = root / "objects" / "sha256"
        self._min_free_bytes = min_free_bytes

    def open(self) -> None:
        """Make the directories."""
        with disk_errors("assets"):
            for directory in (self.staging, self._objects):
                directory.mkdir(parents=True, exist_ok=True)
            self.staging.chmod(0o700)

    def path(self, sha256: str) -> Path:
        """Where bytes are, or would be."""
        return self._objects / sha256[:2] / sha256

    def check_room(self, size_bytes: int) -> None:
        """Refuse bytes for which there is no room.

        Raises:
            ResourceExhausted: too little would be left free.
        """
        stats = os.statvfs(self.staging)
        free_bytes = stats.f_bavail * stats.f_frsize
        if free_bytes < size_bytes + self._min_free_bytes:
            raise ResourceExhausted(
                f"There is no room for {size_bytes} more bytes of assets.",
                hint="Free space in the data directory, or delete assets, then repeat.",
                context={"free_bytes": free_bytes},
            )

    # --- staging ----------------------------------------------------------------------------------

    def append(self, name: str, offset_bytes: int, chunk: bytes) -> None:
        """Write the next bytes of an upload; durable after `sync`."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW
        with disk_errors("the upload"):
            fd = os.open(self.staging / name, flags, 0o600)
            try:
                view = memoryview(chunk)
                while view:
                    count = os.pwrite(fd, view, offset_bytes)
                    view, offset_bytes = view[count:], offset_bytes + count
            finally:
                os.close(fd)

    def sync(self, name: str) -> None:
        """Make what was appended durable; a file that does not exist is."""
        with disk_errors("the upload"), contextlib.suppress(FileNotFoundError):
            fd = os.open(self.staging / name, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def staged_size(self, name: str) -> int:
        """Bytes of a staged file; 0 if there is none."""
        try:
            return os.stat(self.staging / name, follow_symlinks=False).st_size  # noqa: PTH116
        except FileNotFoundError:
            return 0

    def staged(self) -> dict[str, int]:
        """Name → time of last change, UTC nanoseconds, of all that is staged."""
        with os.scandir(self.staging) as entries:
            return {entry.name: entry.stat(follow_symlinks=False).st_mtime_ns for entry in entries}

    def discard(self, name: str) -> None:
        """Remove a staged file, if it is there."""
        (self.staging / name).unlink(missing_ok=True)

    def read_staged(self, name: str) -> tuple[str, int, bytes]:
        """SHA-256, length and head of a staged file.

        Raises:
            NotFound: there is none of that name.
            InvalidRequest: it is not a regular file.
        """
        try:
            fd = os.open(self.staging / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            raise NotFound(f"Nothing is staged as {name!r}.", hint="Write it first.") from None
        except OSError:
            raise InvalidRequest(f"What is staged as {name!r} is not a file.") from None
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise InvalidRequest(f"What is staged as {name!r} is not a file.")
            return hash_file(fd)
        finally:
            os.close(fd)

    # --- objects ----------------------------------------------------------------------------------

    def adopt(self, name: str, sha256: str) -> None:
        """Make a staged file, read to be `sha256`, the stored bytes; durable when this returns."""
        target = self.path(sha256)
        with disk_errors("the asset"):
            if not target.parent.exists():
                target.parent.mkdir(exist_ok=True)
                sync_directory(self._objects)
            fd = os.open(self.staging / name, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                os.fchmod(fd, _MODE)
                os.fsync(fd)
            finally:
                os.close(fd)
            # An object that is there already is replaced: these bytes have just been read, it has
            # not, and VMs that have it linked keep it.
            (self.staging / name).replace(target)
            sync_directory(target.parent)

    def open_object(self, sha256: str, size_bytes: int) -> int:
        """A descriptor of stored bytes, for reading; the caller closes it.

        Raises:
            DataLoss: they are gone, or have another length.
        """
        try:
            fd = os.open(self.path(sha256), os.O_RDONLY | os.O_NOFOLLOW)
        except OSError as error:
            raise DataLoss(
                "The bytes of this asset are gone.",
                hint="Tell the operator; register or build it again.",
                context={"sha256": sha256, "error": str(error)},
            ) from error
        if os.fstat(fd).st_size != size_bytes:
            os.close(fd)
            raise DataLoss(
                "The bytes of this asset are damaged.",
                hint="Tell the operator; register or build it again.",
                context={"sha256": sha256},
            )
        return fd

    def problem(self, sha256: str, size_bytes: int) -> str:
        """What is wrong with stored bytes, having read all of them; empty if nothing."""
        try:
            fd = self.open_object(sha256, size_bytes)
        except DataLoss as error:
            return error.message
        try:
            found, _, _ = hash_file(fd)
        finally:
            os.close(fd)
        return "" if found == sha256 else "The stored bytes have another SHA-256."

    def has(self, sha256: str) -> bool:
        """Whether there are such bytes."""
        return self.path(sha256).exists()

    def remove(self, sha256: str) -> None:
        """Remove stored bytes; durable when this returns."""
        target = self.path(sha256)
        target.unlink(missing_ok=True)
        if target.parent.exists():
            sync_directory(target.parent)

    def objects(self) -> Iterator[str]:
        """SHA-256 of all that is stored."""
        for directory in sorted(self._objects.iterdir()):
            for path in sorted(directory.iterdir()):
                yield path.name

    def check_link_source(self, sha256: str) -> None:
        """Refuse to hand out bytes that somebody could write.

        Raises:
            FailedPrecondition: the file's mode has been changed.
        """
        mode = self.path(sha256).stat().st_mode
        if stat.S_IMODE(mode) & 0o222:
            raise FailedPrecondition(
                "The stored file of this asset is writable.", context={"sha256": sha256}
            )
