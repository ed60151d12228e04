"""Send batches to aggregatord until it has them: retries, breaker; `decide` says in which order."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

import structlog

from ironworks.billaged import decide
from ironworks.billaged.outbox import Outbox
from ironworks.gen.ironworks.aggregatord.v1 import batch_pb
from ironworks.model.errors import AlreadyExists, DataLoss, IronError
from ironworks.runtime.clock import Clock
from ironworks.runtime.log import private
from ironworks.runtime.resilience import Breaker, BreakerState, call

_log = structlog.stdlib.get_logger()


class Batches(Protocol):
    """The part of the generated client that is used here."""

    async def submit_batch(
        self, request: batch_pb.SubmitBatchRequest, /
    ) -> batch_pb.SubmitBatchResponse:
        """Submit one batch."""
        ...


@dataclass(slots=True)
class Shipped:
    """Counts since the start."""

    acknowledged: int = 0
    failures: int = 0
    quarantined: int = 0
    last_error: str = ""


class Shipper:
    """Empties the outbox."""

    def __init__(self, *, outbox: Outbox, batches: Batches, clock: Clock) -> None:
        self._outbox = outbox
        self._batches = batches
        self._clock = clock
        self._breaker = Breaker()
        self._running = asyncio.Lock()
        self.counts = Shipped()

    @property
    def breaker_state(self) -> BreakerState:
        """State of the breaker towards aggregatord."""
        return self._breaker.state(self._clock.monotonic_ns())

    async def ship(self) -> int:
        """Send everything that waits; answers how many batches were acknowledged.

        Raises:
            IronError: aggregatord cannot take batches now; what waits goes on waiting.
        """
        async with self._running:
            done = 0
            problem: IronError | None = None
            tried: set[str] = set()
            while left := [
                one.batch_id for one in self._outbox.waiting if one.batch_id not in tried
            ]:
                batch_id = decide.next_to_ship(left, len(tried))
                tried.add(batch_id)
                try:
                    await self._ship_one(batch_id)
                except DataLoss as error:
                    _log.error("batch_damaged", error=error.message, **private(error))
                except IronError as error:
                    self.counts.failures += 1
                    self.counts.last_error = error.message
                    problem = error
                    if error.retryable:
                        break
                    # Refused, not failed: it waits for a newer aggregatord, the others go on.
                    _log.error("batch_refused", batch_id=batch_id, error=str(error))
                else:
                    done += 1
            if problem is not None:
                raise problem
            self.counts.last_error = ""
            return done

    async def _ship_one(self, batch_id: str) -> None:
        request = await asyncio.to_thread(self._outbox.load, batch_id)
        try:
            answer = await call(
                lambda: self._batches.submit_batch(request),
                clock=self._clock,
                breaker=self._breaker,
            )
        except AlreadyExists:
            # aggregatord has quarantined it; our copy stays for the operator.
            self._outbox.set_aside(batch_id)
            raise
        for window in answer.quarantined:
            self.counts.quarantined += 1
            _log.error(
                "window_quarantined",
                window_id=window.window_id,
                vm_id=window.vm_id,
                reason=window.reason.name,
                detail=window.detail,
            )
        self._outbox.acknowledge(batch_id)
        self.counts.acknowledged += 1
