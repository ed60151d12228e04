"""Wakes those who wait for a change of a job, within this process.

Another process of gatewayd changes jobs too, so a waiter looks at the store again after
`POLL_SECONDS` even if nobody has called.
"""

from __future__ import annotations

import asyncio
from typing import Self

POLL_SECONDS = 0.5


class Changes:
    """One event for each waiter, by the id that it waits for."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}

    def notify(self, resource_id: str) -> None:
        """Something about this has changed."""
        for event in self._waiting.get(resource_id, ()):
            event.set()

    def listen(self, resource_id: str) -> Listener:
        """Begin to notice changes; use as a context."""
        return Listener(self._waiting, resource_id)


class Listener:
    """Notices changes from its beginning on, also those between two waits."""

    def __init__(self, waiting: dict[str, set[asyncio.Event]], resource_id: str) -> None:
        self._waiting = waiting
        self._resource_id = resource_id
        self._event = asyncio.Event()

    def __enter__(self) -> Self:
        self._waiting.setdefault(self._resource_id, set()).add(self._event)
        return self

    def __exit__(self, *exception: object) -> None:
        events = self._waiting[self._resource_id]
        events.discard(self._event)
        if not events:
            del self._waiting[self._resource_id]

    async def wait(self) -> None:
        """Return after a change since the last wait, or after `POLL_SECONDS`."""
        try:
            async with asyncio.timeout(POLL_SECONDS):
                await self._event.wait()
        except TimeoutError:
            return
        self._event.clear()
