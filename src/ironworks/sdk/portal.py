"""Runs the asynchronous core for callers that are not asynchronous."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator
from typing import Any, TypeVar

from ironworks.model.errors import FailedPrecondition

_T = TypeVar("_T")
CLOSE_SECONDS = 5.0


class Portal:
    """An event loop on a thread of its own; works also where the caller has a loop running."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._work, name="ironworks-sdk", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        self._loop.run_forever()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Wait for `work`; interrupting the wait cancels it.

        Raises:
            FailedPrecondition: the client has been closed.
        """
        if self._loop.is_closed() or not self._thread.is_alive():
            work.close()
            raise FailedPrecondition("This client has been closed.", hint="Make a new one.")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, items: AsyncGenerator[_T]) -> Generator[_T]:
        """The items of an asynchronous generator, as they come."""

        async def following() -> tuple[_T, ...]:
            try:
                return (await anext(items),)
            except StopAsyncIteration:
                return ()

        try:
            while found := self.run(following()):
                yield found[0]
        finally:
            self.run(items.aclose())

    def close(self) -> None:
        """End the loop and its thread. Safe to repeat."""
        if not self._loop.is_closed() and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(CLOSE_SECONDS)
