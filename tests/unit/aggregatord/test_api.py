from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import pytest

from ironworks.aggregatord import api
from ironworks.aggregatord.live import LiveSample
from ironworks.aggregatord.types import DAY_NS, UNITS, VmEpoch
from ironworks.gen.ironworks.aggregatord.v1 import batch_pb, invoice_pb
from ironworks.gen.ironworks.aggregatord.v1 import usage_pb as pb
from ironworks.gen.ironworks.billaged.v1.samples_pb import GapReason
from ironworks.gen.ironworks.common.v1 import common_pb
from ironworks.model.errors import InvalidRequest, NotFound, PermissionDenied
from ironworks.runtime.identity import Caller
from ironworks.runtime.identity.caller import caller_var
from ironworks.runtime.tasks import Tasks
from ironworks.testkit.aggregator import Aggregator
from ironworks.testkit.metering import EPOCH_AT_NS, batch, window

CTX = cast("Any", None)
START_NS = EPOCH_AT_NS // DAY_NS * DAY_NS
DAY = pb.Interval(from_ns=START_NS, to_ns=START_NS + DAY_NS)
OWNER = Caller(kind="user", subject="key_1", tenant_id="tnt_a", roles=frozenset({"owner"}))
OPERATOR = Caller(kind="user", subject="op", roles=frozenset({"operator"}))
GATEWAY = Caller(kind="service", subject="gatewayd")


@pytest.fixture(autouse=True)
def caller() -> Iterator[None]:
    token = caller_var.set(OWNER)
    yield
    caller_var.reset(token)


def test_users_see_their_own_tenant_and_no_other() -> None:
    assert api.tenant_of("") == "tnt_a"
    assert api.tenant_of("tnt_a") == "tnt_a"
    with pytest.raises(PermissionDenied):
        api.tenant_of("tnt_b")


def test_a_service_that_acts_for_a_tenant_sees_only_that_one() -> None:
    caller_var.set(Caller(kind="service", subject="gatewayd", tenant_id="tnt_a"))
    assert api.tenant_of("") == "tnt_a"
    with pytest.raises(PermissionDenied):
        api.tenant_of("tnt_b")


@pytest.mark.parametrize("who", [OPERATOR, GATEWAY])
def test_the_platform_must_say_whom_it_asks_about(who: Caller) -> None:
    caller_var.set(who)
    assert api.tenant_of("tnt_b") == "tnt_b"
    with pytest.raises(InvalidRequest):
        api.tenant_of("")


def test_a_user_without_tenant_sees_nothing() -> None:
    caller_var.set(Caller(kind="user", subject="x", roles=frozenset({"owner"})))
    with pytest.raises(PermissionDenied):
        api.tenant_of("tnt_b")


async def test_usage_on_the_wire_is_exact_decimal(made: Aggregator) -> None:
    served = api.UsageHandlers(made.usage, made.live)
    await made.submit([window(range(600)), window(range(600), vm_id="vm_9", tenant_id="tnt_b")])
    answer = await served.get_usage(
        pb.GetUsageRequest(
            filter=pb.UsageFilter(meters=[pb.Meter.MEMORY_PROVISIONED]), interval=DAY, by_vm=True
        ),
        CTX,
    )
    [row] = answer.rows
    assert (row.vm_id, row.tenant_id, row.unit) == ("vm_1", "tnt_a", pb.Unit.BYTE_NANOSECOND)
    assert int(row.quantity) == 256 * 2**20 * 599 * 100_000_000 > 2**63
    assert answer.completeness is not None
    assert (answer.completeness.expected, answer.completeness.missing) == (600, 0)
    with pytest.raises(InvalidRequest):
        await served.get_usage(pb.GetUsageRequest(), CTX)


async def test_completeness_and_gaps_come_in_pages(made: Aggregator) -> None:
    served = api.UsageHandlers(made.usage, made.live)
    late = GapReason.SAMPLER_LATE
    await made.submit([window([0, 2, 4, 6], gaps=[(1, 1, late), (3, 3, late), (5, 5, late)])])
    whole = await served.get_completeness(pb.GetCompletenessRequest(interval=DAY), CTX)
    assert whole.total is not None
    assert (whole.total.expected, whole.total.received, whole.total.missing) == (7, 4, 3)
    assert [(one.reason, one.samples) for one in whole.gaps] == [(late, 3)]
    assert [one.vm_id for one in whole.vms] == ["vm_1"]
    seen: list[int] = []
    token = ""
    while True:
        page = common_pb.PageRequest(page_size=2, page_token=token)
        answer = await served.list_gaps(pb.ListGapsRequest(interval=DAY, page=page), CTX)
        seen += [one.gap.first_seq for one in answer.gaps if one.gap]
        token = answer.page.next_page_token if answer.page else ""
        if not token:
            break
    assert seen == [1, 3, 5]


async def test_an_invoice_on_the_wire_explains_each_amount(made: Aggregator) -> None:
    await made.submit([window(range(600))])
    served = api.InvoiceHandlers(made.usage)
    invoice = await served.preview_invoice(
        invoice_pb.PreviewInvoiceRequest(interval=DAY, by_vm=True), CTX
    )
    assert invoice.state is invoice_pb.InvoiceState.DRAFT
    assert invoice.total is not None
    assert invoice.total.currency == "USD"
    amounts = [line.amount.nanos for line in invoice.lines if line.amount]
    assert sum(amounts) == invoice.total.nanos > 0
    vcpu = invoice.lines[0]
    assert (vcpu.meter, vcpu.vm_id, vcpu.unit_name) == (
        pb.Meter.VCPU_PROVISIONED,
        "vm_1",
        "vCPU-hour",
    )
    exact = int(vcpu.quantity) * vcpu.unit_price_nanos / int(vcpu.per_quantity)
    assert vcpu.amount is not None
    assert abs(vcpu.amount.nanos - exact) < 1
    assert (vcpu.price_version, invoice.price_plan_name) == (1, "default")


async def test_batches_and_what_of_them_is_quarantined(made: Aggregator) -> None:
    served = made.batches
    false = [
        window(range(20), vm_id=f"vm_x{one}", values={"cpu_ns": [n * 10**12 for n in range(20)]})
        for one in range(3)
    ]
    caller_var.set(Caller(kind="service", subject="billaged"))
    request = batch([window(range(5)), *false])
    answer = await served.submit_batch(request, CTX)
    assert (answer.outcome, answer.windows_accepted) == (batch_pb.BatchOutcome.ACCEPTED, 1)
    assert {one.reason for one in answer.quarantined} == {batch_pb.QuarantineReason.CPU_EXCEEDED}
    again = await served.submit_batch(request, CTX)
    assert again.outcome is batch_pb.BatchOutcome.DUPLICATE
    stored = await served.get_batch(batch_pb.GetBatchRequest(batch_id=request.batch_id), CTX)
    assert (stored.windows_accepted, stored.windows_quarantined) == (1, 3)
    assert stored.content_sha256 == request.content_sha256
    with pytest.raises(NotFound):
        await served.get_batch(batch_pb.GetBatchRequest(batch_id="bat_x"), CTX)
    seen: list[str] = []
    token = ""
    while True:
        page = common_pb.PageRequest(page_size=2, page_token=token)
        listed = await served.list_quarantined_windows(
            batch_pb.ListQuarantinedWindowsRequest(page=page, tenant_id="tnt_a"), CTX
        )
        seen += [one.vm_id for one in listed.windows]
        token = listed.page.next_page_token if listed.page else ""
        if not token:
            break
    assert sorted(seen) == ["vm_x0", "vm_x1", "vm_x2"]


async def test_a_decision_names_the_operator_who_took_it(made: Aggregator) -> None:
    await made.submit([window(range(5), values={"cpu_ns": [n * 10**12 for n in range(5)]})])
    caller_var.set(OPERATOR)
    resolved = await made.batches.resolve_quarantined_window(
        batch_pb.ResolveQuarantinedWindowRequest(
            window_id="win_vm_1_1_0",
            state=batch_pb.QuarantineState.REJECTED,
            note=" a test ",
            idempotency_key="k",
        ),
        CTX,
    )
    assert (resolved.resolved_by, resolved.note) == ("op", "a test")
    assert resolved.state is batch_pb.QuarantineState.REJECTED


async def test_live_samples_reach_the_stream_of_their_tenant(made: Aggregator) -> None:
    served = api.UsageHandlers(made.usage, made.live)

    def vm(seconds: int, cpu_ns: int) -> batch_pb.LiveVm:
        at_ns = EPOCH_AT_NS + seconds * 10**9
        return batch_pb.LiveVm(
            vm_id="vm_1", tenant_id="tnt_a", vcpus=1, at_ns=at_ns, seq=seconds, cpu_ns=cpu_ns
        )

    async with Tasks() as tasks:
        stream = served.stream_usage(pb.StreamUsageRequest(), CTX)

        async def listen() -> pb.StreamUsageResponse:
            return await anext(stream)

        first = tasks.start(listen(), name="listen")
        await asyncio.sleep(0)
        caller_var.set(Caller(kind="service", subject="billaged"))
        for report in (vm(0, 5), vm(1, 12)):
            request = batch_pb.ReportLiveRequest(host_id="hst_test", vms=[report])
            answer = await made.batches.report_live(request, CTX)
            assert 0 < answer.next_after_ms <= 1500
        rows = (await first).rows
    assert {row.meter: row.quantity for row in rows} == {
        pb.Meter.VCPU_PROVISIONED: str(10**9),
        pb.Meter.VCPU_USED: "7",
    }
    with pytest.raises(PermissionDenied):
        await made.batches.report_live(batch_pb.ReportLiveRequest(host_id="hst_b"), CTX)


async def test_a_vm_that_is_another_tenant_s_is_not_shown_live(made: Aggregator) -> None:
    await made.submit([window(range(3), tenant_id="tnt_b")])
    caller_var.set(Caller(kind="service", subject="billaged"))
    for seconds in range(2):
        reports = [
            batch_pb.LiveVm(
                vm_id=vm_id,
                tenant_id="tnt_a",
                vcpus=1,
                at_ns=EPOCH_AT_NS + seconds * 10**9,
                seq=seconds,
                cpu_ns=seconds,
            )
            for vm_id in ("vm_1", "vm_2")
        ]
        await made.batches.report_live(
            batch_pb.ReportLiveRequest(host_id="hst_test", vms=reports), CTX
        )
    sample = LiveSample(
        host_id="hst_test",
        tenant_id="tnt_a",
        deployment_id="",
        key=VmEpoch("vm_1", 0),
        vcpus=1,
        memory_limit_bytes=0,
        disk_limit_bytes=0,
        at_ns=0,
        readings={},
    )
    other = replace(sample, key=VmEpoch("vm_2", 0))
    assert made.live.new([sample, other]) == [sample], "vm_2 is shown, and vm_1 is not"


@pytest.mark.parametrize("kind", [pb.ExportFormat.CSV, pb.ExportFormat.PARQUET])
async def test_an_export_is_a_file_of_the_tenant_s_own_rows(
    made: Aggregator, kind: pb.ExportFormat
) -> None:
    served = api.UsageHandlers(made.usage, made.live)
    await made.submit([window(range(600)), window(range(600), vm_id="vm_9", tenant_id="tnt_b")])
    request = pb.ExportUsageRequest(interval=DAY, by_vm=True, format=kind)
    chunks = [one.chunk async for one in served.export_usage(request, CTX)]
    file = b"".join(chunks)
    assert file.startswith(b"from," if kind == pb.ExportFormat.CSV else b"PAR1")
    assert b"vm_1" in file
    assert b"vm_9" not in file
    with pytest.raises(InvalidRequest, match="format"):
        await anext(served.export_usage(pb.ExportUsageRequest(interval=DAY), CTX))


async def test_adjustments_come_in_pages(made: Aggregator) -> None:
    served = api.UsageHandlers(made.usage, made.live)
    await made.clock.advance(4 * 86_400)
    await made.submit([window(range(600))])
    seen: list[pb.Meter] = []
    token = ""
    while True:
        page = common_pb.PageRequest(page_size=4, page_token=token)
        request = pb.ListAdjustmentsRequest(interval=DAY, page=page)
        answer = await served.list_adjustments(request, CTX)
        seen += [one.meter for one in answer.adjustments]
        assert {one.settled_quantity for one in answer.adjustments} == {"0"}
        token = answer.page.next_page_token if answer.page else ""
        if not token:
            break
    assert seen == sorted(set(seen))
    assert len(seen) == len(UNITS)


@pytest.mark.parametrize(
    "nonsense", [pb.UsageFilter(vm_ids=["vm_x"]), pb.UsageFilter(deployment_id="web")]
)
async def test_what_is_no_id_is_refused(made: Aggregator, nonsense: pb.UsageFilter) -> None:
    served = api.UsageHandlers(made.usage, made.live)
    with pytest.raises(InvalidRequest, match="is not an id"):
        await served.get_usage(pb.GetUsageRequest(filter=nonsense, interval=DAY), CTX)
    with pytest.raises(InvalidRequest, match="is not an id"):
        await anext(served.stream_usage(pb.StreamUsageRequest(filter=nonsense), CTX))
    burst = pb.UsageFilter(meters=[pb.Meter.NETWORK_OUT_P95])
    with pytest.raises(InvalidRequest, match="as it comes"):
        await anext(served.stream_usage(pb.StreamUsageRequest(filter=burst), CTX))
