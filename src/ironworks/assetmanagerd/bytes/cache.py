"""Copies on this host of bytes that are kept in a bucket, so that VMs can link them.

    cache/sha256/ab/abcd…   read-only, verified when they came, complete
    cache/partial/abcd…     on its way; what is there at a start is removed

The least recently used go when a new one needs their room, but none that a lease holds: its VM may
be about to link it. When those alone fill the cache, new ones are refused.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import structlog

from ironworks.assetmanagerd.bytes.disk import (
    digest,
    disk_errors,
    file_problem,
    seal,
    sync_directory,
)
from ironworks.assetmanagerd.bytes.local import check_read_only
from ironworks.assetmanagerd.bytes.locks import DigestLocks
from ironworks.model.errors import ResourceExhausted
from ironworks.runtime.clock import Clock

_log = structlog.stdlib.get_logger()
Leased = Callable[[], Awaitable[frozenset[str]]]


class HostCache:
    """Verified files below one directory, in the order of their last use.

    Args:
        root: The directory; this process's alone.
        limit_bytes: What all files together may have.
        leased: SHA-256 of all that leases hold now.
        clock: The last use is kept as the time of last change: the order survives a restart.
    """

    def __init__(self, root: Path, *, limit_bytes: int, leased: Leased, clock: Clock) -> None:
        self._files = root / "sha256"
        self._partial = root / "partial"
        self._limit_bytes = limit_bytes
        self._leased = leased
        self._clock = clock
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._coming: dict[str, int] = {}
        self._pinned: Counter[str] = Counter()
        self._one_at_a_time = DigestLocks()
        self._making_room = asyncio.Lock()

    @property
    def size_bytes(self) -> int:
        """What is in the cache, and what is on its way."""
        return sum(self._sizes.values()) + sum(self._coming.values())

    def names(self) -> list[str]:
        """SHA-256 of all files, least recently used first."""
        return list(self._sizes)

    def path(self, name: str) -> Path:
        """Where a file is, or would be."""
        return self._files / name[:2] / name

    async def open(self) -> None:
        """Find what is there; remove what was on its way."""
        await asyncio.to_thread(self._open)

    def _open(self) -> None:
        with disk_errors("the cache of assets"):
            for directory in (self._files, self._partial):
                directory.mkdir(parents=True, exist_ok=True)
        for path in self._partial.iterdir():
            path.unlink()
        found = [(path.stat(), path.name) for path in self._files.glob("??/*")]
        found.sort(key=lambda one: one[0].st_mtime_ns)
        self._sizes = OrderedDict((name, stats.st_size) for stats, name in found)

    @asynccontextmanager
    async def file(
        self, name: str, size_bytes: int, fetch: Callable[[Path], Awaitable[None]]
    ) -> AsyncGenerator[Path]:
        """A file with these bytes, which stays at least until the context ends.

        Args:
            name: Which.
            size_bytes: How many.
            fetch: Writes them to a path, and raises unless they are what they should be. Is called
                once however many ask.

        Raises:
            ResourceExhausted: leases hold all that is in the cache, or the disk is full.
        """
        self._pinned[name] += 1
        try:
            async with self._one_at_a_time.held(name):
                if self._sizes.get(name) != size_bytes or not await self._is_there(name):
                    await self._fetch(name, size_bytes, fetch)
                await self._touch(name)
            yield self.path(name)
        finally:
            self._pinned[name] -= 1
            self._pinned += Counter()  # forgets those that are zero

    async def _is_there(self, name: str) -> bool:
        path = self.path(name)
        try:
            await asyncio.to_thread(check_read_only, path, name)
            return path.stat().st_size == self._sizes[name]
        except FileNotFoundError:
            return False

    async def _fetch(
        self, name: str, size_bytes: int, fetch: Callable[[Path], Awaitable[None]]
    ) -> None:
        await self._evict(name)
        await self._make_room(name, size_bytes)
        partial = self._partial / name
        try:
            await fetch(partial)
            await asyncio.to_thread(self._enter, partial, name)
            self._sizes[name] = size_bytes
        finally:
            del self._coming[name]
            partial.unlink(missing_ok=True)

    def _enter(self, path: Path, name: str) -> None:
        target = self.path(name)
        with disk_errors("the cache of assets"):
            target.parent.mkdir(exist_ok=True)
            seal(path)
            path.replace(target)
            sync_directory(target.parent)

    async def take(self, path: Path, name: str, size_bytes: int) -> None:
        """Take a file over that has just been verified, if there is room; it is gone then."""
        try:

            async def move(partial: Path) -> None:
                await asyncio.to_thread(path.replace, partial)

            async with self._one_at_a_time.held(name):
                await self._fetch(name, size_bytes, move)
                await self._touch(name)
        except ResourceExhausted:
            await asyncio.to_thread(path.unlink, missing_ok=True)

    async def _touch(self, name: str) -> None:
        if name not in self._sizes:
            return  # taken for another's room, by now
        self._sizes.move_to_end(name)
        now_ns = self._clock.now_ns()
        with suppress(FileNotFoundError):
            await asyncio.to_thread(os.utime, self.path(name), ns=(now_ns, now_ns))

    async def _make_room(self, name: str, size_bytes: int) -> None:
        """Reserve room for a file, at the cost of those that were not used for longest."""
        async with self._making_room:
            needed = self.size_bytes + size_bytes - self._limit_bytes
            if needed > 0:
                leased = await self._leased()
                going: list[str] = []
                for other, size in self._sizes.items():
                    if needed > 0 and other not in leased and not self._pinned[other]:
                        going.append(other)
                        needed -= size
                if needed > 0:
                    raise ResourceExhausted(
                        "The cache of assets of this host is full of what VMs use.",
                        hint="Delete VMs, or let the operator raise asset_cache_bytes.",
                    )
                for other in going:
                    await self._evict(other)
            self._coming[name] = size_bytes

    async def _evict(self, name: str) -> None:
        self._sizes.pop(name, None)
        await asyncio.to_thread(self.path(name).unlink, missing_ok=True)

    async def drop(self, name: str) -> None:
        """Forget a file, if it is there: its bytes are not kept any more."""
        async with self._one_at_a_time.held(name):
            await self._evict(name)

    async def drop_if_damaged(self, name: str) -> None:
        """Read a file again, and forget it if its bytes are others."""
        async with self._one_at_a_time.held(name):
            size_bytes = self._sizes.get(name)
            if size_bytes is None:
                return
            problem = await asyncio.to_thread(
                file_problem, self.path(name), digest(name), size_bytes
            )
            if problem:
                _log.warning("cached_file_damaged", file=name, problem=problem)
                await self._evict(name)

    async def leftovers(self) -> int:
        """Remove files that nobody writes any more; answers how many."""
        left = [path for path in self._partial.iterdir() if path.name not in self._coming]
        for path in left:
            path.unlink(missing_ok=True)
        return len(left)
