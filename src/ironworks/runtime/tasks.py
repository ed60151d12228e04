"""Background tasks with an owner: started here, named, awaited, their failures never lost.

`asyncio.create_task` is banned elsewhere: a task that nobody holds can be collected while it runs,
and what it raises is seen by nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

import structlog

_log = structlog.stdlib.get_logger()
_T = TypeVar("_T")


class Tasks:
    """Owns background tasks; leaving the context cancels and awaits all of them."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    def start(self, work: Coroutine[Any, Any, _T], *, name: str) -> asyncio.Task[_T]:
        """Run `work` in the background; a failure is logged even if nobody awaits the task."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("task_failed", task=task.get_name(), exc_info=error)

    async def stop(self) -> None:
        """Cancel what still runs and wait for its end."""
        # Until none is left: what is cancelled may start something on its way out.
        while pending := self._running - {asyncio.current_task()}:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
            self._running -= pending
