"""The host's sampler: one tick for all VMs.

A tick reads cgroups and taps at once, waits a bounded time for the VMMs' block counters, and
offers one columnar message. Attachments are changed only between two awaits, so they need no lock.
"""

from __future__ import annotations

import asyncio
import os
from array import array
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from ironworks.gen.ironworks.billaged.v1 import samples_pb as pb
from ironworks.metald.sampling.sources import (
    MAX_VALUE,
    READ_BYTES,
    CounterFile,
    Source,
    TapSources,
    cpu_nanoseconds,
    open_source,
    open_tap,
)
from ironworks.metald.sampling.types import (
    TICK_NS,
    AbsenceReason,
    BlockCounters,
    LossReason,
    VmSource,
)
from ironworks.model.units import NS_PER_SECOND, NS_PER_US
from ironworks.runtime.clock import Clock
from ironworks.runtime.process import go_first
from ironworks.runtime.tasks import Tasks

_log = structlog.stdlib.get_logger()

BLOCK_TIMEOUT_SECONDS = 0.05
"""How long a tick waits for VMMs: half of itself."""
ANCHOR_TOLERANCE_NS = 5_000_000
"""The wall clock may drift as far from the monotonic one before grid instants follow it."""
REASON_BITS = 4
"""Of a tick's `absent`, for each reading."""
_CLOSED = (-1, -1, -1, -1)


class Sink(Protocol):
    """Takes ticks; never waits."""

    def offer(self, tick: pb.Tick) -> None:
        """Take one tick to be delivered."""
        ...


@dataclass(slots=True, kw_only=True)
class Statistics:
    """What the sampler did since its start.

    Attributes:
        ticks: Ticks taken.
        ticks_lost: Ticks that passed before the sampler woke.
        last_lateness_ns: How late the last tick was.
        max_lateness_ns: How late the latest one was.
        absences: Readings that failed.
    """

    ticks: int = 0
    ticks_lost: int = 0
    last_lateness_ns: int = 0
    max_lateness_ns: int = 0
    absences: int = 0


@dataclass(slots=True, kw_only=True)
class _Attached:
    slot: int
    vm: VmSource
    cpu: Source
    memory: Source
    tap: TapSources
    last_seq: int = -1
    pending: asyncio.Task[BlockCounters | None] | None = None
    descriptors: tuple[int, int, int, int] = _CLOSED
    """Of CPU, memory, bytes received and sent; -1 where there is no file."""

    def __post_init__(self) -> None:
        cpu, memory, receive, transmit = [
            source.descriptor if isinstance(source, CounterFile) else -1
            for source in (self.cpu, self.memory, self.tap.receive, self.tap.transmit)
        ]
        self.descriptors = cpu, memory, receive, transmit

    def close(self) -> None:
        # Whoever still holds the row must not read a file that gets one of these numbers next.
        self.descriptors = _CLOSED
        self.cpu.close()
        self.memory.close()
        self.tap.close()
        if self.pending is not None:
            self.pending.cancel()


@dataclass(slots=True)
class _Columns:
    """What was read at once, a column each; block counters come after it."""

    rows: list[_Attached]
    at_monotonic_ns: list[int] = field(default_factory=list[int])
    cpu_ns: list[int] = field(default_factory=list[int])
    memory_bytes: list[int] = field(default_factory=list[int])
    receive_bytes: list[int] = field(default_factory=list[int])
    transmit_bytes: list[int] = field(default_factory=list[int])
    internal_bytes: list[int] = field(default_factory=list[int])

    def without(self, gone: set[int]) -> _Columns:
        """The columns without these rows."""

        def left(column: list[int]) -> list[int]:
            return [value for row, value in enumerate(column) if row not in gone]

        return _Columns(
            [one for row, one in enumerate(self.rows) if row not in gone],
            left(self.at_monotonic_ns),
            left(self.cpu_ns),
            left(self.memory_bytes),
            left(self.receive_bytes),
            left(self.transmit_bytes),
            left(self.internal_bytes),
        )


class HostSampler:
    """Implements `sampling.Sampler`; `run` is its loop."""

    def __init__(
        self,
        *,
        clock: Clock,
        tasks: Tasks,
        sink: Sink,
        open_tap_sources: Callable[[str, str], TapSources] = open_tap,
        block_timeout_seconds: float = BLOCK_TIMEOUT_SECONDS,
    ) -> None:
        self._clock = clock
        self._tasks = tasks
        self._sink = sink
        self._open_tap = open_tap_sources
        self._block_timeout_seconds = block_timeout_seconds
        self._attached: dict[str, _Attached] = {}
        self._next_slot = 1
        self._last_seq = clock.monotonic_ns() // TICK_NS
        self._anchor_ns = clock.now_ns() - clock.monotonic_ns()
        self.statistics = Statistics()

    @property
    def vm_ids(self) -> tuple[str, ...]:
        """The VMs that are sampled."""
        return tuple(self._attached)

    async def attach(self, vm: VmSource) -> None:
        """Take the first sample and go on; see `sampling.Sampler`."""
        new = _Attached(
            slot=0,
            vm=vm,
            cpu=open_source(vm.cgroup.cpu, cpu_nanoseconds),
            memory=open_source(vm.cgroup.memory),
            tap=await asyncio.to_thread(self._open_tap, vm.netns, vm.tap),
        )
        await self._ask_blocks([new])
        old = self._attached.get(vm.vm_id)
        if old is not None:
            old.close()
            if old.vm.boot_epoch == vm.boot_epoch:
                new.last_seq = old.last_seq
        new.slot, self._next_slot = self._next_slot, self._next_slot + 1
        self._attached[vm.vm_id] = new
        seq = max(self._clock.monotonic_ns() // TICK_NS, new.last_seq + 1)
        losses = _lost_before(new, seq) if new.last_seq >= 0 else []
        self._offer(seq, self._read([new]), attached=[_attachment(new, seq)], losses=losses)

    async def detach(self, vm_id: str) -> None:
        """Take the last sample; see `sampling.Sampler`."""
        last = self._attached.get(vm_id)
        if last is None:
            return
        await self._ask_blocks([last])
        if self._attached.get(vm_id) is not last:
            return
        del self._attached[vm_id]
        seq = max(self._clock.monotonic_ns() // TICK_NS, last.last_seq + 1)
        losses = _lost_before(last, seq)
        self._offer(seq, self._read([last]), detached=[last.slot], losses=losses)
        last.close()

    def close(self) -> None:
        """Let go of all descriptors, without last samples: the VMs go on, another metald comes."""
        for attached in self._attached.values():
            attached.close()
        self._attached.clear()

    async def run(self) -> None:
        """Tick for ever; ends only by cancellation.

        The thread goes before others from now on: VMs that want all cores are what it measures.
        """
        if not go_first():
            _log.warning("sampler_not_first", hint="Ticks may be late when all cores are busy.")
        while True:
            now_ns = self._clock.monotonic_ns()
            next_ns = (max(now_ns // TICK_NS, self._last_seq) + 1) * TICK_NS
            await self._clock.sleep((next_ns - now_ns) / NS_PER_SECOND)
            try:
                await self.tick()
            except Exception:  # noqa: BLE001 - a fault of one tick must not end metering
                _log.exception("tick_failed")

    async def tick(self) -> None:
        """Read every VM for the grid instant that has just passed, unless that was done."""
        now_ns = self._clock.monotonic_ns()
        seq, lateness_ns = divmod(now_ns, TICK_NS)
        if seq <= self._last_seq:
            return
        lost, self._last_seq = (self._last_seq + 1, seq - 1), seq
        self._count(lost, lateness_ns)
        present = list(self._attached.values())
        self._start_blocks(present)
        # A VM whose first sample was taken since the instant has that number already.
        columns = self._read([one for one in present if one.last_seq < seq])
        await self._wait_blocks(columns.rows)
        gone = {
            row
            for row, one in enumerate(columns.rows)
            if self._attached.get(one.vm.vm_id) is not one
        }
        if gone:
            columns = columns.without(gone)
        if columns.rows:
            self._offer(seq, columns, losses=_losses(*lost))

    def _count(self, lost: tuple[int, int], lateness_ns: int) -> None:
        statistics = self.statistics
        statistics.ticks += 1
        statistics.ticks_lost += lost[1] - lost[0] + 1
        statistics.last_lateness_ns = lateness_ns
        statistics.max_lateness_ns = max(statistics.max_lateness_ns, lateness_ns)

    def _start_blocks(self, present: list[_Attached]) -> None:
        for one in present:
            # One question at a time: a VMM that hangs must not pile up tasks.
            if one.vm.read_blocks is not None and (one.pending is None or one.pending.done()):
                one.pending = self._tasks.start(_ask(one.vm.read_blocks), name="block counters")

    async def _wait_blocks(self, present: list[_Attached]) -> None:
        pending = [one.pending for one in present if one.pending and not one.pending.done()]
        if pending:
            await asyncio.wait(pending, timeout=self._block_timeout_seconds)

    async def _ask_blocks(self, present: list[_Attached]) -> None:
        self._start_blocks(present)
        await self._wait_blocks(present)

    def _read(self, rows: list[_Attached]) -> _Columns:
        """One pass over what is attached: most of a tick's time, so nothing is made for a row."""
        columns, monotonic_ns, pread = _Columns(rows), self._clock.monotonic_ns, os.pread
        for one in rows:
            columns.at_monotonic_ns.append(monotonic_ns())
            cpu, memory, receive, transmit = one.descriptors
            try:
                cpu_ns = cpu_nanoseconds(pread(cpu, READ_BYTES, 0))
                memory_bytes = int(pread(memory, READ_BYTES, 0))
                receive_bytes = int(pread(receive, READ_BYTES, 0))
                transmit_bytes = int(pread(transmit, READ_BYTES, 0))
            except (OSError, ValueError):
                cpu_ns = memory_bytes = receive_bytes = transmit_bytes = -1
            if not 0 <= cpu_ns | memory_bytes | receive_bytes | transmit_bytes <= MAX_VALUE:
                # One by one, so that each says why it is absent.
                cpu_ns, memory_bytes = one.cpu.read(), one.memory.read()
                receive_bytes, transmit_bytes = one.tap.receive.read(), one.tap.transmit.read()
            columns.cpu_ns.append(cpu_ns)
            columns.memory_bytes.append(memory_bytes)
            columns.receive_bytes.append(receive_bytes)
            columns.transmit_bytes.append(transmit_bytes)
            columns.internal_bytes.append(one.tap.internal.at(transmit_bytes))
        return columns

    def _grid_at_ns(self, seq: int) -> int:
        """UTC of a grid instant: regular, and following the wall clock where that moves away."""
        anchor_ns = self._clock.now_ns() - self._clock.monotonic_ns()
        if abs(anchor_ns - self._anchor_ns) > ANCHOR_TOLERANCE_NS:
            self._anchor_ns = anchor_ns
        return self._anchor_ns + seq * TICK_NS

    def _offer(
        self,
        seq: int,
        columns: _Columns,
        *,
        attached: list[pb.VmAttachment] | None = None,
        detached: list[int] | None = None,
        losses: list[pb.TickLoss] | None = None,
    ) -> None:
        blocks = [_blocks_of(one) for one in columns.rows]
        # In the order of `Counter`.
        readings = [
            columns.cpu_ns,
            columns.memory_bytes,
            [read_bytes for read_bytes, _ in blocks],
            [write_bytes for _, write_bytes in blocks],
            columns.receive_bytes,
            columns.transmit_bytes,
            columns.internal_bytes,
        ]
        absent, absences = _absent(readings)
        offsets = [(at_ns - seq * TICK_NS) // NS_PER_US for at_ns in columns.at_monotonic_ns]
        tick = pb.Tick(
            seq=seq,
            at_ns=self._grid_at_ns(seq),
            attached=attached or [],
            detached=detached or [],
            losses=losses or [],
            slots=[one.slot for one in columns.rows],
            offsets=array("i", offsets).tobytes(),
            readings=b"".join([_present(column) for column in readings]),
            absent=absent,
        )
        for one in columns.rows:
            one.last_seq = seq
        self.statistics.absences += absences
        self._sink.offer(tick)


_LATE = pb.GapReason(LossReason.SAMPLER_LATE)


def _losses(first_seq: int, last_seq: int) -> list[pb.TickLoss]:
    if first_seq > last_seq:
        return []
    return [pb.TickLoss(first_seq=first_seq, last_seq=last_seq, reason=_LATE)]


def _lost_before(one: _Attached, seq: int) -> list[pb.TickLoss]:
    """Ticks that passed since the VM's last sample: the loop is late, and will not say so again."""
    return _losses(one.last_seq + 1, seq - 1)


async def _ask(read: Callable[[], Awaitable[BlockCounters]]) -> BlockCounters | None:
    """What the VMM answers; None if it fails, so that no failure is logged ten times a second."""
    try:
        return await read()
    except Exception:  # noqa: BLE001 - whatever a driver raises, the reading is absent
        return None


def _attachment(one: _Attached, seq: int) -> pb.VmAttachment:
    vm = one.vm
    return pb.VmAttachment(
        slot=one.slot,
        vm_id=vm.vm_id,
        tenant_id=vm.tenant_id,
        deployment_id=vm.deployment_id,
        boot_epoch=vm.boot_epoch,
        vcpus=vm.vcpus,
        memory_bytes=vm.memory_bytes,
        disk_bytes=vm.disk_bytes,
        first_seq=seq,
        paused=vm.paused,
    )


def _present(column: list[int]) -> bytes:
    """The column as it is sent: where a reading is absent, 0."""
    if min(column) < 0:
        column = [max(value, 0) for value in column]
    return array("Q", column).tobytes()


def _absent(readings: Sequence[list[int]]) -> tuple[bytes, int]:
    """Why readings are absent, as it is sent, and how many are."""
    words = [0] * len(readings[0])
    count = 0
    for place, column in enumerate(readings):
        if min(column) < 0:
            shift = place * REASON_BITS
            words = [
                word | -value << shift if value < 0 else word
                for word, value in zip(words, column, strict=True)
            ]
            count += sum([value < 0 for value in column])
    return (array("I", words).tobytes() if count else b""), count


_NO_BLOCKS = (-AbsenceReason.NO_SOURCE, -AbsenceReason.NO_SOURCE)


def _blocks_of(one: _Attached) -> tuple[int, int]:
    """Readings from what the VMM answered, or why there are none."""
    if one.vm.read_blocks is None:
        return _NO_BLOCKS
    if one.pending is None or not one.pending.done():
        return (-AbsenceReason.TIMEOUT, -AbsenceReason.TIMEOUT)
    answered = None if one.pending.cancelled() else one.pending.result()
    if answered is None:
        return (-AbsenceReason.UNREADABLE, -AbsenceReason.UNREADABLE)
    if min(answered.read_bytes, answered.write_bytes) < 0:
        return (-AbsenceReason.MALFORMED, -AbsenceReason.MALFORMED)
    return (answered.read_bytes, answered.write_bytes)
