"""Usage."""

from __future__ import annotations

from ironworks.gen.ironworks.aggregatord.v1 import usage_pb
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
