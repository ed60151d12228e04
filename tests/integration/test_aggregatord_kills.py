"""aggregatord killed at any moment: what it acknowledged is there, once; the rest comes again."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import numpy as np
import pytest

from ironworks.gen.ironworks.aggregatord.v1 import batch_pb, usage_pb
from ironworks.gen.ironworks.aggregatord.v1.batch_connect import BatchServiceClient
from ironworks.gen.ironworks.aggregatord.v1.usage_connect import UsageServiceClient
from ironworks.model.errors import IronError
from ironworks.model.units import NS_PER_SECOND
from ironworks.runtime.clock import SystemClock
from ironworks.storage.clickhouse import ChdbEngine
from ironworks.testkit.metering import batch, reading, window
from ironworks.testkit.services import Services, running

CLOCK = SystemClock()
WINDOW_TICKS = 600
VMS = 8
MINUTE_NS = 60 * NS_PER_SECOND


def minute(number: int, start_at_ns: int) -> batch_pb.SubmitBatchRequest:
    """A minute of all VMs, always the same."""
    seq = range(number * WINDOW_TICKS, (number + 1) * WINDOW_TICKS)
    windows = [window(seq, vm_id=f"vm_{vm}", start_at_ns=start_at_ns) for vm in range(VMS)]
    return batch(windows)


async def submit_through_a_kill(
    on: Services, requests: list[batch_pb.SubmitBatchRequest], delay_seconds: float
) -> int:
    """Submit until the service dies after some time; answers how many were acknowledged."""
    client = on.clients("billaged").of(BatchServiceClient, "aggregatord", timeout_seconds=30)

    async def kill() -> None:
        await asyncio.sleep(delay_seconds)
        await on.end("aggregatord", signal.SIGKILL)

    acknowledged = 0
    async with asyncio.TaskGroup() as group:
        killing = group.create_task(kill())
        for request in requests:
            try:
                await client.submit_batch(request)
            except (IronError, OSError):
                break
            acknowledged += 1
        await killing
    return acknowledged


@pytest.mark.timeout(7200)
async def test_kills_lose_and_double_nothing(tmp_path: Path, thorough: bool) -> None:
    kills = 75 if thorough else 3
    chance = np.random.default_rng(kills)
    start_at_ns = CLOCK.now_ns() // MINUTE_NS * MINUTE_NS - 3 * 24 * 60 * MINUTE_NS
    done = 0
    async with running(tmp_path, ["aggregatord"]) as on:
        for number in range(kills):
            requests = [minute(done + ahead, start_at_ns) for ahead in range(20)]
            done += await submit_through_a_kill(on, requests, chance.uniform(0.0, 0.4))
            # Every third time the store is asked before what was not acknowledged comes again.
            await on.start("aggregatord")
            if number % 3 == 0:
                await check(on, start_at_ns, done, exactly=False)
        client = on.clients("billaged").of(BatchServiceClient, "aggregatord")
        for again in (done - 1, done):
            await client.submit_batch(minute(again, start_at_ns))
        await check(on, start_at_ns, done + 1, exactly=True)
        await on.end("aggregatord", signal.SIGTERM)
    engine = ChdbEngine(tmp_path / "aggregatord" / "usage")
    await engine.open()
    rows = await engine.rows("SELECT count(), uniqExact(vm_id, seq) FROM raw_samples FINAL")
    await engine.close()
    assert rows == [[VMS * WINDOW_TICKS * (done + 1)] * 2]


async def check(on: Services, start_at_ns: int, minutes: int, *, exactly: bool) -> None:
    """All acknowledged minutes are there, whole; one more may be, that was not acknowledged."""
    client = on.clients("gatewayd").of(
        UsageServiceClient, "aggregatord", tenant_id="tnt_a", timeout_seconds=120
    )
    end_ns = start_at_ns + (minutes + 2) * MINUTE_NS
    answer = await client.get_usage(
        usage_pb.GetUsageRequest(
            interval=usage_pb.Interval(from_ns=start_at_ns, to_ns=end_ns), by_vm=True
        )
    )
    used = {
        row.vm_id: int(row.quantity) for row in answer.rows if row.meter == usage_pb.Meter.VCPU_USED
    }
    allowed = {
        reading("cpu_ns", (minutes + more) * WINDOW_TICKS - 1)
        for more in ((0,) if exactly else (0, 1))
    }
    assert minutes == 0 or set(used.values()) <= allowed
    assert minutes == 0 or len(used) == VMS
