from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest

from ironworks.aggregatord import live
from ironworks.aggregatord.live import Live, LiveSample, grown
from ironworks.aggregatord.types import UsageFilter, UsageRow, VmEpoch
from ironworks.gen.ironworks.aggregatord.v1.usage_pb import Meter
from ironworks.model.errors import InvalidRequest, ResourceExhausted
from ironworks.model.units import MIB, NS_PER_SECOND
from ironworks.runtime.tasks import Tasks
from ironworks.testkit.aggregator import Aggregator
from ironworks.testkit.clock import FakeClock
from ironworks.testkit.metering import window

MINE = UsageFilter(tenant_id="tnt_a")
FIRST = LiveSample(
    tenant_id="tnt_a",
    deployment_id="dep_1",
    key=VmEpoch("vm_1", 1),
    vcpus=2,
    memory_limit_bytes=256 * MIB,
    disk_limit_bytes=MIB,
    at_ns=100 * NS_PER_SECOND,
    readings={"cpu_ns": 10, "memory_bytes": MIB, "disk_read_bytes": 5},
)
SECOND = replace(
    FIRST,
    at_ns=101 * NS_PER_SECOND,
    readings={"cpu_ns": 500, "memory_bytes": MIB, "disk_read_bytes": 3},
)


async def heard(of: Live, chosen: UsageFilter, *reports: LiveSample) -> list[UsageRow]:
    """What a subscriber hears when these are reported, one after the other."""
    rows: list[UsageRow] = []

    async def listen() -> None:
        async with aclosing(of.subscribe(chosen, ())) as news:
            async for some in news:
                rows.extend(some)

    async with Tasks() as tasks:
        task = tasks.start(listen(), name="listen")
        await asyncio.sleep(0)
        for one in reports:
            of.report([one])
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        task.cancel()
    return rows


def test_usage_is_what_counters_have_grown_by() -> None:
    used = grown(FIRST, SECOND)
    assert used[Meter.VCPU_USED] == 490
    assert used[Meter.VCPU_PROVISIONED] == 2 * NS_PER_SECOND
    assert used[Meter.MEMORY_USED] == MIB * NS_PER_SECOND
    assert used[Meter.DISK_READ] == 0, "a counter that went back has not grown"
    assert Meter.NETWORK_IN not in used, "what was not read is not zero"


async def test_whoever_looks_hears_the_next_report() -> None:
    rows = await heard(Live(FakeClock()), MINE, FIRST, SECOND)
    assert {row.meter: row.quantity for row in rows}[Meter.VCPU_USED] == 490
    assert {(row.from_ns, row.to_ns) for row in rows} == {(FIRST.at_ns, SECOND.at_ns)}


@pytest.mark.parametrize(
    "other",
    [
        UsageFilter(tenant_id="tnt_b"),
        UsageFilter(tenant_id="tnt_a", vm_ids=("vm_2",)),
        UsageFilter(tenant_id="tnt_a", deployment_id="dep_2"),
    ],
)
async def test_nobody_hears_what_was_not_asked_for(other: UsageFilter) -> None:
    assert await heard(Live(FakeClock()), other, FIRST, SECOND) == []


async def test_a_vm_is_told_about_at_most_once_a_second() -> None:
    soon = replace(SECOND, at_ns=FIRST.at_ns + NS_PER_SECOND // 2)
    rows = await heard(Live(FakeClock()), MINE, FIRST, soon, SECOND)
    assert {row.from_ns for row in rows} == {FIRST.at_ns}


async def test_a_new_epoch_begins_anew() -> None:
    reborn = replace(SECOND, key=VmEpoch("vm_1", 2), readings={"cpu_ns": 1})
    assert await heard(Live(FakeClock()), MINE, FIRST, reborn) == []


async def test_a_vm_that_nobody_reports_is_told_by_its_windows(made: Aggregator) -> None:
    async with aclosing(made.live.subscribe(MINE, [Meter.VCPU_USED])) as news, Tasks() as tasks:
        task = tasks.start(anext(news), name="listen")
        await asyncio.sleep(0)
        await made.submit([window(range(10))])
        [row] = await task
        assert (row.vm_id, row.quantity) == ("vm_1", 9 * 50_000_000)


def test_reports_are_bounded() -> None:
    of = Live(FakeClock())
    with pytest.raises(InvalidRequest):
        of.report([FIRST] * (live.MAX_VMS_A_REPORT + 1))


async def test_streams_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_SUBSCRIBERS", 1)
    of = Live(FakeClock())
    async with aclosing(of.subscribe(MINE, ())) as first, Tasks() as tasks:
        task = tasks.start(anext(first), name="listen")
        await asyncio.sleep(0)
        assert of.subscriber_count == 1
        with pytest.raises(ResourceExhausted):
            await anext(of.subscribe(MINE, ()))
        task.cancel()
    assert of.subscriber_count == 0


async def test_hosts_report_more_often_while_somebody_looks() -> None:
    of = Live(FakeClock())
    assert of.report([FIRST]) == live.UNWATCHED_MS
    async with aclosing(of.subscribe(MINE, ())) as first, Tasks() as tasks:
        task = tasks.start(anext(first), name="listen")
        await asyncio.sleep(0)
        assert of.report([FIRST]) == live.WATCHED_MS < live.UNWATCHED_MS
        task.cancel()
