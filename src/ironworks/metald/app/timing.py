"""How long each named step takes: `Steps` that take the time."""

from collections import defaultdict

from ironworks.metald.steps import Step, Steps
from ironworks.metald.types import StepTiming
from ironworks.runtime.clock import Clock


class TimedSteps:
    """Passes every step on and remembers when it was reached; a step lasts until the next one."""

    def __init__(self, inner: Steps, clock: Clock) -> None:
        """Wrap `inner`."""
        self._inner = inner
        self._clock = clock
        self._reached: defaultdict[str, list[tuple[Step, int, int]]] = defaultdict(list)

    async def reach(self, step: Step, vm_id: str) -> None:
        """See `Steps`."""
        now = (step, self._clock.now_ns(), self._clock.monotonic_ns())
        self._reached[vm_id].append(now)
        await self._inner.reach(step, vm_id)

    def take(self, vm_id: str) -> tuple[StepTiming, ...]:
        """The steps of a VM since they were last taken; the last one ends now."""
        reached = self._reached.pop(vm_id, [])
        ends = [*(began for _, _, began in reached), self._clock.monotonic_ns()][1:]
        return tuple(
            StepTiming(step=step, started_at_ns=at_ns, duration_ns=max(0, end - began))
            for (step, at_ns, began), end in zip(reached, ends, strict=True)
        )
