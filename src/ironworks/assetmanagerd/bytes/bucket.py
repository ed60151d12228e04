"""Bytes in a bucket, named by what they are, with copies in a cache on this host.

    sha256/abcd…   complete; read back and compared before anybody is told that it is there

A store may be down, slow, or lie. What it says counts for nothing: bytes are hashed here when they
are written, when they are read back, and when they come into the cache.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from ironworks.assetmanagerd.bytes.cache import HostCache
from ironworks.assetmanagerd.bytes.disk import (
    Hasher,
    damaged,
    disk_errors,
    gone,
)
from ironworks.model.errors import DataLoss, NotFound
from ironworks.storage.objects import ObjectStore

PREFIX = "sha256"


class BucketBackend:
    """Content-addressed objects of one bucket."""

    def __init__(self, objects: ObjectStore, cache: HostCache) -> None:
        self._objects = objects
        self._cache = cache

    async def open(self) -> None:
        """See `Backend.open`; the bucket need not answer yet."""
        await self._cache.open()

    async def keep(self, path: Path, sha256: str, size_bytes: int) -> None:
        """See `Backend.keep`."""
        written = await self._objects.put(_key(sha256), path, size_bytes)
        hasher = Hasher()
        try:
            there = await self._objects.read(_key(sha256), size_bytes, hasher.update)
        except NotFound:
            raise _lies(sha256, "nothing is there") from None
        found = hasher.result()
        if (found.sha256, found.size_bytes) != (sha256, size_bytes):
            raise _lies(sha256, f"{found.size_bytes} bytes, {found.sha256}")
        if there.etag != written.etag:
            raise _lies(sha256, f"written as {written.etag}, read as {there.etag}")
        await self._cache.take(path, sha256, size_bytes)

    async def check(self, sha256: str, size_bytes: int) -> None:
        """See `Backend.check`."""
        try:
            there = await self._objects.head(_key(sha256))
        except NotFound as error:
            raise gone(sha256, error) from None
        if there.size_bytes != size_bytes:
            raise damaged(sha256, f"{there.size_bytes} bytes, not {size_bytes}")

    async def problem(self, sha256: str, size_bytes: int) -> str:
        """See `Backend.problem`; a damaged copy in the cache is dropped, and fetched again."""
        await self._cache.drop_if_damaged(sha256)
        try:
            hasher = Hasher()
            await self._objects.read(_key(sha256), size_bytes, hasher.update)
        except NotFound as error:
            return gone(sha256, error).message
        found = hasher.result()
        if found.size_bytes != size_bytes:
            return damaged(sha256, "another length").message
        return "" if found.sha256 == sha256 else "The stored bytes have another SHA-256."

    @asynccontextmanager
    async def local(self, sha256: str, size_bytes: int) -> AsyncGenerator[Path]:
        """See `Backend.local`."""

        async def fetch(path: Path) -> None:
            await self._fetch(sha256, size_bytes, path)

        async with self._cache.file(sha256, size_bytes, fetch) as path:
            yield path

    async def _fetch(self, sha256: str, size_bytes: int, path: Path) -> None:
        hasher = Hasher()
        with disk_errors("the cache of assets"):
            fd = await asyncio.to_thread(os.open, path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:

            def take(piece: memoryview) -> None:
                if hasher.size_bytes + len(piece) > size_bytes:
                    raise damaged(sha256, "longer than it should be")
                hasher.update(piece)
                with disk_errors("the cache of assets"):
                    while piece:
                        piece = piece[os.write(fd, piece) :]

            await self._objects.read(_key(sha256), size_bytes, take)
        except NotFound as error:
            raise gone(sha256, error) from None
        finally:
            os.close(fd)
        found = hasher.result()
        if (found.sha256, found.size_bytes) != (sha256, size_bytes):
            raise damaged(sha256, f"{found.size_bytes} bytes, {found.sha256}")

    async def remove(self, sha256: str) -> None:
        """See `Backend.remove`."""
        await self._objects.delete(_key(sha256))
        await self._cache.drop(sha256)

    async def objects(self) -> AsyncIterator[str]:
        """See `Backend.objects`."""
        async for key in self._objects.keys(PREFIX):
            yield key.rpartition("/")[2]

    async def leftovers(self) -> int:
        """See `Backend.leftovers`. Parts of uploads that broke off are the bucket's to remove."""
        return await self._cache.leftovers()


def _key(sha256: str) -> str:
    return f"{PREFIX}/{sha256}"


def _lies(sha256: str, why: str) -> DataLoss:
    return DataLoss(
        "The object store did not keep what it was given.",
        hint="Tell the operator; then register or build it again.",
        context={"sha256": sha256, "found": why},
    )
