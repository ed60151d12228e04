"""Bytes in a local directory, named by what they are.

objects/sha256/ab/abcd….x   read-only, fsynced, complete
replaced/abcd….x            what newer files of the same bytes took the place of; to be removed
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from ironworks.assetmanagerd.bytes.disk import (
    digest,
    disk_errors,
    file_problem,
    open_exact,
    seal,
    sync_directory,
)
from ironworks.model.errors import FailedPrecondition


def check_read_only(path: Path, name: str) -> None:
    """Refuse to hand out bytes that somebody could write.

    Raises:
        FailedPrecondition: the file's mode has been changed.
    """
    if stat.S_IMODE(path.stat().st_mode) & 0o222:
        raise FailedPrecondition(
            "The stored file of this asset is writable.", context={"object": name}
        )


class LocalBackend:
    """Content-addressed files below one directory."""

    def __init__(self, root: Path) -> None:
        self._objects = root / "objects" / "sha256"
        self._replaced = root / "replaced"

    def path(self, name: str) -> Path:
        """Where bytes are, or would be."""
        return self._objects / name[:2] / name

    async def open(self) -> None:
        """Make the directories."""
        with disk_errors("assets"):
            for directory in (self._objects, self._replaced):
                await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
        await self.leftovers()

    async def keep(self, path: Path, name: str, size_bytes: int) -> None:
        """See `Backend.keep`."""
        del size_bytes
        await asyncio.to_thread(self._keep, path, name)

    def _keep(self, path: Path, name: str) -> None:
        target = self.path(name)
        with disk_errors("the asset"):
            if not target.parent.exists():
                target.parent.mkdir(exist_ok=True)
                sync_directory(self._objects)
            seal(path)
            # To free the blocks of a large file takes time that a tenant could measure, and learn
            # that another has the same bytes: what is replaced is freed later.
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                os.link(target, self._replaced / name, follow_symlinks=False)
            path.replace(target)
            sync_directory(target.parent)

    async def check(self, name: str, size_bytes: int) -> None:
        """See `Backend.check`."""
        os.close(await asyncio.to_thread(open_exact, self.path(name), name, size_bytes))

    async def problem(self, name: str, size_bytes: int) -> str:
        """See `Backend.problem`."""
        return await asyncio.to_thread(file_problem, self.path(name), digest(name), size_bytes)

    @asynccontextmanager
    async def local(self, name: str, size_bytes: int) -> AsyncGenerator[Path]:
        """See `Backend.local`."""
        await self.check(name, size_bytes)
        path = self.path(name)
        check_read_only(path, name)
        yield path

    async def remove(self, name: str) -> None:
        """See `Backend.remove`."""
        await asyncio.to_thread(self._remove, name)

    def _remove(self, name: str) -> None:
        target = self.path(name)
        target.unlink(missing_ok=True)
        if target.parent.exists():
            sync_directory(target.parent)

    async def objects(self) -> AsyncIterator[str]:
        """See `Backend.objects`."""
        for directory in sorted(await asyncio.to_thread(os.listdir, self._objects)):
            for name in sorted(await asyncio.to_thread(os.listdir, self._objects / directory)):
                yield name

    async def leftovers(self) -> int:
        """See `Backend.leftovers`."""
        return await asyncio.to_thread(self._leftovers)

    def _leftovers(self) -> int:
        old = list(self._replaced.iterdir())
        for path in old:
            path.unlink(missing_ok=True)
        return len(old)
