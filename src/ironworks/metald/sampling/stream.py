"""The stream of ticks to billaged: a bounded ring of what is not acknowledged, sent until it is.

    offered ──▶ ring ──sent──▶ ring ──acknowledged──▶ gone
                  └── ring full: the oldest goes, and its interval is declared lost

A connection begins with a hello; billaged answers with the last ordinal it has on disk, and sending
goes on after that one. Whatever happens, messages are sent in the order of their ordinals.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol

import structlog
from protobuf import Oneof

from ironworks.gen.ironworks.billaged.v1 import meter_pb, samples_pb
from ironworks.metald.sampling.types import TICK_NS, LossReason
from ironworks.model.errors import IronError, Unavailable
from ironworks.runtime.clock import Clock, Entropy

_log = structlog.stdlib.get_logger()

RING_TICKS = 6_000
"""Ten minutes of ticks."""
BACKOFF_SECONDS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
"""Waits between connections; the last one repeats. Up to half as much is added at random."""
ACK_TIMEOUT_SECONDS = 10.0
"""billaged answers every few seconds even if nothing is new: a longer silence is a fault."""
_OVERFLOW = samples_pb.GapReason(LossReason.STREAM_OVERFLOW)


class MeterStreams(Protocol):
    """The part of the generated client that is used here."""

    def stream_metrics(
        self, request: AsyncIterator[meter_pb.StreamMetricsRequest], /
    ) -> AsyncIterator[meter_pb.StreamMetricsResponse]:
        """Open a stream."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Who streams: host, boot of its kernel, run of this process."""

    host_id: str
    host_boot_id: str
    run_id: str


@dataclass(frozen=True, slots=True)
class _Waiting:
    ordinal: int
    tick: samples_pb.Tick


class MetricsStream:
    """Delivers ticks to billaged; a `Sink` of the sampler."""

    def __init__(
        self,
        *,
        origin: Origin,
        connect: Callable[[], MeterStreams],
        clock: Clock,
        entropy: Entropy,
        ring_ticks: int = RING_TICKS,
    ) -> None:
        self._origin = origin
        self._connect = connect
        self._clock = clock
        self._entropy = entropy
        self._ring_ticks = ring_ticks
        self._ring: deque[_Waiting] = deque()
        self._ordinal = 0
        self._attachments: dict[int, samples_pb.VmAttachment] = {}
        self._news = asyncio.Event()
        self._progress = asyncio.Event()
        self.acknowledged_ordinal = 0
        self.ticks_overflowed = 0
        self.connected = False

    @property
    def waiting_ticks(self) -> int:
        """Ticks that billaged has not acknowledged."""
        return len(self._ring)

    def offer(self, tick: samples_pb.Tick) -> None:
        """Take one tick; drops the oldest if the ring is full."""
        self._ordinal += 1
        for attachment in tick.attached:
            self._attachments[attachment.slot] = attachment
        self._ring.append(_Waiting(self._ordinal, tick))
        while len(self._ring) > self._ring_ticks:
            self._drop_oldest()
        self._news.set()

    def _drop_oldest(self) -> None:
        """Counters are cumulative: what is lost is resolution, and it is said so."""
        oldest = self._ring.popleft().tick
        heir = self._ring[0].tick
        self.ticks_overflowed += 1
        heir.attached = [*oldest.attached, *heir.attached]
        heir.detached = [*oldest.detached, *heir.detached]
        losses = [*oldest.losses]
        previous = losses[-1] if losses else None
        if previous and previous.reason == _OVERFLOW and previous.last_seq >= oldest.seq - 1:
            previous.last_seq = max(previous.last_seq, oldest.seq)
        else:
            losses.append(
                samples_pb.TickLoss(first_seq=oldest.seq, last_seq=oldest.seq, reason=_OVERFLOW)
            )
        heir.losses = [*losses, *heir.losses]

    async def wait_acknowledged(self, timeout_seconds: float) -> bool:
        """Wait until everything offered before this call is on billaged's disk; False: it is not.

        Counts on the loop's time, not the `Clock`'s: it is about a peer that may never answer.
        """
        until = self._ordinal
        try:
            async with asyncio.timeout(timeout_seconds):
                while self._ring and self._ring[0].ordinal <= until:
                    self._progress.clear()
                    await self._progress.wait()
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """Connect and deliver for ever; ends only by cancellation."""
        attempt = 0
        while True:
            before = self.acknowledged_ordinal
            try:
                await self._deliver()
            except IronError as error:
                _log.info("meter_stream_broken", error=error.message, waiting=len(self._ring))
            except Exception:  # noqa: BLE001 - whatever it is, the money is in the ring
                _log.exception("meter_stream_broken", waiting=len(self._ring))
            self.connected = False
            attempt = 0 if self.acknowledged_ordinal > before else attempt + 1
            wait = BACKOFF_SECONDS[min(attempt, len(BACKOFF_SECONDS) - 1)]
            await self._clock.sleep(wait + self._entropy.uniform(0, wait / 2))

    async def _deliver(self) -> None:
        """One connection, until it breaks."""
        greeted = asyncio.Event()
        answers = self._connect().stream_metrics(self._messages(greeted))
        while True:
            try:
                async with asyncio.timeout(ACK_TIMEOUT_SECONDS):
                    answer = await anext(answers)
            except TimeoutError:
                raise Unavailable("billaged has fallen silent.") from None
            except StopAsyncIteration:
                raise Unavailable("billaged ended the stream.") from None
            self._acknowledge(answer.durable_ordinal)
            self.connected = True
            greeted.set()

    def _acknowledge(self, ordinal: int) -> None:
        while self._ring and self._ring[0].ordinal <= ordinal:
            tick = self._ring.popleft().tick
            for slot in tick.detached:
                self._attachments.pop(slot, None)
        self.acknowledged_ordinal = max(self.acknowledged_ordinal, ordinal)
        self._progress.set()

    async def _messages(
        self, greeted: asyncio.Event
    ) -> AsyncIterator[meter_pb.StreamMetricsRequest]:
        hello = meter_pb.StreamHello(
            host_id=self._origin.host_id,
            host_boot_id=self._origin.host_boot_id,
            run_id=self._origin.run_id,
            attached=list(self._attachments.values()),
            tick_ns=TICK_NS,
        )
        yield meter_pb.StreamMetricsRequest(ordinal=0, message=Oneof("hello", hello))
        await greeted.wait()
        sent = 0
        while True:
            self._news.clear()
            while (waiting := self._after(sent)) is not None:
                yield meter_pb.StreamMetricsRequest(
                    ordinal=waiting.ordinal, message=Oneof("tick", waiting.tick)
                )
                sent = waiting.ordinal
            await self._news.wait()

    def _after(self, ordinal: int) -> _Waiting | None:
        """The first message of the ring after `ordinal`; ordinals in the ring are consecutive."""
        if not self._ring:
            return None
        index = max(0, ordinal + 1 - self._ring[0].ordinal)
        return self._ring[index] if index < len(self._ring) else None
