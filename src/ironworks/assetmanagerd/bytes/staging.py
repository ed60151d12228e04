"""The staging area: bytes on their way in, in files that may go away again.

builderd and metald write whole files here and register them; uploads grow here, chunk by chunk.
Always a local directory, whatever keeps the bytes later. All calls block: run them in a thread.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from ironworks.assetmanagerd.bytes.disk import (
    Hashed,
    Hasher,
    disk_errors,
    hash_file,
    seal,
    sync_directory,
)
from ironworks.model.errors import InvalidRequest, NotFound, ResourceExhausted
from ironworks.runtime.clock import SystemEntropy


class Staging:
    """Files below one directory.

    Attributes:
        path: The directory.
        identity: What tells this staging area from those of other assetmanagerd; known once `open`.
    """

    def __init__(self, path: Path, *, min_free_bytes: int) -> None:
        self.path = path
        self.identity = ""
        self._min_free_bytes = min_free_bytes

    def open(self) -> None:
        """Make the directory, and give it its identity."""
        with disk_errors("assets"):
            self.path.mkdir(parents=True, exist_ok=True)
            self.path.chmod(0o700)
            known = self.path.with_name("staging-identity")
            if not known.exists():
                fresh = known.with_suffix(".new")
                fresh.write_text(SystemEntropy().token_bytes(16).hex())
                seal(fresh)
                fresh.replace(known)
                sync_directory(known.parent)
            self.identity = known.read_text()

    def check_room(self, size_bytes: int) -> None:
        """Refuse bytes for which there is no room.

        Raises:
            ResourceExhausted: too little would be left free.
        """
        stats = os.statvfs(self.path)
        free_bytes = stats.f_bavail * stats.f_frsize
        if free_bytes < size_bytes + self._min_free_bytes:
            raise ResourceExhausted(
                f"There is no room for {size_bytes} more bytes of assets.",
                hint="Free space in the data directory, or delete assets, then repeat.",
                context={"free_bytes": free_bytes},
            )

    def append(self, name: str, offset_bytes: int, chunks: Sequence[bytes]) -> None:
        """Write the next bytes of an upload; durable after `sync`."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW
        with disk_errors("the upload"):
            fd = os.open(self.path / name, flags, 0o600)
            try:
                for chunk in chunks:
                    view = memoryview(chunk)
                    while view:
                        count = os.pwrite(fd, view, offset_bytes)
                        view, offset_bytes = view[count:], offset_bytes + count
            finally:
                os.close(fd)

    def sync(self, name: str) -> None:
        """Make what was appended durable; a file that does not exist is."""
        with disk_errors("the upload"), contextlib.suppress(FileNotFoundError):
            fd = os.open(self.path / name, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def size_bytes(self, name: str) -> int:
        """Bytes of a staged file; 0 if there is none."""
        try:
            return os.stat(self.path / name, follow_symlinks=False).st_size  # noqa: PTH116
        except FileNotFoundError:
            return 0

    def names(self) -> dict[str, int]:
        """Name → time of last change, UTC nanoseconds, of all that is staged."""
        with os.scandir(self.path) as entries:
            return {entry.name: entry.stat(follow_symlinks=False).st_mtime_ns for entry in entries}

    def discard(self, name: str) -> None:
        """Remove a staged file, if it is there."""
        (self.path / name).unlink(missing_ok=True)

    def read(self, name: str, hasher: Hasher | None = None) -> Hashed:
        """Read a staged file to its end.

        Raises:
            NotFound: there is none of that name.
            InvalidRequest: it is not a regular file.
        """
        try:
            fd = os.open(self.path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            raise NotFound(f"Nothing is staged as {name!r}.", hint="Write it first.") from None
        except OSError:
            raise InvalidRequest(f"What is staged as {name!r} is not a file.") from None
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise InvalidRequest(f"What is staged as {name!r} is not a file.")
            return hash_file(fd, hasher)
        finally:
            os.close(fd)
