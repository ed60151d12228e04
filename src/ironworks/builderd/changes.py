"""Wake those who watch a build, and tell how far it is: in memory, since it is only about now."""

from __future__ import annotations

import asyncio

from ironworks.builderd.types import Progress


class Changes:
    """Something about a build has changed: its record, its log or its progress."""

    def __init__(self) -> None:
        self._events: dict[str, asyncio.Event] = {}
        self._progress: dict[str, Progress] = {}

    def announce(self, build_id: str) -> None:
        """Wake all who wait for this build."""
        event = self._events.pop(build_id, None)
        if event is not None:
            event.set()

    def progress(self, build_id: str) -> Progress:
        """How far the build is in its present state."""
        return self._progress.get(build_id, Progress())

    def report(self, build_id: str, progress: Progress) -> None:
        """Note how far a build is, and wake those who wait."""
        self._progress[build_id] = progress
        self.announce(build_id)

    def forget(self, build_id: str) -> None:
        """The build has ended, or is in another state."""
        self._progress.pop(build_id, None)
        self.announce(build_id)

    def subscribe(self, build_id: str) -> asyncio.Event:
        """An event that the next change sets. Take it before reading, wait on it after."""
        return self._events.setdefault(build_id, asyncio.Event())
