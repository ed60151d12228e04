"""Time and randomness, taken as arguments everywhere so that tests can own them."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Protocol


class Clock(Protocol):
    """Source of time."""

    def now_ns(self) -> int:
        """UTC nanoseconds since 1970; may jump when the host's clock is set."""
        ...

    def monotonic_ns(self) -> int:
        """Nanoseconds since some fixed point of this boot; never goes back."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds` of monotonic time."""
        ...


class Entropy(Protocol):
    """Source of randomness."""

    def token_bytes(self, count: int) -> bytes:
        """`count` unpredictable bytes."""
        ...

    def uniform(self, low: float, high: float) -> float:
        """A number between `low` and `high`: for jitter, never for secrets."""
        ...


class SystemClock:
    """The host's clocks."""

    def now_ns(self) -> int:
        """UTC nanoseconds."""
        return time.time_ns()  # noqa: TID251 - the one place

    def monotonic_ns(self) -> int:
        """Monotonic nanoseconds."""
        return time.monotonic_ns()  # noqa: TID251 - the one place

    async def sleep(self, seconds: float) -> None:
        """Sleep on the event loop."""
        await asyncio.sleep(seconds)


class SystemEntropy:
    """The kernel's generator."""

    def token_bytes(self, count: int) -> bytes:
        """`count` bytes of getrandom(2)."""
        return os.urandom(count)

    def uniform(self, low: float, high: float) -> float:
        """A number between `low` and `high`."""
        return low + (high - low) * (int.from_bytes(os.urandom(7)) / (1 << 56))
