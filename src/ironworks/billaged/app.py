"""Use cases of billaged: take ticks and events, cut windows, seal batches, flush."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog
from protobuf import Oneof

from ironworks.billaged import decide, sealing
from ironworks.billaged.log import Kind, Log
from ironworks.billaged.outbox import Outbox
from ironworks.billaged.shipping import Batches, Shipper
from ironworks.billaged.state import MeterState
from ironworks.billaged.types import BillagedSettings, SealedWindow, VmKey
from ironworks.gen.ironworks.billaged.v1 import meter_pb, samples_pb
from ironworks.model.errors import (
    Aborted,
    DeadlineExceeded,
    InvalidRequest,
    IronError,
    ResourceExhausted,
    Unavailable,
)
from ironworks.model.units import NS_PER_SECOND
from ironworks.runtime.clock import Clock
from ironworks.runtime.tasks import Tasks

_log = structlog.stdlib.get_logger()

HEARTBEAT_SECONDS = 3.0
"""A stream is answered at least as often."""
MAX_EVENTS = 1_000
MAX_FLUSH_VMS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class FlushedWindow:
    """A window that has reached aggregatord, and the batch that carried it."""

    window: SealedWindow
    batch_id: str


class Session:
    """One stream of a sampler."""

    def __init__(self) -> None:
        self.news = asyncio.Event()
        self.greeted = False
        self.error: IronError | None = None


class Collector:
    """The metering of one host."""

    def __init__(
        self, *, directory: Path, settings: BillagedSettings, batches: Batches, clock: Clock
    ) -> None:
        self._settings = settings
        self._clock = clock
        self.state = MeterState()
        self.log = Log(
            directory / "log",
            segment_bytes=settings.meter_segment_bytes,
            max_bytes=settings.meter_log_max_bytes,
            checkpoint=self.state.checkpoint,
        )
        self.outbox = Outbox(directory / "outbox")
        self.shipper = Shipper(outbox=self.outbox, batches=batches, clock=clock)
        self._sealing = asyncio.Lock()
        self._session: Session | None = None
        self._last_tick_ns = clock.monotonic_ns()
        self._unreleased: list[str] = []
        self.on_due: Callable[[], None] = _nothing
        """Called when a window may have to be closed."""
        self.on_sealed: Callable[[], None] = _nothing
        """Called when a batch may be sent."""

    @property
    def sampler_connected(self) -> bool:
        """Whether a sampler streams now."""
        return self._session is not None

    # ── start ──────────────────────────────────────────────────────────────────────────────────

    def open(self) -> None:
        """Take up what an earlier run left on disk."""
        for record in self.log.replay():
            try:
                self._replay(record.kind, record.payload, record.segment)
            except (IronError, ValueError, KeyError) as error:
                self.log.scan.damaged += 1
                _log.error("log_record_unusable", kind=record.kind, error=str(error))
        if self.log.scan.damaged:
            self.state.damaged_until_seq = self.state.newest_seq
        self.outbox.open(sealing.sealed_windows)
        for waiting in self.outbox.waiting:
            if self._never_sealed(waiting.windows):
                self.outbox.discard(waiting.batch_id)
        self.log.begin()
        _log.info(
            "log_replayed",
            records=self.log.scan.records,
            damaged=self.log.scan.damaged,
            truncated_bytes=self.log.scan.truncated_bytes,
            waiting_batches=len(self.outbox.waiting),
        )

    def _replay(self, kind: int, payload: bytes, segment: int) -> None:
        if kind == Kind.CHECKPOINT:
            self.state.restore(payload)
        elif kind == Kind.HELLO:
            self.state.apply_hello(meter_pb.StreamHello.from_binary(payload))
        elif kind == Kind.TICK:
            request = meter_pb.StreamMetricsRequest.from_binary(payload)
            self.state.apply_tick(request.ordinal, _tick_of(request), segment)
        elif kind == Kind.EVENTS:
            for event in meter_pb.RecordEventsRequest.from_binary(payload).events:
                self.state.apply_event(event)
        elif kind == Kind.SEALED:
            self.state.apply_sealed(json.loads(payload))

    def _never_sealed(self, windows: Iterable[SealedWindow]) -> bool:
        """Whether a batch was written, but the record that seals it is not in the log."""
        return any(
            self.state.is_open(VmKey(window.vm_id, window.boot_epoch), window.first_seq)
            for window in windows
        )

    # ── ticks ──────────────────────────────────────────────────────────────────────────────────

    async def stream(
        self, requests: AsyncIterator[meter_pb.StreamMetricsRequest]
    ) -> AsyncGenerator[int]:
        """Take a sampler's stream; yields ordinals that are on disk.

        Raises:
            Aborted: a newer stream has taken the place of this one.
            InvalidRequest: a message is malformed.
            ResourceExhausted: the log cannot grow.
        """
        session = Session()
        async with Tasks() as tasks:
            reader = tasks.start(self._read(requests, session), name="meter stream")
            reader.add_done_callback(lambda _: session.news.set())
            try:
                while True:
                    try:
                        async with asyncio.timeout(HEARTBEAT_SECONDS):
                            await session.news.wait()
                    except TimeoutError:
                        pass
                    session.news.clear()
                    if session.error is not None:
                        raise session.error
                    if session.greeted:
                        if self._session is not session:
                            raise _taken_over()
                        ordinal = self.state.ordinal
                        await self.log.sync()
                        yield ordinal
                    if reader.done():
                        return
            finally:
                if self._session is session:
                    self._session = None

    async def _read(
        self, requests: AsyncIterator[meter_pb.StreamMetricsRequest], session: Session
    ) -> None:
        try:
            await self._read_all(requests, session)
        except IronError as error:
            session.error = error

    async def _read_all(
        self, requests: AsyncIterator[meter_pb.StreamMetricsRequest], session: Session
    ) -> None:
        async for request in requests:
            said = request.message
            if said is None:
                raise InvalidRequest("A message of the stream is empty.")
            if said.field == "hello":
                self._session, session.greeted = session, True
                self._append(Kind.HELLO, said.value.to_binary())
                self.state.apply_hello(said.value)
            elif self._session is not session:
                raise _taken_over()
            else:
                self._take(request, said.value)
            session.news.set()

    def _append(self, kind: Kind, payload: bytes) -> None:
        self.log.ensure_room(len(payload))
        self.log.append(kind, payload)

    def _take(self, request: meter_pb.StreamMetricsRequest, tick: samples_pb.Tick) -> None:
        content = request.to_binary()
        self.log.ensure_room(len(content))
        if self.outbox.size_bytes > self._settings.meter_outbox_max_bytes:
            raise ResourceExhausted("The batches that wait have reached their bound.")
        if self.state.apply_tick(request.ordinal, tick, self.log.segment):
            self.log.append(Kind.TICK, content)
        self._last_tick_ns = self._clock.monotonic_ns()
        if self._due_minutes() or self.state.ended:
            self.on_due()

    # ── events ─────────────────────────────────────────────────────────────────────────────────

    async def record_events(self, events: list[samples_pb.LifecycleEvent]) -> int:
        """Store lifecycle events; answers how many were new.

        Raises:
            InvalidRequest: one has no VM, tenant, type or time, or there are too many.
        """
        if not 1 <= len(events) <= MAX_EVENTS:
            raise InvalidRequest(f"A call records 1 to {MAX_EVENTS} events.")
        for event in events:
            if not event.vm_id or not event.tenant_id or event.at_ns <= 0 or not event.type:
                raise InvalidRequest("An event must have VM, tenant, type and time.")
        self._append(Kind.EVENTS, meter_pb.RecordEventsRequest(events=events).to_binary())
        new = sum([self.state.apply_event(event) for event in events])
        await self.log.sync()
        return new

    # ── windows ────────────────────────────────────────────────────────────────────────────────

    def _due_minutes(self) -> list[int]:
        last = {minute: one.last_seq for minute, one in self.state.open_minutes.items()}
        return decide.closed_by_ticks(last, self.state.newest_seq, self._settings.meter_grace_ticks)

    def _idle_minutes(self) -> list[int]:
        """Past minutes, when no tick has come for a while that could close them."""
        silent_ns = self._clock.monotonic_ns() - self._last_tick_ns
        if silent_ns < self._settings.meter_idle_seconds * NS_PER_SECOND:
            return []
        this_minute = decide.minute_of(self._clock.now_ns())
        return sorted(minute for minute in self.state.open_minutes if minute != this_minute)

    async def cut(self) -> int:
        """Close the windows that are due and seal them; answers how many batches that made."""
        async with self._sealing:
            await self._release()
            ended, self.state.ended = self.state.ended, []
            made = len(await self._seal(sorted(self.state.open_minutes), ended)) if ended else 0
            due = sorted({*self._due_minutes(), *self._idle_minutes()})
            if due:
                made += len(await self._seal(due, None))
            elif not self.state.open_minutes and self.state.events:
                made += len(await self._seal([], []))
            return made

    async def _seal(self, minutes: list[int], keys: Collection[VmKey] | None) -> list[sealing.Plan]:
        """Write batches and seal them. `_sealing` is held, so plans do not overlap."""
        if not self.state.host_id:
            return []
        # What is sealed must be in the log before its sealing is.
        plans = sealing.plan(self.state, minutes, keys)
        for plan in plans:
            if plan.request is not None:
                await self.outbox.put(plan.request, plan.windows, self._clock.now_ns())
                self._unreleased.append(plan.request.batch_id)
            self.log.append(Kind.SEALED, json.dumps(plan.record).encode())
            self.state.apply_sealed(plan.record)
        await self._release()
        self.log.drop_before(self.state.needed_segment(self.log.segment))
        return plans

    async def _release(self) -> None:
        """Let batches be sent whose sealing has become durable."""
        ready = list(self._unreleased)
        await self.log.sync()
        for batch_id in ready:
            self.outbox.release(batch_id)
            self._unreleased.remove(batch_id)
        if ready:
            self.on_sealed()

    async def flush(self, vm_ids: Collection[str]) -> list[FlushedWindow]:
        """Close the windows of these VMs (none given: of all) and ship them.

        Raises:
            InvalidRequest: too many VMs.
            Unavailable: aggregatord did not acknowledge in time.
        """
        if len(vm_ids) > MAX_FLUSH_VMS:
            raise InvalidRequest(f"A call flushes at most {MAX_FLUSH_VMS} VMs.")
        async with self._sealing:
            keys = [key for key in self.state.vms if not vm_ids or key.vm_id in vm_ids]
            await self._seal(sorted(self.state.open_minutes), keys)
        mine = [
            FlushedWindow(window=window, batch_id=waiting.batch_id)
            for waiting in self.outbox.waiting
            for window in waiting.windows
            if not vm_ids or window.vm_id in vm_ids
        ]
        try:
            async with asyncio.timeout(self._settings.meter_flush_seconds):
                await self._ship_until({one.batch_id for one in mine})
        except TimeoutError:
            raise DeadlineExceeded(
                "aggregatord did not acknowledge in time.",
                hint="The windows are closed and on disk; they are shipped later.",
            ) from None
        return mine

    async def _ship_until(self, batch_ids: set[str]) -> None:
        while batch_ids & {one.batch_id for one in self.outbox.waiting}:
            try:
                await self.shipper.ship()
            except IronError as error:
                left = batch_ids & {one.batch_id for one in self.outbox.waiting}
                if left and not error.retryable:
                    raise Unavailable(
                        "aggregatord refuses a batch.", hint="See the log of billaged."
                    ) from error
                await self._clock.sleep(0.2)

    async def close(self) -> None:
        """Make durable what came last."""
        await self.log.sync()
        self.log.close()


def _nothing() -> None:
    """Until the service has connected its loops."""


def _taken_over() -> Aborted:
    return Aborted("A newer stream of this host has taken over, or hello is missing.")


def _tick_of(request: meter_pb.StreamMetricsRequest) -> samples_pb.Tick:
    said = request.message
    if isinstance(said, Oneof) and isinstance(said.value, samples_pb.Tick):
        return said.value
    raise InvalidRequest("The record is not a tick.")
