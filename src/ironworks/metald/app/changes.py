"""What has changed, for those who watch: a bounded memory of events, and the host's generation.

Nothing of it is durable: the store has what is, and a watcher that has missed something begins
anew. Sequences grow over restarts of metald too, for they begin with the time in microseconds.
"""

import asyncio
from collections import deque
from dataclasses import dataclass

from ironworks.metald.types import Vm, VmState
from ironworks.model.errors import FailedPrecondition, ResourceExhausted
from ironworks.model.units import NS_PER_US
from ironworks.runtime.clock import Clock

KEPT_EVENTS = 4096
MAX_WATCHERS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class VmChange:
    """One change of a VM."""

    sequence: int
    at_ns: int
    vm: Vm
    """After it."""
    before: VmState | None
    """None: the state has not changed, or the VM is new."""


class Changes:
    """The last changes, and who waits for the next."""

    def __init__(self, clock: Clock) -> None:
        """Begin with nothing."""
        self._clock = clock
        self._first = clock.now_ns() // NS_PER_US
        self._events: deque[VmChange] = deque(maxlen=KEPT_EVENTS)
        self._news = asyncio.Event()
        self._watchers = 0
        self.last = self._first
        self.host_generation = self._first

    def tell(self, vm: Vm, before: VmState | None) -> None:
        """A VM has changed."""
        self.last += 1
        self._events.append(
            VmChange(sequence=self.last, at_ns=self._clock.now_ns(), vm=vm, before=before)
        )
        self.touch_host()

    def touch_host(self) -> None:
        """Something that the host shows of itself may have changed."""
        self.host_generation += 1
        self._news.set()
        self._news = asyncio.Event()

    def since(self, sequence: int) -> list[VmChange]:
        """The changes after `sequence`, oldest first.

        Raises:
            FailedPrecondition: not all of them are remembered.
        """
        oldest = self._events[0].sequence if self._events else self.last + 1
        if sequence > self.last or sequence < max(self._first, oldest - 1):
            raise FailedPrecondition(
                "The changes after this sequence are not all remembered.",
                hint="Begin anew: watch with after_sequence 0.",
            )
        return [event for event in self._events if event.sequence > sequence]

    async def wait(self) -> None:
        """Wait for the next change of anything."""
        await self._news.wait()

    def enter(self) -> None:
        """One more watcher.

        Raises:
            ResourceExhausted: there are too many.
        """
        if self._watchers >= MAX_WATCHERS:
            raise ResourceExhausted(
                f"{MAX_WATCHERS} callers watch this host already.", hint="End another watch."
            )
        self._watchers += 1

    def leave(self) -> None:
        """One less."""
        self._watchers -= 1
