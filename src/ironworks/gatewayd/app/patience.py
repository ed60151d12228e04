"""Waiting for other services: what may be tried again is, for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from ironworks.model.errors import IronError
from ironworks.model.units import NS_PER_SECOND
from ironworks.runtime.clock import Clock

_T = TypeVar("_T")
PATIENCE_SECONDS = 60.0
"""Longer than a service takes to be restarted; a workflow has time, a person who waits has some."""
FIRST_WAIT_SECONDS = 0.1
LAST_WAIT_SECONDS = 2.0


async def patiently(
    clock: Clock, attempt: Callable[[], Awaitable[_T]], seconds: float = PATIENCE_SECONDS
) -> _T:
    """Repeat what fails in a way that may pass, until it succeeds or `seconds` are over.

    Raises:
        IronError: the last attempt's error, or the first that will not pass.
    """
    until_ns = clock.monotonic_ns() + int(seconds * NS_PER_SECOND)
    wait_seconds = FIRST_WAIT_SECONDS
    while True:
        try:
            return await attempt()
        except IronError as error:
            if not error.retryable or clock.monotonic_ns() >= until_ns:
                raise
        await clock.sleep(wait_seconds)
        wait_seconds = min(2 * wait_seconds, LAST_WAIT_SECONDS)


async def accepts_connections(address: str, port: int, timeout_seconds: float) -> bool:
    """Whether something listens there."""
    try:
        async with asyncio.timeout(timeout_seconds):
            _, writer = await asyncio.open_connection(address, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


async def at_most(
    number: int, work: Sequence[Callable[[], Awaitable[_T]]]
) -> list[_T | BaseException]:
    """Do all of it, at most `number` at the same time; answers results and errors, in order."""
    gate = asyncio.Semaphore(number)

    async def one(piece: Callable[[], Awaitable[_T]]) -> _T:
        async with gate:
            return await piece()

    return await asyncio.gather(*(one(piece) for piece in work), return_exceptions=True)


def errors_of(results: Sequence[object]) -> list[IronError]:
    """The errors of ours among results.

    Raises:
        BaseException: the first other error, if there is one: a fault, or a cancellation.
    """
    errors: list[IronError] = []
    for result in results:
        if isinstance(result, IronError):
            errors.append(result)
        elif isinstance(result, BaseException):
            raise result
    return errors
