"""Proto ↔ types; nothing is decided here but whose data a caller may ask for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, TypeAlias

from connectrpc.request import RequestContext

from ironworks.aggregatord import export, quarantine_store, store
from ironworks.aggregatord.app import MAX_EXPORT_ROWS, MINUTE_NS, Usage
from ironworks.aggregatord.export import unit_of
from ironworks.aggregatord.ingest import Ingest
from ironworks.aggregatord.live import MAX_VMS_A_REPORT, Live, LiveSample
from ironworks.aggregatord.quarantine import Quarantine
from ironworks.aggregatord.quarantine_store import Decision, RowMapping
from ironworks.aggregatord.types import (
    DAY_NS,
    FIVE_MINUTES_NS,
    HOUR_NS,
    READINGS,
    UNITS,
    Interval,
    InvoiceDraft,
    RatedLine,
    UsageFilter,
    UsageRow,
    VmCompleteness,
    VmEpoch,
)
from ironworks.aggregatord.vms import Claim
from ironworks.gen.ironworks.aggregatord.v1 import batch_pb, invoice_pb
from ironworks.gen.ironworks.aggregatord.v1 import usage_pb as pb
from ironworks.gen.ironworks.aggregatord.v1.batch_connect import BatchService
from ironworks.gen.ironworks.aggregatord.v1.invoice_connect import InvoiceService
from ironworks.gen.ironworks.aggregatord.v1.usage_connect import UsageService
from ironworks.gen.ironworks.billaged.v1 import samples_pb
from ironworks.gen.ironworks.common.v1 import common_pb
from ironworks.model.errors import InvalidRequest, NotFound, PermissionDenied
from ironworks.model.ids import check_id
from ironworks.model.pages import encode_token, read_page
from ironworks.runtime.clock import Clock
from ironworks.runtime.identity import current_caller
from ironworks.storage.sql import Database

Context: TypeAlias = RequestContext[Any, Any]
_STEPS = {
    pb.Step.UNSPECIFIED: 0,
    pb.Step.MINUTE: MINUTE_NS,
    pb.Step.HOUR: HOUR_NS,
    pb.Step.DAY: DAY_NS,
    pb.Step.FIVE_MINUTES: FIVE_MINUTES_NS,
}


def tenant_of(asked: str) -> str:
    """The tenant that the caller may ask about: their own, or for operators and services any.

    Raises:
        PermissionDenied: it is another tenant's.
        InvalidRequest: the caller has no tenant of their own and names none.
    """
    caller = current_caller()
    own = caller.tenant_id
    if own is not None and asked in {"", own}:
        return own
    anyone = caller.is_operator or (caller.kind == "service" and own is None)
    if not anyone:
        raise PermissionDenied("This is another tenant's usage.", hint="Leave tenant_id empty.")
    if not asked:
        raise InvalidRequest("tenant_id says whose usage is asked for; it is empty.")
    return asked


def _interval(asked: pb.Interval | None) -> Interval:
    if asked is None:
        raise InvalidRequest("An interval is needed.")
    return Interval(from_ns=asked.from_ns, to_ns=asked.to_ns)


def _filter(asked: pb.UsageFilter | None) -> UsageFilter:
    asked = asked or pb.UsageFilter()
    for vm_id in asked.vm_ids:
        check_id(vm_id, "vm", "A VM's id")
    if asked.deployment_id:
        check_id(asked.deployment_id, "dep", "deployment_id")
    return UsageFilter(
        tenant_id=tenant_of(asked.tenant_id),
        vm_ids=tuple(asked.vm_ids),
        deployment_id=asked.deployment_id,
    )


def _row(row: UsageRow) -> pb.UsageRow:
    return pb.UsageRow(
        interval=pb.Interval(from_ns=row.from_ns, to_ns=row.to_ns),
        tenant_id=row.tenant_id,
        vm_id=row.vm_id,
        meter=row.meter,
        quantity=str(row.quantity),
        unit=unit_of(row.meter),
    )


def _completeness(vms: Sequence[VmCompleteness]) -> pb.Completeness:
    expected, received = sum(one.expected for one in vms), sum(one.received for one in vms)
    return pb.Completeness(
        expected=expected,
        received=received,
        missing=expected - received,
        quarantined=sum(one.quarantined for one in vms),
        partial=sum(one.partial for one in vms),
    )


def _gap_counts(vms: Sequence[VmCompleteness]) -> list[pb.GapCount]:
    counts: dict[int, int] = {}
    for one in vms:
        for reason, samples in one.gaps.items():
            counts[reason] = counts.get(reason, 0) + samples
    return [
        pb.GapCount(reason=samples_pb.GapReason(reason), samples=samples)
        for reason, samples in sorted(counts.items())
    ]


def _quarantined(row: RowMapping) -> batch_pb.QuarantinedWindow:
    return batch_pb.QuarantinedWindow(
        window_id=row["window_id"],
        batch_id=row["batch_id"],
        vm_id=row["vm_id"],
        tenant_id=row["tenant_id"],
        reason=batch_pb.QuarantineReason(row["reason"]),
        detail=row["detail"],
        received_at_ns=row["received_at_ns"],
        state=batch_pb.QuarantineState(row["state"]),
        content_sha256=bytes.fromhex(row["content_sha256"]),
        note=row["note"],
        resolved_by=row["resolved_by"],
        resolved_at_ns=row["resolved_at_ns"],
    )


def _live_sample(host_id: str, vm: batch_pb.LiveVm) -> LiveSample:
    return LiveSample(
        host_id=host_id,
        tenant_id=vm.tenant_id,
        deployment_id=vm.deployment_id,
        key=VmEpoch(vm.vm_id, vm.boot_epoch),
        vcpus=vm.vcpus,
        memory_limit_bytes=vm.memory_limit_bytes,
        disk_limit_bytes=vm.disk_limit_bytes,
        at_ns=vm.at_ns,
        readings={name: getattr(vm, name) for name in READINGS if vm.has_field(name)},
    )


class BatchHandlers(BatchService):
    """Handlers of `ironworks.aggregatord.v1.BatchService`."""

    def __init__(
        self,
        *,
        ingest: Ingest,
        quarantine: Quarantine,
        live: Live,
        database: Database,
        clock: Clock,
    ) -> None:
        self._ingest = ingest
        self._quarantine = quarantine
        self._live = live
        self._database = database
        self._clock = clock

    async def submit_batch(
        self, request: batch_pb.SubmitBatchRequest, ctx: Context, /
    ) -> batch_pb.SubmitBatchResponse:
        """Store a batch."""
        del ctx
        await self._ingest.check_host(current_caller(), request.host_id)
        outcome = await self._ingest.submit(request)
        kinds = batch_pb.BatchOutcome
        return batch_pb.SubmitBatchResponse(
            outcome=kinds.DUPLICATE if outcome.duplicate else kinds.ACCEPTED,
            windows_accepted=len(outcome.accepted),
            windows_duplicate=outcome.windows_duplicate,
            windows_late=outcome.windows_late,
            quarantined=[
                batch_pb.QuarantinedWindow(
                    window_id=one.window.window_id,
                    batch_id=one.batch_id,
                    vm_id=one.window.vm_id,
                    tenant_id=one.window.tenant_id,
                    reason=one.window.finding.reason,
                    detail=one.window.finding.detail,
                    state=batch_pb.QuarantineState.OPEN,
                    content_sha256=one.window.content_sha256,
                )
                for one in outcome.refused
            ],
        )

    async def get_batch(self, request: batch_pb.GetBatchRequest, ctx: Context, /) -> batch_pb.Batch:
        """One entry of the ledger."""
        del ctx
        batch = await self._database.read(lambda c: store.get_batch(c, request.batch_id))
        if batch is None:
            raise NotFound(f"Batch {request.batch_id[:64]} is not in the ledger.")
        return batch_pb.Batch(
            batch_id=batch.batch_id,
            host_id=batch.host_id,
            content_sha256=batch.content_sha256,
            accepted_at_ns=batch.accepted_at_ns,
            windows_accepted=batch.windows_accepted,
            windows_quarantined=batch.windows_quarantined,
            samples_accepted=batch.samples_accepted,
            windows_late=batch.windows_late,
        )

    async def report_live(
        self, request: batch_pb.ReportLiveRequest, ctx: Context, /
    ) -> batch_pb.ReportLiveResponse:
        """Where a host's counters stand."""
        del ctx
        await self._ingest.check_host(current_caller(), request.host_id)
        samples = [
            _live_sample(request.host_id, one) for one in request.vms[: MAX_VMS_A_REPORT + 1]
        ]
        claims = {Claim(one.key.vm_id, one.tenant_id) for one in self._live.new(samples)}
        strangers = (
            await self._ingest.strangers(request.host_id, claims) if claims else set[Claim]()
        )
        next_ms = self._live.report(
            [one for one in samples if Claim(one.key.vm_id, one.tenant_id) not in strangers]
        )
        return batch_pb.ReportLiveResponse(next_after_ms=next_ms)

    async def resolve_quarantined_window(
        self, request: batch_pb.ResolveQuarantinedWindowRequest, ctx: Context, /
    ) -> batch_pb.QuarantinedWindow:
        """Release or reject a window."""
        del ctx
        decision = Decision(
            idempotency_key=request.idempotency_key,
            window_id=request.window_id,
            content_sha256=request.content_sha256,
            state=request.state,
            note=request.note.strip(),
            decided_by=current_caller().subject,
            decided_at_ns=self._clock.now_ns(),
        )
        return _quarantined(await self._quarantine.resolve(decision))

    async def list_quarantined_windows(
        self, request: batch_pb.ListQuarantinedWindowsRequest, ctx: Context, /
    ) -> batch_pb.ListQuarantinedWindowsResponse:
        """What failed validation, newest first."""
        del ctx
        asked = request.page or common_pb.PageRequest()
        filters = (request.tenant_id, request.vm_id, int(request.state))
        page = read_page(asked.page_size, asked.page_token, filters)
        rows = await self._database.read(lambda c: quarantine_store.quarantined(c, *filters, page))
        token = ""
        if len(rows) > page.size:
            last = rows[page.size - 1]
            after = (last["received_at_ns"], last["window_id"], last["content_sha256"])
            token = encode_token(after, filters)
        return batch_pb.ListQuarantinedWindowsResponse(
            windows=[_quarantined(row) for row in rows[: page.size]],
            page=common_pb.PageInfo(next_page_token=token),
        )


class UsageHandlers(UsageService):
    """Handlers of `ironworks.aggregatord.v1.UsageService`."""

    def __init__(self, usage: Usage, live: Live) -> None:
        self._usage = usage
        self._live = live

    async def get_usage(self, request: pb.GetUsageRequest, ctx: Context, /) -> pb.GetUsageResponse:
        """Quantities."""
        del ctx
        chosen, interval = _filter(request.filter), _interval(request.interval)
        rows = await self._usage.usage(
            chosen,
            interval,
            step_ns=_STEPS[request.step],
            by_vm=request.by_vm,
            meters=request.filter.meters if request.filter else (),
        )
        return pb.GetUsageResponse(
            rows=[_row(row) for row in rows],
            completeness=_completeness(await self._usage.completeness(chosen, interval)),
        )

    async def get_completeness(
        self, request: pb.GetCompletenessRequest, ctx: Context, /
    ) -> pb.GetCompletenessResponse:
        """Samples expected, received, missing."""
        del ctx
        vms = await self._usage.completeness(_filter(request.filter), _interval(request.interval))
        return pb.GetCompletenessResponse(
            total=_completeness(vms),
            gaps=_gap_counts(vms),
            vms=[
                pb.VmCompleteness(
                    vm_id=one.vm_id,
                    completeness=_completeness([one]),
                    gaps=_gap_counts([one]),
                    watermark_ns=one.watermark_ns,
                )
                for one in vms[:1000]
            ],
        )

    async def list_gaps(self, request: pb.ListGapsRequest, ctx: Context, /) -> pb.ListGapsResponse:
        """Missing intervals."""
        del ctx
        chosen, interval = _filter(request.filter), _interval(request.interval)
        asked = request.page or common_pb.PageRequest()
        filters = (chosen, interval)
        page = read_page(asked.page_size, asked.page_token, filters)
        after = ("", 0, 0)
        if page.after:
            vm_id, epoch, seq = page.after
            after = (str(vm_id), int(epoch), int(seq))
        gaps = await self._usage.gaps(chosen, interval, page.size, after)
        token = ""
        if len(gaps) > page.size:
            last = gaps[page.size - 1]
            token = encode_token((*last.key, last.first_seq), filters)
        return pb.ListGapsResponse(
            gaps=[
                pb.UsageGap(
                    gap=samples_pb.Gap(
                        vm_id=gap.key.vm_id,
                        boot_epoch=gap.key.boot_epoch,
                        first_seq=gap.first_seq,
                        last_seq=gap.last_seq,
                        reason=samples_pb.GapReason(gap.reason),
                    ),
                    interval=pb.Interval(from_ns=gap.start_at_ns, to_ns=gap.end_at_ns),
                )
                for gap in gaps[: page.size]
            ],
            page=common_pb.PageInfo(next_page_token=token),
        )

    async def stream_usage(
        self, request: pb.StreamUsageRequest, ctx: Context, /
    ) -> AsyncIterator[pb.StreamUsageResponse]:
        """Usage as it comes in."""
        del ctx
        chosen = _filter(request.filter)
        meters = request.filter.meters if request.filter else ()
        if not set(meters) <= set(UNITS):
            raise InvalidRequest("One of the meters is not counted as it comes.")
        async with aclosing(self._live.subscribe(chosen, meters)) as news:
            async for rows in news:
                yield pb.StreamUsageResponse(rows=[_row(row) for row in rows])

    async def export_usage(
        self, request: pb.ExportUsageRequest, ctx: Context, /
    ) -> AsyncIterator[pb.ExportUsageResponse]:
        """Usage as a file."""
        del ctx
        if request.format not in {pb.ExportFormat.CSV, pb.ExportFormat.PARQUET}:
            raise InvalidRequest("The format of the file is CSV or PARQUET.")
        rows = await self._usage.usage(
            _filter(request.filter),
            _interval(request.interval),
            step_ns=_STEPS[request.step],
            by_vm=request.by_vm,
            meters=request.filter.meters if request.filter else (),
            limit=MAX_EXPORT_ROWS,
        )
        file = export.chunks(rows, request.format)
        while chunk := await asyncio.to_thread(next, file, b""):
            yield pb.ExportUsageResponse(chunk=chunk)

    async def recompute_usage(
        self, request: pb.RecomputeUsageRequest, ctx: Context, /
    ) -> pb.RecomputeUsageResponse:
        """Compute rollups anew."""
        del ctx
        hours = await self._usage.recompute(request.tenant_id, _interval(request.interval))
        return pb.RecomputeUsageResponse(hours=hours)

    async def list_adjustments(
        self, request: pb.ListAdjustmentsRequest, ctx: Context, /
    ) -> pb.ListAdjustmentsResponse:
        """What came after its day was settled."""
        del ctx
        chosen, interval = _filter(request.filter), _interval(request.interval)
        asked = request.page or common_pb.PageRequest()
        filters = (chosen, interval)
        page = read_page(asked.page_size, asked.page_token, filters)
        after = (-1, "", 0, 0)
        if page.after:
            day_ns, vm_id, epoch, meter = page.after
            after = (int(day_ns), str(vm_id), int(epoch), int(meter))
        found = await self._usage.adjustments(chosen, interval, page.size, after)
        token = ""
        if len(found) > page.size:
            last = found[page.size - 1]
            token = encode_token((last.day_ns, *last.key, int(last.meter)), filters)
        return pb.ListAdjustmentsResponse(
            adjustments=[
                pb.Adjustment(
                    interval=pb.Interval(from_ns=one.day_ns, to_ns=one.day_ns + DAY_NS),
                    tenant_id=one.tenant_id,
                    vm_id=one.key.vm_id,
                    boot_epoch=one.key.boot_epoch,
                    meter=one.meter,
                    settled_quantity=str(one.settled),
                    adjustment=str(one.adjustment),
                    unit=UNITS[one.meter],
                    adjusted_at_ns=one.adjusted_at_ns,
                )
                for one in found[: page.size]
            ],
            page=common_pb.PageInfo(next_page_token=token),
        )


class InvoiceHandlers(InvoiceService):
    """Handlers of `ironworks.aggregatord.v1.InvoiceService`."""

    def __init__(self, usage: Usage) -> None:
        self._usage = usage

    async def preview_invoice(
        self, request: invoice_pb.PreviewInvoiceRequest, ctx: Context, /
    ) -> invoice_pb.Invoice:
        """A draft for any interval."""
        del ctx
        chosen = UsageFilter(tenant_id=tenant_of(request.tenant_id), vm_ids=tuple(request.vm_ids))
        draft = await self._usage.preview(chosen, _interval(request.interval), by_vm=request.by_vm)
        return _invoice(draft)


def _money(nanos: int, currency: str) -> common_pb.Money:
    return common_pb.Money(nanos=nanos, currency=currency)


def _line(line: RatedLine) -> invoice_pb.InvoiceLine:
    charge = line.charge
    return invoice_pb.InvoiceLine(
        kind=invoice_pb.InvoiceLineKind.USAGE,
        meter=charge.price.meter,
        vm_id=charge.vm_id,
        quantity=str(charge.quantity),
        unit=UNITS[charge.price.meter],
        unit_price_nanos=charge.price.nanos,
        per_quantity=str(charge.price.per_quantity),
        unit_name=charge.price.unit_name,
        amount=_money(line.amount_nanos, charge.version.currency),
        price_version_id=charge.version.price_version_id,
        price_version=charge.version.version,
        interval=pb.Interval(from_ns=charge.interval.from_ns, to_ns=charge.interval.to_ns),
        description=charge.price.meter.name.replace("_", " ").lower(),
    )


def _invoice(draft: InvoiceDraft) -> invoice_pb.Invoice:
    return invoice_pb.Invoice(
        tenant_id=draft.tenant_id,
        interval=pb.Interval(from_ns=draft.interval.from_ns, to_ns=draft.interval.to_ns),
        state=invoice_pb.InvoiceState.DRAFT,
        lines=[_line(line) for line in draft.lines],
        subtotal=_money(draft.total_nanos, draft.currency),
        total=_money(draft.total_nanos, draft.currency),
        completeness=_completeness(draft.completeness),
        computed_at_ns=draft.computed_at_ns,
        price_plan_name=draft.plan_name,
    )
