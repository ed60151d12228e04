"""A clock and an entropy that tests drive."""

from __future__ import annotations

import asyncio
import hashlib
import heapq
from itertools import count

NS_PER_SECOND = 1_000_000_000


class FakeClock:
    """A clock that stands still until `advance`; sleepers wake in the order of their times."""

    def __init__(self, now_ns: int = 1_750_000_000 * NS_PER_SECOND) -> None:
        self._now_ns = now_ns
        self._monotonic_ns = 0
        self._order = count()
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []

    def now_ns(self) -> int:
        """UTC nanoseconds."""
        return self._now_ns

    def monotonic_ns(self) -> int:
        """Monotonic nanoseconds."""
        return self._monotonic_ns

    async def sleep(self, seconds: float) -> None:
        """Wait until the test has advanced the clock far enough."""
        until = self._monotonic_ns + int(seconds * NS_PER_SECOND)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (until, next(self._order), future))
        await future

    def jump(self, seconds: float) -> None:
        """Set the wall clock forward or back; monotonic time stays."""
        self._now_ns += int(seconds * NS_PER_SECOND)

    async def advance(self, seconds: float) -> None:
        """Let time pass, waking sleepers at their times."""
        end = self._monotonic_ns + int(seconds * NS_PER_SECOND)
        while self._sleepers and self._sleepers[0][0] <= end:
            until, _, future = heapq.heappop(self._sleepers)
            self._move_to(max(until, self._monotonic_ns))
            if not future.done():
                future.set_result(None)
            for _ in range(10):
                await asyncio.sleep(0)
        self._move_to(end)

    def _move_to(self, monotonic_ns: int) -> None:
        self._now_ns += monotonic_ns - self._monotonic_ns
        self._monotonic_ns = monotonic_ns


class FakeEntropy:
    """Repeatable bytes from a seed."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._count = count()

    def token_bytes(self, count: int) -> bytes:
        """`count` bytes that no other call of this object answers."""
        block = hashlib.shake_256(f"{self._seed}:{next(self._count)}".encode())
        return block.digest(count)

    def uniform(self, low: float, high: float) -> float:
        """A number between `low` and `high`."""
        return low + (high - low) * int.from_bytes(self.token_bytes(6)) / (1 << 48)
