"""The API key's token: exchanged when it is first needed, renewed before it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ironworks.model.errors import IronError
from ironworks.model.units import NS_PER_SECOND
from ironworks.runtime.clock import Clock

RENEW_BEFORE_SECONDS = 60
"""A token is renewed this long before it ends, so that no call leaves with one about to end."""
MIN_USE_SECONDS = 30
"""A token is used at least this long, even where our clock says that it has ended: clocks differ,
and a wrong one must not turn every call into two. The platform has the last word anyway."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token of the platform.

    Attributes:
        value: The JWT.
        expires_at_ns: When it ends, UTC nanoseconds by the platform's clock.
    """

    value: str
    expires_at_ns: int


class TokenSource:
    """Hands out the current token.

    However many calls need a new one at once, one exchange is made, and they share its outcome,
    good or bad.
    """

    def __init__(self, exchange: Callable[[], Awaitable[Token]], clock: Clock) -> None:
        self._exchange = exchange
        self._clock = clock
        self._lock = asyncio.Lock()
        self._value = ""
        self._renew_at_ns = 0
        self._exchanges = 0
        self._error: IronError | None = None

    async def get(self) -> str:
        """A token that is good for the next call.

        Raises:
            IronError: the key could not be exchanged, and why.
        """
        if self._fresh():
            return self._value
        exchanges_before = self._exchanges
        async with self._lock:
            if self._fresh():
                return self._value
            if self._error is not None and self._exchanges != exchanges_before:
                raise type(self._error)(self._error.message, hint=self._error.hint)
            await self._renew()
        return self._value

    def reject(self, value: str) -> None:
        """The platform refused this token: do not use it again."""
        if value == self._value:
            self._value = ""

    def _fresh(self) -> bool:
        return bool(self._value) and self._clock.monotonic_ns() < self._renew_at_ns

    async def _renew(self) -> None:
        try:
            token = await self._exchange()
        except IronError as error:
            self._error = error
            raise
        finally:
            self._exchanges += 1
        self._error = None
        # Counted on the monotonic clock: setting the wall clock later changes nothing.
        left_ns = token.expires_at_ns - self._clock.now_ns() - RENEW_BEFORE_SECONDS * NS_PER_SECOND
        use_ns = max(left_ns, MIN_USE_SECONDS * NS_PER_SECOND)
        self._renew_at_ns = self._clock.monotonic_ns() + use_ns
        self._value = token.value
