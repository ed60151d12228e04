"""Invoices."""

from __future__ import annotations

from ironworks.gen.ironworks.aggregatord.v1 import invoice_pb, usage_pb
from ironworks.sdk import AsyncIronworks
from ironworks.testkit.fakeapi import FakeApi


async def test_preview_get_and_list(api: FakeApi, client: AsyncIronworks) -> None:
    draft = await client.invoices.preview(from_ns=1, to_ns=2, by_vm=True, vm_ids=["vm_a"])
    assert draft.total is not None
    assert draft.total.nanos == 1_234_000
    assert api.asked["PreviewInvoice"][-1] == invoice_pb.PreviewInvoiceRequest(
        interval=usage_pb.Interval(from_ns=1, to_ns=2), by_vm=True, vm_ids=["vm_a"]
    )
    assert (await client.invoices.get("inv_x")).invoice_id == "inv_x"
    assert [one.number for one in await client.invoices.list(tenant_id="tnt_a")] == ["1"]
