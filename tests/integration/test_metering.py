"""Metering end to end: the sampler here, billaged and aggregatord as processes, on loopback.

Counters are files that the test writes; everything else is real: ticks of 100 ms, the stream, the
log, windows, chDB, prices.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from ironworks.gen.ironworks.aggregatord.v1 import invoice_pb, usage_pb
from ironworks.gen.ironworks.aggregatord.v1.invoice_connect import InvoiceServiceClient
from ironworks.gen.ironworks.aggregatord.v1.usage_connect import UsageServiceClient
from ironworks.gen.ironworks.billaged.v1 import meter_pb, samples_pb
from ironworks.gen.ironworks.billaged.v1.meter_connect import MeterServiceClient
from ironworks.metald.sampling.sampler import HostSampler
from ironworks.metald.sampling.stream import MetricsStream, Origin
from ironworks.metald.sampling.types import BlockCounters, CgroupFiles, VmSource
from ironworks.model.errors import DeadlineExceeded, PermissionDenied
from ironworks.model.units import MIB, NS_PER_SECOND
from ironworks.runtime.clock import SystemClock, SystemEntropy
from ironworks.runtime.tasks import Tasks
from ironworks.testkit.services import Services, running

CLOCK = SystemClock()


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Services]:
    """billaged and aggregatord on one data directory."""
    env = {"IRONWORKS_METER_FLUSH_SECONDS": "10"}
    async with running(tmp_path, ["aggregatord", "billaged"], env) as one:
        yield one


@dataclass
class Host:
    """A host whose VMs' counters are files."""

    sampler: HostSampler
    stream: MetricsStream
    files: Path
    cpu_ns: int = 1_000_000
    blocks: int = 0

    def burn(self, cpu_ns: int) -> None:
        """Grow the counter in place, with one write of one width: the descriptor is kept."""
        self.cpu_ns += cpu_ns
        mode = "r+b" if (self.files / "cpu").exists() else "wb"
        with (self.files / "cpu").open(mode, buffering=0) as file:
            file.write(b"%020d\n" % self.cpu_ns)

    async def attach(self, vm_id: str, *, boot_epoch: int = 1) -> None:
        self.burn(0)
        (self.files / "memory").write_text(f"{64 * MIB}\n")

        async def read() -> BlockCounters:
            return BlockCounters(read_bytes=self.blocks, write_bytes=2 * self.blocks)

        await self.sampler.attach(
            VmSource(
                vm_id=vm_id,
                tenant_id="tnt_a",
                boot_epoch=boot_epoch,
                vcpus=2,
                memory_bytes=256 * MIB,
                disk_bytes=1024 * MIB,
                cgroup=CgroupFiles(cpu=str(self.files / "cpu"), memory=str(self.files / "memory")),
                read_blocks=read,
            )
        )


@asynccontextmanager
async def host(platform: Services, files: Path, run_id: str = "run-1") -> AsyncGenerator[Host]:
    files.mkdir(exist_ok=True)
    clients = platform.clients("metald")
    stream = MetricsStream(
        origin=Origin(host_id="hst_1", host_boot_id="boot-1", run_id=run_id),
        connect=lambda: clients.of(MeterServiceClient, "billaged", timeout_seconds=None),
        clock=CLOCK,
        entropy=SystemEntropy(),
    )
    async with Tasks() as tasks:
        sampler = HostSampler(clock=CLOCK, tasks=tasks, sink=stream)
        tasks.start(stream.run(), name="stream")
        tasks.start(sampler.run(), name="sampler")
        yield Host(sampler, stream, files)
        sampler.close()


BUSY_NS = 40_000_000
TICKS = 12
READ_BYTES = 4096


async def work(on: Host, ticks: int = TICKS) -> None:
    """Use CPU and disk for some ticks, then wait until a sample has seen the last of it."""
    for _ in range(ticks):
        await asyncio.sleep(0.1)
        on.burn(BUSY_NS)
        on.blocks += READ_BYTES
    await asyncio.sleep(0.35)


async def flush(platform: Services, *vm_ids: str) -> list[meter_pb.ShippedWindow]:
    client = platform.clients("metald").of(MeterServiceClient, "billaged")
    answer = await client.flush_windows(meter_pb.FlushWindowsRequest(vm_ids=list(vm_ids)))
    return list(answer.windows)


def around(began_ns: int) -> usage_pb.Interval:
    return usage_pb.Interval(
        from_ns=began_ns - NS_PER_SECOND, to_ns=CLOCK.now_ns() + 60 * NS_PER_SECOND
    )


async def usage(platform: Services, began_ns: int) -> dict[tuple[str, str], int]:
    client = platform.clients("gatewayd").of(UsageServiceClient, "aggregatord", tenant_id="tnt_a")
    answer = await client.get_usage(usage_pb.GetUsageRequest(interval=around(began_ns), by_vm=True))
    return {(row.vm_id, row.meter.name): int(row.quantity) for row in answer.rows}


async def completeness(platform: Services, began_ns: int) -> tuple[usage_pb.Completeness, set[str]]:
    """The totals, checked against each other, and why samples are missing.

    A shared machine may be late for a tick; that is a gap with its reason, and no failure.
    """
    client = platform.clients("gatewayd").of(UsageServiceClient, "aggregatord", tenant_id="tnt_a")
    answer = await client.get_completeness(
        usage_pb.GetCompletenessRequest(interval=around(began_ns))
    )
    assert answer.total is not None
    assert answer.total.expected == answer.total.received + answer.total.missing
    assert answer.total.missing == sum(gap.samples for gap in answer.gaps)
    return answer.total, {gap.reason.name for gap in answer.gaps} - {"SAMPLER_LATE"}


async def test_every_sample_is_traced_to_the_bill(platform: Services, tmp_path: Path) -> None:
    began_ns = CLOCK.now_ns()
    async with host(platform, tmp_path / "host") as on:
        await on.attach("vm_1")
        await on.attach("vm_2")
        await work(on)
        windows = await flush(platform, "vm_1", "vm_2")
        total, gaps = await completeness(platform, began_ns)
        assert total.received == sum(window.sample_count for window in windows)
        assert gaps == set()
        assert total.partial == 0
        used = await usage(platform, began_ns)
        for vm_id in ("vm_1", "vm_2"):
            mine = [window for window in windows if window.vm_id == vm_id]
            ticks = max(one.last_seq for one in mine) - min(one.first_seq for one in mine)
            assert used[vm_id, "VCPU_USED"] == TICKS * BUSY_NS
            assert used[vm_id, "DISK_READ"] == TICKS * READ_BYTES
            assert used[vm_id, "DISK_WRITE"] == 2 * TICKS * READ_BYTES
            # The first sample is taken between ticks, and any of them a little late.
            elapsed_ns = used[vm_id, "VCPU_PROVISIONED"] // 2
            assert abs(elapsed_ns - ticks * 100_000_000) < 150_000_000
            assert used[vm_id, "MEMORY_PROVISIONED"] == 256 * MIB * elapsed_ns
            assert used[vm_id, "MEMORY_USED"] <= 64 * MIB * elapsed_ns
        client = platform.clients("gatewayd").of(
            InvoiceServiceClient, "aggregatord", tenant_id="tnt_a"
        )
        invoice = await client.preview_invoice(
            invoice_pb.PreviewInvoiceRequest(interval=around(began_ns))
        )
        assert invoice.total is not None
        assert invoice.total.nanos == sum(
            line.amount.nanos for line in invoice.lines if line.amount
        )
        quantities = {line.meter.name: int(line.quantity) for line in invoice.lines}
        for meter, quantity in quantities.items():
            assert quantity == used["vm_1", meter] + used["vm_2", meter]
        await on.sampler.detach("vm_1")
        await on.sampler.detach("vm_2")
        assert await on.stream.wait_acknowledged(10)
    status = await (
        platform.clients("metald")
        .of(MeterServiceClient, "billaged")
        .get_status(meter_pb.GetStatusRequest())
    )
    assert (status.vm_count, status.samples_duplicate) == (0, 0)
    assert await platform.end("billaged", signal.SIGTERM) == 0
    assert await platform.end("aggregatord", signal.SIGTERM) == 0


async def test_a_sample_is_in_the_stream_before_its_window_is_closed(tmp_path: Path) -> None:
    # A minute is closed long after its end here: what the stream tells is in no window yet.
    env = {"IRONWORKS_METER_GRACE_TICKS": "500"}
    async with (
        running(tmp_path, ["aggregatord", "billaged"], env) as platform,
        host(platform, tmp_path / "host") as on,
        Tasks() as tasks,
    ):
        began_ns = CLOCK.now_ns()
        await on.attach("vm_1")
        working = tasks.start(work(on, 10_000), name="work")
        client = platform.clients("gatewayd").of(
            UsageServiceClient, "aggregatord", tenant_id="tnt_a", timeout_seconds=None
        )
        meters = [usage_pb.Meter.VCPU_USED, usage_pb.Meter.DISK_WRITE]
        request = usage_pb.StreamUsageRequest(filter=usage_pb.UsageFilter(meters=meters))
        told: set[tuple[str, usage_pb.Meter]] = set()
        # The client's type says less than it is.
        news = cast("AsyncGenerator[usage_pb.StreamUsageResponse]", client.stream_usage(request))
        async with asyncio.timeout(40), aclosing(news):
            async for answer in news:
                for row in answer.rows:
                    assert row.interval is not None
                    assert began_ns < row.interval.from_ns + NS_PER_SECOND
                    assert row.interval.from_ns < row.interval.to_ns <= CLOCK.now_ns()
                    assert int(row.quantity) > 0
                    told.add((row.vm_id, row.meter))
                if len(told) == len(meters):
                    break
        assert told == {("vm_1", meter) for meter in meters}
        total, _ = await completeness(platform, began_ns)
        assert total.received == 0
        working.cancel()


async def test_killing_billaged_loses_nothing_that_it_acknowledged(
    platform: Services, tmp_path: Path
) -> None:
    began_ns = CLOCK.now_ns()
    async with host(platform, tmp_path / "host") as on:
        await on.attach("vm_1")
        await work(on, 6)
        await platform.end("billaged", signal.SIGKILL)
        await work(on, 6)
        await platform.start("billaged")
        await work(on, 6)
        assert await on.stream.wait_acknowledged(20)
        await flush(platform, "vm_1")
        assert on.stream.ticks_overflowed == 0
    total, gaps = await completeness(platform, began_ns)
    assert gaps == set()
    assert total.received > 18
    assert (await usage(platform, began_ns))["vm_1", "VCPU_USED"] == 18 * BUSY_NS


async def test_an_aggregatord_that_is_down_gets_everything_later_and_once(
    platform: Services, tmp_path: Path
) -> None:
    began_ns = CLOCK.now_ns()
    async with host(platform, tmp_path / "host") as on:
        await on.attach("vm_1")
        await work(on, 4)
        await flush(platform)
        await platform.end("aggregatord", signal.SIGKILL)
        await work(on, 4)
        with pytest.raises(DeadlineExceeded):
            await flush(platform, "vm_1")
        await platform.end("billaged", signal.SIGKILL)
        await asyncio.gather(platform.start("billaged"), platform.start("aggregatord"))
        await work(on, 4)
        assert await on.stream.wait_acknowledged(20)
        await flush(platform)
    _, gaps = await completeness(platform, began_ns)
    assert gaps == set()
    used = await usage(platform, began_ns)
    assert used["vm_1", "VCPU_USED"] == 12 * BUSY_NS
    assert used["vm_1", "DISK_READ"] == 12 * READ_BYTES


async def test_a_vm_that_outlives_metald_is_charged_on_and_the_silence_is_a_gap(
    platform: Services, tmp_path: Path
) -> None:
    began_ns = CLOCK.now_ns()
    async with host(platform, tmp_path / "host") as on:
        await on.attach("vm_1")
        await work(on, 4)
        assert await on.stream.wait_acknowledged(10)
        cpu_ns, blocks = on.cpu_ns, on.blocks
    await asyncio.sleep(0.5)
    async with host(platform, tmp_path / "host", "run-2") as again:
        again.cpu_ns, again.blocks = cpu_ns + BUSY_NS, blocks
        await again.attach("vm_1")
        await work(again, 4)
        assert await again.stream.wait_acknowledged(10)
        await flush(platform, "vm_1")
    total, gaps = await completeness(platform, began_ns)
    assert gaps == {"AGENT_DOWN"}
    assert total.missing >= 3
    assert (await usage(platform, began_ns))["vm_1", "VCPU_USED"] == 9 * BUSY_NS


async def test_only_metald_may_say_what_was_used(platform: Services) -> None:
    event = samples_pb.LifecycleEvent(
        vm_id="vm_1",
        tenant_id="tnt_a",
        type=samples_pb.LifecycleEventType.STOPPED,
        at_ns=CLOCK.now_ns(),
    )
    request = meter_pb.RecordEventsRequest(events=[event])
    metald = platform.clients("metald").of(MeterServiceClient, "billaged")
    assert (await metald.record_events(request)).recorded == 1
    assert (await metald.record_events(request)).recorded == 0
    gatewayd = platform.clients("gatewayd").of(MeterServiceClient, "billaged")
    with pytest.raises(PermissionDenied):
        await gatewayd.record_events(request)
    stranger = platform.clients("metald").of(UsageServiceClient, "aggregatord", tenant_id="tnt_a")
    with pytest.raises(PermissionDenied):
        await stranger.get_usage(usage_pb.GetUsageRequest())
