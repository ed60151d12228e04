"""Sampler, billaged and aggregatord are killed at random moments while VMs use CPU.

What the sampler knew to be acknowledged is in the store, each sample once, and the CPU time of the
samples adds up to what the counters say.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from ironworks.gen.ironworks.aggregatord.v1 import usage_pb
from ironworks.gen.ironworks.aggregatord.v1.usage_connect import UsageServiceClient
from ironworks.gen.ironworks.billaged.v1 import meter_pb
from ironworks.gen.ironworks.billaged.v1.meter_connect import MeterServiceClient
from ironworks.metald.sampling.types import TICK_NS
from ironworks.model.errors import IronError
from ironworks.model.units import MIB, NS_PER_SECOND
from ironworks.runtime.clock import SystemClock, SystemEntropy
from ironworks.runtime.tasks import Tasks
from ironworks.storage.clickhouse import ChdbEngine
from ironworks.testkit.sampler_process import TENANT_ID
from ironworks.testkit.services import Services, running

VMS = ("vm_1", "vm_2", "vm_3")
VICTIMS = ("sampler", "billaged", "aggregatord")
KILLS, THOROUGH_KILLS = 6, 200
STEP_NS = 10_000_000
CLOCK = SystemClock()
CHANCE = SystemEntropy()


class Counters:
    """Counter files that grow by themselves, until they are told to stand still."""

    def __init__(self, directory: Path) -> None:
        self.cpu_ns = STEP_NS
        self._files = [directory / name for name in VMS]
        for files in self._files:
            files.mkdir(parents=True)
            (files / "memory").write_text(f"{64 * MIB}\n")
        self._write()

    def _write(self) -> None:
        for files in self._files:
            flags = os.O_WRONLY | os.O_CREAT
            descriptor = os.open(files / "cpu", flags, 0o644)
            os.write(descriptor, b"%020d\n" % self.cpu_ns)
            os.close(descriptor)

    async def grow(self) -> None:
        while True:
            await asyncio.sleep(0.05)
            self.cpu_ns += STEP_NS
            self._write()


async def start_sampler(services: Services, host: Path) -> None:
    services.processes["sampler"] = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ironworks.testkit.sampler_process", str(host)),
        env={**os.environ, **services.env},
        stderr=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
    )


async def kill_one(services: Services, host: Path) -> None:
    await asyncio.sleep(CHANCE.uniform(0.0, 1.5))
    victim = VICTIMS[int(CHANCE.uniform(0, len(VICTIMS)))]
    async with Tasks() as tasks:
        if CHANCE.uniform(0, 1) < 0.5:
            # In the middle of closing windows, or of shipping them.
            tasks.start(flush(services), name="flush")
            await asyncio.sleep(CHANCE.uniform(0.0, 0.2))
        await services.end(victim, signal.SIGKILL)
        if victim == "sampler":
            await start_sampler(services, host)
        else:
            await services.start(victim)


def acknowledged(host: Path) -> set[int]:
    return {int(line) for line in (host / "acknowledged").read_text().split()}


async def until_sampled(host: Path) -> None:
    """Until a sample that is taken from now on has been acknowledged."""
    now_seq = CLOCK.monotonic_ns() // TICK_NS
    async with asyncio.timeout(60):
        while max(acknowledged(host)) <= now_seq + 1:  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.1)


async def flush(services: Services) -> bool:
    meter = services.clients("metald").of(MeterServiceClient, "billaged", timeout_seconds=30)
    try:
        await meter.flush_windows(meter_pb.FlushWindowsRequest())
        status = await meter.get_status(meter_pb.GetStatusRequest())
    except (IronError, OSError):
        return False
    return status.batches_waiting == 0


async def all_shipped(services: Services) -> None:
    async with asyncio.timeout(90):
        while not await flush(services):  # noqa: ASYNC110 - another process ships
            await asyncio.sleep(0.2)


async def raw(data_dir: Path, sql: str) -> list[list[Any]]:
    engine = ChdbEngine(data_dir / "aggregatord" / "usage")
    await engine.open()
    try:
        return await engine.rows(sql)
    finally:
        await engine.close()


def asked(services: Services, began_ns: int) -> tuple[UsageServiceClient, usage_pb.Interval]:
    interval = usage_pb.Interval(
        from_ns=began_ns - NS_PER_SECOND, to_ns=CLOCK.now_ns() + 60 * NS_PER_SECOND
    )
    clients = services.clients("gatewayd")
    return clients.of(UsageServiceClient, "aggregatord", tenant_id=TENANT_ID), interval


async def cpu_used(services: Services, began_ns: int) -> dict[str, int]:
    usage, interval = asked(services, began_ns)
    answer = await usage.get_usage(usage_pb.GetUsageRequest(interval=interval, by_vm=True))
    return {
        row.vm_id: int(row.quantity) for row in answer.rows if row.meter is usage_pb.Meter.VCPU_USED
    }


async def gap_reasons(services: Services, began_ns: int) -> set[str]:
    usage, interval = asked(services, began_ns)
    answer = await usage.get_completeness(usage_pb.GetCompletenessRequest(interval=interval))
    assert answer.total is not None
    assert answer.total.expected == answer.total.received + answer.total.missing
    return {gap.reason.name for gap in answer.gaps}


@pytest.mark.timeout(7200)
async def test_kills_lose_nothing_that_was_acknowledged_and_double_nothing(
    tmp_path: Path, thorough: bool
) -> None:
    host, began_ns = tmp_path / "host", CLOCK.now_ns()
    counters = Counters(host)
    async with running(tmp_path, ["aggregatord", "billaged"]) as services:
        await start_sampler(services, host)
        async with Tasks() as tasks:
            tasks.start(counters.grow(), name="counters")
            for _ in range(THOROUGH_KILLS if thorough else KILLS):
                await kill_one(services, host)
        # The counters stand still from here on.
        await until_sampled(host)
        safe = acknowledged(host)
        await all_shipped(services)
        reasons = await gap_reasons(services, began_ns)
        used = await cpu_used(services, began_ns)
        await services.end("sampler", signal.SIGKILL)
        await services.end("aggregatord", signal.SIGTERM)
    # Of what it knows a sampler that dies takes at most the ticks that were under way with it.
    assert reasons <= {"AGENT_DOWN", "SAMPLER_LATE", "STREAM_DOWN"}
    rows = await raw(
        tmp_path,
        "SELECT vm_id, count(), uniqExact(seq), min(cpu_ns), max(cpu_ns),"
        " groupArray(seq) FROM raw_samples FINAL GROUP BY vm_id ORDER BY vm_id",
    )
    assert [row[0] for row in rows] == list(VMS)
    assert len(safe) > 10
    for vm_id, count, distinct, first_cpu_ns, last_cpu_ns, numbers in rows:
        assert count == distinct, "no sample is there twice"
        stored = {int(number) for number in numbers}
        assert safe <= stored, "what was acknowledged is there"
        assert last_cpu_ns == counters.cpu_ns
        assert used[vm_id] == last_cpu_ns - first_cpu_ns, "all of it is charged, and once"
