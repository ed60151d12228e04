"""sampler: what sampling 1,000 VMs ten times a second costs, against a bare loop of its reads.

Real cgroups with a process each, real taps, a real billaged to which the ticks are streamed; the
CPU time is that of the process that samples, all threads, encoding and sending included. The
reference reads the same files with nothing but `pread` in a loop, at the same rate.
"""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import AsyncGenerator, Generator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.frame import Benchmark, Outcome, median, spread
from ironworks.gen.ironworks.billaged.v1 import meter_pb
from ironworks.gen.ironworks.billaged.v1.meter_connect import MeterServiceClient
from ironworks.machine.temporary import make_directory
from ironworks.metald.cgroup.groups import GroupLimits, HostGroups
from ironworks.metald.sampling import classes
from ironworks.metald.sampling.sampler import HostSampler
from ironworks.metald.sampling.sources import (
    READ_BYTES,
    CounterFile,
    cpu_nanoseconds,
    open_source,
    open_tap,
)
from ironworks.metald.sampling.stream import MetricsStream, Origin
from ironworks.metald.sampling.types import TICK_NS, CgroupFiles, VmSource
from ironworks.model.errors import NotFound
from ironworks.model.units import MIB, NS_PER_MS, NS_PER_SECOND
from ironworks.runtime.cgroup_layout import read_layout
from ironworks.runtime.clock import SystemClock, SystemEntropy
from ironworks.runtime.process import run
from ironworks.runtime.settings import tag_of
from ironworks.runtime.tasks import Tasks
from ironworks.testkit.services import Services, running

VMS, QUICK_VMS = 1_000, 200
SECONDS, QUICK_SECONDS = 30, 5
PAIRS, QUICK_PAIRS = 3, 2
GOAL_CORE = 0.35
GOAL_RATIO = 2.0
GOAL_LATENESS_MS = 10.0
_CLOCK = SystemClock()


def cpu_seconds() -> float:
    """CPU time of this process, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@asynccontextmanager
async def taps(netns: str, count: int) -> AsyncGenerator[None]:
    """A network namespace with `count` taps, and the counter that stands on each VM's own."""
    batch = "".join(
        f"tuntap add t{number} mode tap\nlink set t{number} up\n" for number in range(count)
    )
    await run(["ip", "netns", "add", netns], timeout_seconds=10)
    try:
        await run(["ip", "-n", netns, "-batch", "-"], stdin=batch.encode(), timeout_seconds=120)
        guard = f"table netdev {classes.TABLE} {{ counter {classes.COUNTER} {{ }}\n}}\n"
        words = ["ip", "netns", "exec", netns, "nft", "-f", "-"]
        await run(words, stdin=guard.encode(), timeout_seconds=10)
        yield
    finally:
        await run(["ip", "netns", "delete", netns], timeout_seconds=120)


def _sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["/bin/busybox", "sleep", "1000"])


@asynccontextmanager
async def groups(directory: Path, count: int) -> AsyncGenerator[list[CgroupFiles]]:
    """Cgroups with a sleeping process each."""
    host = HostGroups(read_layout(), tag_of(directory), _CLOCK)
    limits = GroupLimits(memory_bytes=64 * MIB, cpus=1.0, cpu_weight=100, pids=8)
    names = [f"vm_{number}" for number in range(count)]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        found: list[CgroupFiles] = []
        for name in names:
            group = await host.create(name, limits)
            processes.append(_sleeper())
            for path in group.join_paths:
                path.write_text(str(processes[-1].pid))
            found.append(CgroupFiles(cpu=str(group.cpu_file), memory=str(group.memory_file)))
        yield found
    finally:
        for process in processes:
            process.send_signal(signal.SIGKILL)
        for process in processes:
            process.wait()
        for name in names:
            await host.remove(name)


@contextmanager
def readings(sources: list[VmSource]) -> Generator[list[int]]:
    """What a tick reads, as open descriptors."""
    with ExitStack() as opened:
        descriptors: list[int] = []
        for source in sources:
            tap = open_tap(source.netns, source.tap)
            cgroup = source.cgroup
            for one in (
                open_source(cgroup.cpu, cpu_nanoseconds),
                open_source(cgroup.memory),
                tap.receive,
                tap.transmit,
            ):
                if not isinstance(one, CounterFile):
                    raise NotFound(f"A counter of {source.vm_id} cannot be read.")
                opened.callback(one.close)
                descriptors.append(one.descriptor)
        yield descriptors


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement of ours."""

    core: float
    lateness_ms: list[float]
    expected: int
    received: int


class Watched(HostSampler):
    """The sampler, with every tick's number and lateness kept."""

    ticked: list[tuple[int, float]]

    async def tick(self) -> None:
        """One tick."""
        await super().tick()
        self.ticked.append((self._last_seq, self.statistics.last_lateness_ns / NS_PER_MS))


async def _received(services: Services) -> int:
    meter = services.clients("metald").of(MeterServiceClient, "billaged")
    return (await meter.get_status(meter_pb.GetStatusRequest())).samples_received


async def measure_ours(
    services: Services, sources: list[VmSource], seconds: int, run_id: str
) -> Run:
    """Attach all, let it sample, count what billaged has."""
    clients = services.clients("metald")
    stream = MetricsStream(
        origin=Origin(host_id="hst_bench", host_boot_id="boot", run_id=run_id),
        connect=lambda: clients.of(MeterServiceClient, "billaged", timeout_seconds=None),
        clock=_CLOCK,
        entropy=SystemEntropy(),
    )
    async with Tasks() as tasks:
        sampler = Watched(clock=_CLOCK, tasks=tasks, sink=stream)
        sampler.ticked = []
        for source in sources:
            await sampler.attach(source)
        sender = tasks.start(stream.run(), name="stream")
        await stream.wait_acknowledged(60.0)
        before = await _received(services)
        ticker = tasks.start(sampler.run(), name="sampler")
        began_cpu, began_ns = cpu_seconds(), _CLOCK.monotonic_ns()
        await asyncio.sleep(seconds)
        core = (cpu_seconds() - began_cpu) / ((_CLOCK.monotonic_ns() - began_ns) / NS_PER_SECOND)
        ticker.cancel()
        await stream.wait_acknowledged(60.0)
        received = await _received(services) - before
        sender.cancel()
        sampler.close()
    # Every grid instant between the first tick and the last one counts, those that were missed too.
    ticks = sampler.ticked[-1][0] - sampler.ticked[0][0] + 1
    lateness_ms = [late_ms for _, late_ms in sampler.ticked]
    return Run(core, lateness_ms, ticks * len(sources), received)


async def measure_reference(descriptors: list[int], seconds: int) -> float:
    """The bare loop; answers its share of a core."""
    began_cpu, began_ns = cpu_seconds(), _CLOCK.monotonic_ns()
    for number in range(1, seconds * NS_PER_SECOND // TICK_NS + 1):
        wait_ns = began_ns + number * TICK_NS - _CLOCK.monotonic_ns()
        await asyncio.sleep(max(0, wait_ns) / NS_PER_SECOND)
        for descriptor in descriptors:
            os.pread(descriptor, READ_BYTES, 0)
    return (cpu_seconds() - began_cpu) / ((_CLOCK.monotonic_ns() - began_ns) / NS_PER_SECOND)


def percentile_99(values: list[float]) -> float:
    """The value that 99 of 100 do not exceed."""
    return sorted(values)[int(len(values) * 0.99)]


async def measure(quick: bool) -> Outcome:  # noqa: FBT001 - the frame's signature
    """Ours and the reference alternately, over the same cgroups and taps."""
    count = QUICK_VMS if quick else VMS
    seconds = QUICK_SECONDS if quick else SECONDS
    directory = make_directory("bench")
    netns = f"iwb{tag_of(directory)}"
    runs: list[Run] = []
    reference: list[float] = []
    try:
        async with (
            groups(directory, count) as files,
            taps(netns, count),
            running(directory, ["billaged"]) as services,
        ):
            sources = [
                VmSource(
                    vm_id=f"vm_{number}",
                    tenant_id=f"tnt_{number % 10}",
                    boot_epoch=1,
                    vcpus=1,
                    memory_bytes=64 * MIB,
                    cgroup=cgroup,
                    netns=netns,
                    tap=f"t{number}",
                )
                for number, cgroup in enumerate(files)
            ]
            with readings(sources) as descriptors:
                for number in range(QUICK_PAIRS if quick else PAIRS):
                    runs.append(await measure_ours(services, sources, seconds, f"run-{number}"))
                    reference.append(await measure_reference(descriptors, seconds))
    finally:
        shutil.rmtree(directory)
    ours = [one.core for one in runs]
    lateness_ms = percentile_99([value for one in runs for value in one.lateness_ms])
    missing = sum(one.expected - one.received for one in runs)
    passed = median(ours) <= GOAL_CORE and median(ours) / median(reference) <= GOAL_RATIO
    return Outcome(
        ours=median(ours),
        reference=median(reference),
        passed=passed and lateness_ms <= GOAL_LATENESS_MS and missing == 0,
        details={
            "vms": count,
            "ours_spread": spread(ours),
            "reference_spread": spread(reference),
            "lateness_ms_p99": round(lateness_ms, 3),
            "samples_expected": sum(one.expected for one in runs),
            "samples_missing": missing,
        },
    )


BENCHMARK = Benchmark(
    name="sampler",
    unit="share of a core",
    goal=(
        f"<= {GOAL_CORE} of one core, <= {GOAL_RATIO} x reference; "
        f"p99 lateness <= {GOAL_LATENESS_MS:.0f} ms; no sample missing"
    ),
    measure=measure,
)
