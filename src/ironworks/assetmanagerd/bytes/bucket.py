"""Bytes in a bucket, named by what they are, with copies in a cache on this host.

    sha256/abcd….x   complete; read back and compared before anybody is told that it is there

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
    digest,
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

    async def keep(self, path: Path, name: str, size_bytes: int) -> None:
        """See `Backend.keep`."""
        written = await self._objects.put(_key(name), path, size_bytes)
        hasher = Hasher()
        try:
            there = await self._objects.read(_key(name), size_bytes, hasher.update)
        except NotFound:
            raise _lies(name, "nothing is there") from None
        found = hasher.result()
        if (found.sha256, found.size_bytes) != (digest(name), size_bytes):
            raise _lies(name, f"{found.size_bytes} bytes, {found.sha256}")
        if there.etag != written.etag:
            raise _lies(name, f"written as {written.etag}, read as {there.etag}")
        await self._cache.take(path, name, size_bytes)

    async def check(self, name: str, size_bytes: int) -> None:
        """See `Backend.check`."""
        try:
            there = await self._objects.head(_key(name))
        except NotFound as error:
            raise gone(name, error) from None
        if there.size_bytes != size_bytes:
            raise damaged(name, f"{there.size_bytes} bytes, not {size_bytes}")

    async def problem(self, name: str, size_bytes: int) -> str:
        """See `Backend.problem`; a damaged copy in the cache is dropped, and fetched again."""
        await self._cache.drop_if_damaged(name)
        try:
            hasher = Hasher()
            await self._objects.read(_key(name), size_bytes, hasher.update)
        except NotFound as error:
            return gone(name, error).message
        found = hasher.result()
        if found.size_bytes != size_bytes:
            return damaged(name, "another length").message
        return "" if found.sha256 == digest(name) else "The stored bytes have another SHA-256."

    @asynccontextmanager
    async def local(self, name: str, size_bytes: int) -> AsyncGenerator[Path]:
        """See `Backend.local`."""

        async def fetch(path: Path) -> None:
            await self._fetch(name, size_bytes, path)

        async with self._cache.file(name, size_bytes, fetch) as path:
            yield path

    async def _fetch(self, name: str, size_bytes: int, path: Path) -> None:
        hasher = Hasher()
        with disk_errors("the cache of assets"):
            fd = await asyncio.to_thread(os.open, path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:

            def take(piece: memoryview) -> None:
                if hasher.size_bytes + len(piece) > size_bytes:
                    raise damaged(name, "longer than it should be")
                hasher.update(piece)
                with disk_errors("the cache of assets"):
                    while piece:
                        piece = piece[os.write(fd, piece) :]

            await self._objects.read(_key(name), size_bytes, take)
        except NotFound as error:
            raise gone(name, error) from None
        finally:
            os.close(fd)
        found = hasher.result()
        if (found.sha256, found.size_bytes) != (digest(name), size_bytes):
            raise damaged(name, f"{found.size_bytes} bytes, {found.sha256}")

    async def remove(self, name: str) -> None:
        """See `Backend.remove`."""
        await self._objects.delete(_key(name))
        await self._cache.drop(name)

    async def objects(self) -> AsyncIterator[str]:
        """See `Backend.objects`."""
        async for key in self._objects.keys(PREFIX):
            yield key.rpartition("/")[2]

    async def leftovers(self) -> int:
        """See `Backend.leftovers`. Parts of uploads that broke off are the bucket's to remove."""
        return await self._cache.leftovers()


def _key(name: str) -> str:
    return f"{PREFIX}/{name}"


def _lies(name: str, why: str) -> DataLoss:
    return DataLoss(
        "The object store did not keep what it was given.",
        hint="Tell the operator; then register or build it again.",
        context={"object": name, "found": why},
    )
