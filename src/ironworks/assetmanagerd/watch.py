"""Streams of changes of state, for many at once.

The newest changes are read once for all who watch and kept in memory, at most `KEPT_EVENTS`; who is
further behind, because it resumes or is slow, reads the history itself, a page at a time. So nobody
has a queue that could grow, and a slow one holds up none of the others.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import Connection

from ironworks.assetmanagerd import store
from ironworks.assetmanagerd.decide import check_filter, matches, shown, tells
from ironworks.assetmanagerd.types import Asset, AssetEvent, AssetFilter, Who
from ironworks.model.errors import (
    FailedPrecondition,
    InvalidRequest,
    ResourceExhausted,
    Unavailable,
)
from ironworks.storage.sql import Database

KEPT_EVENTS = 2048
MAX_WATCHERS = 256
MAX_TENANT_WATCHERS = 32
_PAGE = 500
_BOOKMARK_SECONDS = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One message: a change, or only how far the watch has come.

    Attributes:
        sequence: A watch that is resumed after it misses nothing. To be sealed before it is told.
        event: What happened; None: nothing that this watch is about.
        asset: The asset, as it was when the change was read, and as who watches may know it.
    """

    sequence: int
    event: AssetEvent | None = None
    asset: Asset | None = None


class Watches:
    """All who watch."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._watchers: Counter[str] = Counter()
        self._newest: deque[tuple[AssetEvent, Asset]] = deque(maxlen=KEPT_EVENTS)
        self._after = 0
        """All after this entry, up to `_read_to`, is in `_newest`."""
        self._read_to = 0
        self._news = asyncio.Event()
        self._is_closed = False

    @property
    def count(self) -> int:
        """How many watch now."""
        return self._watchers.total()

    def close(self) -> None:
        """End all watches, each with an answer that says so."""
        self._is_closed = True
        self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def activate(self) -> int:
        """Read what has changed, if anybody watches; answers how many changes there were."""
        if not self.count:
            self._newest.clear()
            self._after = self._read_to = 0
            return 0
        if not self._read_to:
            self._after = self._read_to = await self._database.read(store.last_sequence)
        found = await self._database.read(
            lambda connection: store.events_after(connection, self._read_to, _PAGE)
        )
        for one in found:
            if len(self._newest) == KEPT_EVENTS:
                self._after = self._newest[0][0].sequence
            self._newest.append(one)
        if found:
            self._read_to = found[-1][0].sequence
            self._wake()
        return len(found)

    async def changes(
        self, who: Who, query: AssetFilter, after: int | None
    ) -> AsyncGenerator[Change]:
        """Changes of the assets that `who` may know of, in order, until nobody wants them.

        The first message says where the watch begins, and one comes every now and then when nothing
        happens that it is about: at the same time, whatever happens to others.

        Raises:
            InvalidRequest: the filter, or a position that has not been reached.
            FailedPrecondition: the history no longer reaches back so far.
            ResourceExhausted: too many watch.
            Unavailable: assetmanagerd is stopping; watch again.
        """
        check_filter(query)
        self._admit(who)
        time = asyncio.get_running_loop().time
        self._watchers[who.tenant_id] += 1
        try:
            position = await self._begin(after)
            yield Change(sequence=position)
            due_seconds = time() + _BOOKMARK_SECONDS
            while True:
                news = self._news
                if self._is_closed:
                    raise Unavailable(
                        "assetmanagerd is stopping.", hint="Watch again, after the last position."
                    )
                found = await self._behind(position)
                for event, asset in found:
                    position = event.sequence
                    if tells(who, event, asset) and matches(asset, query, event.to_state):
                        yield Change(sequence=position, event=event, asset=shown(who, asset))
                        due_seconds = time() + _BOOKMARK_SECONDS
                if time() >= due_seconds:
                    yield Change(sequence=position)
                    due_seconds = time() + _BOOKMARK_SECONDS
                elif not found:
                    with suppress(TimeoutError):
                        async with asyncio.timeout_at(due_seconds):
                            await news.wait()
        finally:
            self._watchers[who.tenant_id] -= 1

    def _admit(self, who: Who) -> None:
        if self.count >= MAX_WATCHERS or self._watchers[who.tenant_id] >= MAX_TENANT_WATCHERS:
            raise ResourceExhausted(
                f"Too many watch: {MAX_TENANT_WATCHERS} of a tenant may, {MAX_WATCHERS} in all.",
                hint="End one of the others first.",
            )

    async def _begin(self, after: int | None) -> int:
        def work(connection: Connection) -> tuple[int, int]:
            return store.last_sequence(connection), store.horizon(connection)

        last, horizon = await self._database.read(work)
        if after is None:
            return last
        if after > last:
            raise InvalidRequest("after is of another history: this one does not reach so far.")
        if after < horizon:
            raise _forgotten()
        return after

    async def _behind(self, position: int) -> list[tuple[AssetEvent, Asset]]:
        """What comes after `position`: from memory, or the next page of the history."""
        if self._read_to and position >= self._after:
            return [one for one in self._newest if one[0].sequence > position]

        def work(connection: Connection) -> tuple[list[tuple[AssetEvent, Asset]], int]:
            return store.events_after(connection, position, _PAGE), store.horizon(connection)

        found, horizon = await self._database.read(work)
        if position < horizon:
            raise _forgotten()
        return found


def _forgotten() -> FailedPrecondition:
    return FailedPrecondition(
        "The history no longer reaches back so far.",
        hint="List the assets, and watch from now on.",
    )
