"""Usage."""

from __future__ import annotations

from ironworks.gen.ironworks.aggregatord.v1 import batch_pb, usage_pb
from ironworks.sdk import AsyncIronworks
from ironworks.testkit.fakeapi import FakeApi


async def test_usage_and_completeness(api: FakeApi, client: AsyncIronworks) -> None:
    meters = [usage_pb.Meter.VCPU_USED]
    answer = await client.usage.get(
        from_ns=1, to_ns=2, step=usage_pb.Step.HOUR, by_vm=True, vm_ids=["vm_a"], meters=meters
    )
    assert answer.rows[0].quantity == "5000000000"
    request = api.asked["GetUsage"][-1]
    assert request == usage_pb.GetUsageRequest(
        filter=usage_pb.UsageFilter(vm_ids=["vm_a"], meters=meters),
        interval=usage_pb.Interval(from_ns=1, to_ns=2),
        step=usage_pb.Step.HOUR,
        by_vm=True,
    )
    known = await client.usage.completeness(from_ns=1, to_ns=2, tenant_id="tnt_a")
    assert known.total is not None
    assert known.total.missing == 10


async def test_gaps_and_adjustments_come_in_pages(api: FakeApi, client: AsyncIronworks) -> None:
    gaps = await client.usage.gaps(from_ns=1, to_ns=2, vm_ids=["vm_a"], page_size=5)
    assert [one.gap.first_seq for one in gaps.gaps if one.gap] == [3]
    request = api.asked["ListGaps"][-1]
    assert isinstance(request, usage_pb.ListGapsRequest)
    assert request.page is not None
    assert request.page.page_size == 5
    found = await client.usage.adjustments(from_ns=1, to_ns=2)
    assert [one.adjustment for one in found.adjustments] == ["2"]


async def test_usage_is_watched(api: FakeApi, client: AsyncIronworks) -> None:
    rows = [row async for row in client.usage.watch(deployment_id="dep_1")]
    assert [row.quantity for row in rows] == ["7000000000"] * 2
    request = api.asked["StreamUsage"][-1]
    assert request == usage_pb.StreamUsageRequest(
        filter=usage_pb.UsageFilter(deployment_id="dep_1")
    )


async def test_a_file_comes_in_chunks(api: FakeApi, client: AsyncIronworks) -> None:
    chunks = client.usage.export(
        from_ns=1, to_ns=2, by_vm=True, file_format=usage_pb.ExportFormat.CSV
    )
    assert b"".join([chunk async for chunk in chunks]) == b"from,to\r\n1,2\r\n"
    request = api.asked["ExportUsage"][-1]
    assert isinstance(request, usage_pb.ExportUsageRequest)
    assert request.format is usage_pb.ExportFormat.CSV


async def test_the_quarantine_is_read_and_decided_about(
    api: FakeApi, client: AsyncIronworks
) -> None:
    found = await client.usage.quarantined(vm_id="vm_a")
    assert [one.window_id for one in found] == ["win_a", "win_a"]
    rejected = batch_pb.QuarantineState.REJECTED
    done = await client.usage.resolve("win_a", rejected, note="no")
    assert (done.state, done.note) == (rejected, "no")
    request = api.asked["ResolveQuarantinedWindow"][-1]
    assert isinstance(request, batch_pb.ResolveQuarantinedWindowRequest)
    assert request.idempotency_key
