from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ironworks.gen.ironworks.billaged.v1 import samples_pb as pb
from ironworks.metald.sampling.sampler import HostSampler
from ironworks.metald.sampling.sources import NO_SOURCE, AbsentSource, Source, TapSources
from ironworks.metald.sampling.types import (
    TICK_NS,
    AbsenceReason,
    BlockCounters,
    BlockReader,
    CgroupFiles,
    Counter,
    VmSource,
)
from ironworks.runtime.tasks import Tasks
from ironworks.testkit.clock import FakeClock
from ironworks.testkit.metering import absences_of, column_of, offsets_of

TICK_SECONDS = TICK_NS / 1e9


@dataclass
class Sink:
    ticks: list[pb.Tick] = field(default_factory=list[pb.Tick])

    def offer(self, tick: pb.Tick) -> None:
        self.ticks.append(tick)


@dataclass
class Host:
    """A sampler on a machine made of files."""

    clock: FakeClock
    sink: Sink
    sampler: HostSampler
    files: Path
    opened: list[tuple[str, str]]

    def write(self, cpu_ns: int, memory_bytes: int) -> None:
        (self.files / "cpu").write_text(f"{cpu_ns}\n")
        (self.files / "memory").write_text(f"{memory_bytes}\n")

    def vm(
        self,
        vm_id: str = "vm_1",
        *,
        boot_epoch: int = 1,
        vcpus: int = 2,
        read_blocks: BlockReader | None = None,
    ) -> VmSource:
        return VmSource(
            vm_id=vm_id,
            tenant_id="tnt_a",
            boot_epoch=boot_epoch,
            vcpus=vcpus,
            memory_bytes=1024,
            cgroup=CgroupFiles(cpu=str(self.files / "cpu"), memory=str(self.files / "memory")),
            netns="iw-1",
            tap="tap0",
            read_blocks=read_blocks,
        )


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    clock, sink = FakeClock(), Sink()
    await clock.advance(1000.03)
    opened: list[tuple[str, str]] = []

    def open_tap(netns: str, tap: str) -> TapSources:
        opened.append((netns, tap))
        receive: Source = NO_SOURCE
        return TapSources(receive, AbsentSource(-AbsenceReason.GONE))

    async with Tasks() as tasks:
        sampler = HostSampler(
            clock=clock,
            tasks=tasks,
            sink=sink,
            open_tap_sources=open_tap,
            block_timeout_seconds=0.01,
        )
        made = Host(clock, sink, sampler, tmp_path, opened)
        made.write(5, 7)
        yield made
        sampler.close()


async def test_the_first_sample_is_taken_before_attach_returns(host: Host) -> None:
    await host.sampler.attach(host.vm())
    [tick] = host.sink.ticks
    assert (tick.seq, offsets_of(tick)) == (10_000, [30_000])
    assert tick.at_ns == host.clock.now_ns() - 30_000_000
    assert (column_of(tick, Counter.CPU), column_of(tick, Counter.MEMORY)) == ([5], [7])
    [attached] = tick.attached
    assert (attached.vm_id, attached.first_seq, attached.vcpus) == ("vm_1", 10_000, 2)
    assert tick.slots == [attached.slot]
    assert host.opened == [("iw-1", "tap0")]


async def test_what_cannot_be_read_is_absent_and_never_zero(host: Host) -> None:
    await host.sampler.attach(host.vm())
    (host.files / "cpu").write_text("not a number")
    await host.clock.advance(TICK_SECONDS)
    await host.sampler.tick()
    tick = host.sink.ticks[-1]
    assert column_of(tick, Counter.CPU) == [0]
    assert absences_of(tick) == {
        "CPU": "MALFORMED",
        "DISK_READ": "NO_SOURCE",
        "DISK_WRITE": "NO_SOURCE",
        "NETWORK_RECEIVE": "NO_SOURCE",
        "NETWORK_TRANSMIT": "GONE",
        "NETWORK_INTERNAL": "GONE",
    }
    assert host.sampler.statistics.absences == 11


async def test_ticks_stand_on_the_grid_and_missed_ones_are_lost_not_made_up(host: Host) -> None:
    await host.sampler.attach(host.vm())
    await host.clock.advance(0.07)
    await host.sampler.tick()
    await host.sampler.tick()
    await host.clock.advance(0.345)
    await host.sampler.tick()
    ticks = host.sink.ticks[1:]
    assert [tick.seq for tick in ticks] == [10_001, 10_004]
    assert [(one.first_seq, one.last_seq, one.reason.name) for one in ticks[1].losses] == [
        (10_002, 10_003, "SAMPLER_LATE")
    ]
    assert ticks[0].losses == []
    assert offsets_of(ticks[1]) == [45_000]
    assert ticks[1].at_ns - ticks[0].at_ns == 3 * TICK_NS
    statistics = host.sampler.statistics
    assert (statistics.ticks, statistics.ticks_lost) == (2, 2)
    assert statistics.max_lateness_ns == 45_000_000


async def test_the_loop_ticks_at_every_instant(host: Host) -> None:
    await host.sampler.attach(host.vm())
    async with Tasks() as tasks:
        tasks.start(host.sampler.run(), name="sampler")
        await asyncio.sleep(0)
        await host.clock.advance(1.0)
    assert [tick.seq for tick in host.sink.ticks] == list(range(10_000, 10_011))
    assert {offsets_of(tick)[0] for tick in host.sink.ticks[1:]} <= {0}


async def test_the_last_sample_is_numbered_ahead_of_the_grid(host: Host) -> None:
    await host.sampler.attach(host.vm())
    host.write(9, 9)
    await host.sampler.detach("vm_1")
    last = host.sink.ticks[-1]
    assert (last.seq, offsets_of(last)) == (10_001, [-70_000])
    assert last.detached == last.slots
    assert column_of(last, Counter.CPU) == [9]
    assert host.sampler.vm_ids == ()
    await host.sampler.detach("vm_1")
    await host.clock.advance(1)
    await host.sampler.tick()
    assert len(host.sink.ticks) == 2


async def test_a_last_sample_that_comes_late_says_what_was_missed(host: Host) -> None:
    await host.sampler.attach(host.vm())
    await host.clock.advance(0.35)
    await host.sampler.detach("vm_1")
    last = host.sink.ticks[-1]
    assert last.seq == 10_003
    assert [(one.first_seq, one.last_seq) for one in last.losses] == [(10_001, 10_002)]


async def test_attaching_again_goes_on_with_new_provisioning(host: Host) -> None:
    await host.sampler.attach(host.vm())
    await host.sampler.attach(host.vm(vcpus=4))
    first, second = (tick.attached[0] for tick in host.sink.ticks)
    assert (second.first_seq, second.vcpus) == (10_001, 4)
    assert first.slot != second.slot
    await host.clock.advance(TICK_SECONDS)
    await host.sampler.tick()
    assert len(host.sink.ticks) == 2, "instant 10,001 was taken by the second attachment"
    await host.clock.advance(TICK_SECONDS)
    await host.sampler.tick()
    assert host.sink.ticks[-1].slots == [second.slot]


async def test_a_new_epoch_begins_anew(host: Host) -> None:
    await host.sampler.attach(host.vm())
    await host.sampler.attach(host.vm(boot_epoch=2))
    assert host.sink.ticks[1].attached[0].first_seq == 10_000


async def test_block_counters_are_asked_at_every_tick(host: Host) -> None:
    count = 0

    async def read() -> BlockCounters:
        nonlocal count
        count += 1
        return BlockCounters(read_bytes=count, write_bytes=2 * count)

    await host.sampler.attach(host.vm(read_blocks=read))
    await host.clock.advance(TICK_SECONDS)
    await host.sampler.tick()
    assert [
        (column_of(tick, Counter.DISK_READ), column_of(tick, Counter.DISK_WRITE))
        for tick in host.sink.ticks
    ] == [
        ([1], [2]),
        ([2], [4]),
    ]


async def test_a_vmm_that_hangs_delays_nobody_and_is_asked_once(host: Host) -> None:
    asked = 0

    async def hang() -> BlockCounters:
        nonlocal asked
        asked += 1
        await asyncio.Event().wait()
        raise AssertionError

    await host.sampler.attach(host.vm(read_blocks=hang))
    await host.sampler.attach(host.vm("vm_2"))
    for _ in range(3):
        await host.clock.advance(TICK_SECONDS)
        await host.sampler.tick()
    assert asked == 1
    tick = host.sink.ticks[-1]
    assert len(tick.slots) == 2
    hung = absences_of(tick)
    assert hung["DISK_READ"] == hung["DISK_WRITE"] == "TIMEOUT"


async def test_a_vmm_that_fails_or_lies_is_absent(host: Host) -> None:
    async def fail() -> BlockCounters:
        raise ConnectionResetError

    async def lie() -> BlockCounters:
        return BlockCounters(read_bytes=-1, write_bytes=0)

    await host.sampler.attach(host.vm("vm_1", read_blocks=fail))
    await host.sampler.attach(host.vm("vm_2", read_blocks=lie))
    failed, lied = host.sink.ticks
    assert absences_of(failed)["DISK_READ"] == "UNREADABLE"
    assert absences_of(lied)["DISK_WRITE"] == "MALFORMED"


async def test_a_vm_that_is_detached_while_a_tick_waits_gets_no_sample_after_its_last(
    host: Host,
) -> None:
    release = asyncio.Event()

    async def slow() -> BlockCounters:
        await release.wait()
        return BlockCounters(read_bytes=0, write_bytes=0)

    await host.sampler.attach(host.vm("vm_1"))
    await host.sampler.attach(host.vm("vm_2", read_blocks=slow))
    await host.clock.advance(TICK_SECONDS)
    async with Tasks() as tasks:
        tick = tasks.start(host.sampler.tick(), name="tick")
        await asyncio.sleep(0)
        await host.sampler.detach("vm_1")
        await tick
    slot = host.sink.ticks[0].slots[0]
    seen = [(one.seq, slot in one.slots) for one in host.sink.ticks]
    assert seen[-2:] == [(10_001, True), (10_001, False)]


async def test_a_clock_that_jumps_moves_the_time_and_not_the_numbers(host: Host) -> None:
    await host.sampler.attach(host.vm())
    host.clock.jump(86_400)
    await host.clock.advance(TICK_SECONDS)
    await host.sampler.tick()
    first, second = host.sink.ticks
    assert second.seq == first.seq + 1
    assert second.at_ns - first.at_ns == 86_400 * 10**9 + TICK_NS


async def test_small_drift_leaves_the_grid_regular(host: Host) -> None:
    await host.sampler.attach(host.vm())
    host.clock.jump(0.004)
    await host.clock.advance(TICK_SECONDS)
    await host.sampler.tick()
    first, second = host.sink.ticks
    assert second.at_ns - first.at_ns == TICK_NS
