"""A month of metering in which everything is restarted: nothing is lost, nothing counted twice.

One host's sampler, its stream, billaged over its log on disk, and aggregatord over its ledger and
ClickHouse: the real classes, in one process, on a clock that jumps from tick to tick. A seed says
when which of them dies, and with what still in memory. The VMs' counters are files, as a cgroup
has them; two ticks stand for each minute, and the others are declared as missing by the sampler.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from ironworks.aggregatord.types import DAY_NS
from ironworks.billaged.app import Collector
from ironworks.billaged.types import RING_SAMPLES, BillagedSettings
from ironworks.gen.ironworks.aggregatord.v1 import batch_pb
from ironworks.gen.ironworks.billaged.v1 import meter_pb, samples_pb
from ironworks.metald.sampling.sampler import HostSampler
from ironworks.metald.sampling.sources import TapSources, open_source
from ironworks.metald.sampling.stream import MetricsStream, Origin
from ironworks.metald.sampling.types import BlockCounters, CgroupFiles, VmSource
from ironworks.model.errors import IronError, Unavailable
from ironworks.model.units import GIB, KIB, MIB, NS_PER_SECOND
from ironworks.runtime.tasks import Tasks
from ironworks.testkit.aggregator import Aggregator, aggregator, conserved
from ironworks.testkit.clock import FakeClock, FakeEntropy
from ironworks.testkit.metering import (
    EPOCH_AT_NS,
    HOST,
    TENANT,
    TICK_NS,
    absences_of,
    column_of,
)

BEGIN_AT_NS = (EPOCH_AT_NS // DAY_NS + 1) * DAY_NS
TICKS_A_MINUTE = 600
MINUTES_A_DAY = 1440
DAYS = 30
VMS = 3
METERS = {1: 2, 3: 5, 4: 6, 5: 8, 6: 9}
"""Counters that the VMs have, and the meters that they are billed by."""
PER_TICK = {"cpu_ns": 20_000_000, "disk_read_bytes": 64 * KIB, "disk_write_bytes": 64 * KIB,
            "network_receive_bytes": 16 * KIB, "network_transmit_bytes": 16 * KIB}  # fmt: skip
"""What each grows by in a tick at most."""


class LeapingClock(FakeClock):
    """Sleeps take no time of the month: whoever waits to try again tries again."""

    async def sleep(self, seconds: float) -> None:
        """Let others go on."""
        await asyncio.sleep(min(seconds, 0.005))


@dataclass(slots=True, kw_only=True)
class Guest:
    """A VM: files whose numbers only grow, until it boots anew."""

    directory: Path
    vm_id: str
    chance: np.random.Generator
    boot_epoch: int = 0
    counters: dict[str, int] = field(default_factory=dict[str, int])
    seq: int = 0
    blocks_fail: bool = False

    def boot(self, seq: int) -> None:
        """A new VMM, a new cgroup: all begins at nought."""
        self.boot_epoch += 1
        self.counters = dict.fromkeys(PER_TICK, 0)
        self.seq = seq
        self._write()

    def run_until(self, seq: int) -> None:
        """Use something."""
        for name, most in PER_TICK.items():
            self.counters[name] += int(self.chance.integers(0, most)) * (seq - self.seq)
        self.seq = seq
        self.blocks_fail = bool(self.chance.random() < 0.05)
        self._write()

    def _write(self) -> None:
        files = {**self.counters, "memory_bytes": int(self.chance.integers(1, 200)) * MIB}
        for name, value in files.items():
            # In place, as the sampler's descriptors stay open.
            descriptor = os.open(self.directory / name, os.O_WRONLY | os.O_CREAT, 0o600)
            os.pwrite(descriptor, b"%020d\n" % value, 0)
            os.close(descriptor)

    async def read_blocks(self) -> BlockCounters:
        """What the VMM answers, mostly."""
        if self.blocks_fail:
            raise Unavailable("The VMM does not answer.")
        return BlockCounters(
            read_bytes=self.counters["disk_read_bytes"],
            write_bytes=self.counters["disk_write_bytes"],
        )

    def open_tap(self, _netns: str, _tap: str) -> TapSources:
        """The tap's counters."""
        return TapSources(
            open_source(str(self.directory / "network_receive_bytes")),
            open_source(str(self.directory / "network_transmit_bytes")),
        )

    def source(self) -> VmSource:
        """What metald tells the sampler."""
        return VmSource(
            vm_id=self.vm_id,
            tenant_id=TENANT,
            boot_epoch=self.boot_epoch,
            vcpus=2,
            memory_bytes=256 * MIB,
            disk_bytes=GIB,
            cgroup=CgroupFiles(
                cpu=str(self.directory / "cpu_ns"), memory=str(self.directory / "memory_bytes")
            ),
            netns="here",
            tap=self.vm_id,
            read_blocks=self.read_blocks,
        )


Sample = tuple[str, int, int]
"""VM, boot epoch, sequence number."""


@dataclass(slots=True)
class Noting:
    """A sink that hands on, and remembers which samples each ordinal carried."""

    stream: MetricsStream
    told: dict[Sample, dict[int, int]]
    """Quantities by meter; those that could be read."""
    offered: dict[int, list[Sample]] = field(default_factory=dict[int, list[Sample]])
    slots: dict[int, tuple[str, int]] = field(default_factory=dict[int, tuple[str, int]])

    def offer(self, tick: samples_pb.Tick) -> None:
        """Hand on."""
        self.slots |= {one.slot: (one.vm_id, one.boot_epoch) for one in tick.attached}
        samples = [(*self.slots[slot], tick.seq) for slot in tick.slots]
        self.offered[len(self.offered) + 1] = samples
        columns = {counter: column_of(tick, counter) for counter in METERS}
        for row, sample in enumerate(samples):
            absent = absences_of(tick, row)
            self.told[sample] = {
                meter: columns[counter][row]
                for counter, meter in METERS.items()
                if samples_pb.Counter(counter).name not in absent
            }
        self.stream.offer(tick)


class Month:
    """All that the time passes through."""

    def __init__(self, directory: Path, minutes: int, tasks: Tasks) -> None:
        self._directory = directory
        self._tasks = tasks
        self.chance = np.random.default_rng(minutes)
        self.minutes = minutes
        self.clock = LeapingClock(BEGIN_AT_NS)
        self.happened: Counter[str] = Counter()
        self.acknowledged: set[Sample] = set()
        self.told: dict[Sample, dict[int, int]] = {}
        self._taken: set[int] = set()
        self._entropy = FakeEntropy(minutes)
        self._runs = 0
        self._aggregator: Aggregator | None = None
        self._aggregator_life = AsyncExitStack()
        self._away_until = 0
        self._delivery: asyncio.Task[None] | None = None
        self.collector = self._open_collector()
        self.guests = [self._guest(number) for number in range(VMS)]

    def _guest(self, number: int) -> Guest:
        directory = self._directory / f"vm_{number}"
        directory.mkdir()
        made = Guest(directory=directory, vm_id=f"vm_{number}", chance=self.chance)
        made.boot(self.seq)
        return made

    @property
    def seq(self) -> int:
        """The tick now."""
        return self.clock.monotonic_ns() // TICK_NS

    def happens(self, share: float) -> bool:
        """So often."""
        return bool(self.chance.random() < share)

    # ── metald's sampler ───────────────────────────────────────────────────────────────────────

    async def start_sampler(self) -> None:
        """A new metald finds the VMs that go on."""
        self._runs += 1
        self.stream = MetricsStream(
            origin=Origin(host_id=HOST, host_boot_id="boot", run_id=f"run{self._runs}"),
            connect=lambda: self,
            clock=self.clock,
            entropy=self._entropy,
        )
        self.sink = Noting(self.stream, self.told)
        taps = {guest.vm_id: guest.open_tap for guest in self.guests}
        self.sampler = HostSampler(
            clock=self.clock,
            tasks=self._tasks,
            sink=self.sink,
            open_tap_sources=lambda netns, tap: taps[tap](netns, tap),
        )
        for guest in self.guests:
            await self.sampler.attach(guest.source())
        self._connect()

    def _connect(self) -> None:
        self._delivery = self._tasks.start(self.stream.run(), name="stream")

    async def _disconnect(self) -> None:
        delivery = self._delivery
        if delivery is not None:
            delivery.cancel()
            await asyncio.wait([delivery])

    def note_acknowledged(self) -> None:
        """What a sampler has been told to be safe must be found in the end."""
        for ordinal in [
            one for one in self.sink.offered if one <= self.stream.acknowledged_ordinal
        ]:
            self.acknowledged.update(self.sink.offered[ordinal])
            self.sink.offered[ordinal] = []

    async def kill_sampler(self) -> None:
        """What billaged has not acknowledged dies with it."""
        await self._disconnect()
        self.note_acknowledged()
        self.happened["sampler"] += 1
        self.happened["ticks lost with the sampler"] += self.stream.waiting_ticks
        self.sampler.close()

    # ── billaged ───────────────────────────────────────────────────────────────────────────────

    def _open_collector(self) -> Collector:
        made = Collector(
            directory=self._directory / "billaged",
            settings=BillagedSettings(
                data_dir=self._directory, meter_segment_bytes=256 * KIB, meter_flush_seconds=600
            ),
            batches=self,
            clock=self.clock,
        )
        made.open()
        return made

    async def stream_metrics(
        self, request: AsyncIterator[meter_pb.StreamMetricsRequest], /
    ) -> AsyncGenerator[meter_pb.StreamMetricsResponse]:
        """billaged's handler, without a network between."""
        async with aclosing(self.collector.stream(request)) as ordinals:
            async for ordinal in ordinals:
                yield meter_pb.StreamMetricsResponse(durable_ordinal=ordinal)

    async def kill_billaged(self) -> None:
        """What was not flushed is lost; another replays the log, and the sampler resends."""
        await self._disconnect()
        self.happened["billaged"] += 1
        before = self.collector
        before.log.close()
        newest = max((self._directory / "billaged/log").glob("*.log"))
        if self.happens(0.5):
            # It died while it wrote.
            with newest.open("ab") as file:
                file.write(b"IWL1" + self.chance.bytes(int(self.chance.integers(1, 40))))
        self.collector = self._open_collector()
        self.happened["ticks resent"] += max(0, before.state.ordinal - self.collector.state.ordinal)
        self.happened["records replayed"] += self.collector.log.scan.records
        self._connect()

    async def ship(self) -> None:
        """Cut and send what is due; what fails waits."""
        await self.stream.wait_acknowledged(0.2)
        await self.collector.cut()
        self._taken.clear()
        try:
            await self.collector.shipper.ship()
        except IronError:
            self.happened["shipping failed"] += 1

    @property
    def is_behind(self) -> bool:
        """Whether anything has not reached aggregatord."""
        return bool(self.collector.outbox.waiting or self.collector.state.open_minutes)

    # ── aggregatord ────────────────────────────────────────────────────────────────────────────

    async def submit_batch(
        self, request: batch_pb.SubmitBatchRequest, /
    ) -> batch_pb.SubmitBatchResponse:
        """aggregatord's handler; now and then it is away, or its answer is lost."""
        made = self._aggregator
        if made is None or self.happens(0.02):
            raise Unavailable("aggregatord is away.")
        await made.clock.advance((self.clock.now_ns() - made.clock.now_ns()) / NS_PER_SECOND)
        outcome = await made.ingest.submit(request)
        assert not outcome.refused, outcome.refused[0].window.finding
        self.happened["batches"] += not outcome.duplicate
        self.happened["batches again"] += outcome.duplicate
        if self.happens(0.02):
            raise Unavailable("The answer was lost.")
        return batch_pb.SubmitBatchResponse(outcome=batch_pb.BatchOutcome.ACCEPTED)

    async def start_aggregator(self) -> Aggregator:
        """Over what an earlier one has left."""
        life = self._aggregator_life = AsyncExitStack()
        self._aggregator = await life.enter_async_context(aggregator(self._directory / "usage"))
        return self._aggregator

    async def end_aggregator(self) -> None:
        """It is away until `start_aggregator`."""
        if self._aggregator is not None:
            self.happened["aggregatord"] += 1
        self._aggregator = None
        await self._aggregator_life.aclose()

    async def deaths_of(self, minute: int, death: float) -> None:
        """Who dies after this minute, and whether aggregatord is back."""
        if self.happens(death):
            await self.kill_sampler()
            await self.start_sampler()
        if self.happens(death):
            await self.kill_billaged()
        if self._aggregator is None and minute >= self._away_until:
            await self.start_aggregator()
        elif self._aggregator is not None and self.happens(death / 2):
            await self.end_aggregator()
            self._away_until = minute + int(self.chance.integers(1, 120))
        if self._aggregator is not None and self.happens(1 / 400):
            await self._aggregator.rollup.catch_up()

    # ── time ───────────────────────────────────────────────────────────────────────────────────

    async def minute(self) -> None:
        """Two ticks at random in the minute; now and then a VM boots anew."""
        begun = self.seq // TICKS_A_MINUTE * TICKS_A_MINUTE
        # A ring has a place for each number of two minutes, and windows are cut later here.
        places = set(range(begun % RING_SAMPLES, begun % RING_SAMPLES + TICKS_A_MINUTE))
        chosen = self.chance.choice(sorted(places - self._taken), 2, replace=False)
        self._taken.update(chosen.tolist())
        for place in sorted(chosen.tolist()):
            seq = begun + place % TICKS_A_MINUTE
            if seq <= self.seq:
                continue
            await self.clock.advance((seq * TICK_NS - self.clock.monotonic_ns()) / NS_PER_SECOND)
            for guest in self.guests:
                guest.run_until(seq)
            await self.sampler.tick()
            for _ in range(int(self.chance.integers(0, 4))):
                await asyncio.sleep(0)
        if self.happens(1 / 120 if self.minutes < MINUTES_A_DAY else 1 / 720):
            guest = self.guests[int(self.chance.integers(0, VMS))]
            self.happened["VMs booted anew"] += 1
            await self.sampler.detach(guest.vm_id)
            guest.boot(self.seq)
            await self.sampler.attach(guest.source())
        end_ns = (begun + TICKS_A_MINUTE) * TICK_NS
        await self.clock.advance((end_ns - self.clock.monotonic_ns()) / NS_PER_SECOND)


async def month(directory: Path, minutes: int, deaths_a_day: int) -> Counter[str]:
    """Live through it; answers what happened."""
    (directory / "usage").mkdir()
    async with Tasks() as tasks:
        made = Month(directory, minutes, tasks)
        await made.start_aggregator()
        await made.start_sampler()
        for minute in range(1, minutes + 1):
            await made.minute()
            await made.deaths_of(minute, deaths_a_day / MINUTES_A_DAY)
            if made.happens(1 / 40) or minute % 240 == 0:
                await made.ship()
        await made.end_aggregator()
        left = await made.start_aggregator()
        for guest in made.guests:
            await made.sampler.detach(guest.vm_id)
        # Until then a tick may find its place in the ring taken.
        while not await made.stream.wait_acknowledged(1) or made.is_behind:
            await made.clock.advance(60)
            await made.ship()
        made.note_acknowledged()
        await judge(left, made)
        await made.end_aggregator()
        await made.collector.close()
        return made.happened


async def judge(left: Aggregator, made: Month) -> None:
    """All sums are what the VMs did between their first and last stored samples.

    And every sample that was acknowledged to a sampler is stored.
    """
    raw = await conserved(left)
    stored: list[Sample] = [
        (str(vm_id), int(epoch), int(seq))
        for vm_id, epoch, seq in await left.engine.rows(
            "SELECT vm_id, boot_epoch, seq FROM raw_samples FINAL ORDER BY vm_id, boot_epoch, seq"
        )
    ]
    assert made.acknowledged <= set(stored), "an acknowledged sample is lost"
    seen: dict[tuple[str, int, int], list[int]] = {}
    for vm_id, epoch, seq in stored:
        for meter, value in made.told[vm_id, epoch, seq].items():
            seen.setdefault((vm_id, epoch, meter), []).append(value)
    grown: Counter[tuple[str, int]] = Counter()
    for (vm_id, _, meter), values in seen.items():
        grown[vm_id, meter] += values[-1] - values[0]
    assert {key: quantity for key, quantity in raw.items() if key[1] in METERS.values()} == grown
    made.happened["samples acknowledged"] = len(made.acknowledged)
    made.happened["samples stored"] = len(stored)


@pytest.mark.timeout(7200)
async def test_nothing_is_lost_or_doubled_while_everything_is_restarted(
    thorough: bool, tmp_path: Path
) -> None:
    minutes = DAYS * MINUTES_A_DAY if thorough else 300
    happened = await month(tmp_path, minutes, deaths_a_day=6 if thorough else 36)
    print(f"\n{minutes} minutes: {dict(sorted(happened.items()))}")  # noqa: T201 - what a release reports
    for what in ("sampler", "billaged", "aggregatord", "VMs booted anew", "records replayed"):
        assert happened[what], what
