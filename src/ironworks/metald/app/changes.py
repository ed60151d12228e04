"""What has changed, for those who watch: a bounded memory of events, and the host's generation.

Nothing of it is durable: the store has what is, and a watcher that has missed something begins
anew. A sequence is the time in microseconds, so sequences grow over restarts of metald too, and
tell a tenant nothing of how much others do.
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
MAX_WATCHERS_OF_ONE = 25
"""Of one tenant: the others must be able to watch, too."""


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
        self._offset_ns = clock.now_ns() - clock.monotonic_ns()
        self._forgotten = clock.now_ns() // NS_PER_US
        self._events: deque[VmChange] = deque(maxlen=KEPT_EVENTS)
        self._news = asyncio.Event()
        self._watchers: list[str | None] = []
        self.last = self._forgotten
        self.host_generation = self._forgotten

    @property
    def now(self) -> int:
        """A sequence behind all that has happened, and before all that will."""
        since_start_ns = self._clock.monotonic_ns() + self._offset_ns
        return max(self.last, since_start_ns // NS_PER_US)

    def tell(self, vm: Vm, before: VmState | None) -> None:
        """A VM has changed."""
        # Behind all that was ever answered as `now`.
        self.last = self.now + 1
        if len(self._events) == KEPT_EVENTS:
            self._forgotten = self._events[0].sequence
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
        if not self._forgotten <= sequence <= self.now:
            raise FailedPrecondition(
                "The changes after this sequence are not all remembered.",
                hint="Begin anew: watch with after_sequence 0.",
            )
        return [event for event in self._events if event.sequence > sequence]

    async def wait(self) -> None:
        """Wait for the next change of anything."""
        await self._news.wait()

    def enter(self, tenant_id: str | None) -> None:
        """One more watcher, of a tenant if it is one.

        Raises:
            ResourceExhausted: there are too many.
        """
        if len(self._watchers) >= MAX_WATCHERS:
            raise ResourceExhausted(
                f"{MAX_WATCHERS} callers watch this host already.", hint="End another watch."
            )
        if tenant_id and self._watchers.count(tenant_id) >= MAX_WATCHERS_OF_ONE:
            raise ResourceExhausted(
                f"{MAX_WATCHERS_OF_ONE} watches of this tenant are open already.",
                hint="End another watch.",
            )
        self._watchers.append(tenant_id)

    def leave(self, tenant_id: str | None) -> None:
        """One less."""
        self._watchers.remove(tenant_id)
