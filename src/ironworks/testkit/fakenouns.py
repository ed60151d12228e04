"""The fake API's VMs, builds, assets, usage and invoices: one of each, always the same."""

# ruff: noqa: ARG002 - every handler is given a context, and few need it

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Any, Protocol

from protobuf import Message

from ironworks.gen.ironworks.aggregatord.v1 import batch_pb, invoice_pb, usage_pb
from ironworks.gen.ironworks.aggregatord.v1.batch_connect import (
    BatchService,
    BatchServiceASGIApplication,
)
from ironworks.gen.ironworks.aggregatord.v1.invoice_connect import (
    InvoiceService,
    InvoiceServiceASGIApplication,
)
from ironworks.gen.ironworks.aggregatord.v1.usage_connect import (
    UsageService,
    UsageServiceASGIApplication,
)
from ironworks.gen.ironworks.assetmanagerd.v1 import asset_pb
from ironworks.gen.ironworks.assetmanagerd.v1.asset_connect import (
    AssetService,
    AssetServiceASGIApplication,
)
from ironworks.gen.ironworks.billaged.v1 import samples_pb
from ironworks.gen.ironworks.builderd.v1 import build_pb
from ironworks.gen.ironworks.builderd.v1.build_connect import BuildServiceASGIApplication
from ironworks.gen.ironworks.common.v1 import common_pb
from ironworks.gen.ironworks.metald.v1 import vm_pb
from ironworks.gen.ironworks.metald.v1.host_connect import HostServiceASGIApplication
from ironworks.gen.ironworks.metald.v1.vm_connect import VmServiceASGIApplication
from ironworks.model.errors import FailedPrecondition, InvalidRequest, NotFound
from ironworks.model.ids import derived_id
from ironworks.model.units import MIB, NS_PER_SECOND
from ironworks.testkit.fakebuilds import FakeBuilds
from ironworks.testkit.fakevms import FakeHost, SteeredVms

VM_ID, BUILD_ID, ASSET_ID = (derived_id(kind, "fake") for kind in ("vm", "bld", "ast"))
CONSOLE = (b"Linux version 6.1\r\n", b"\x1b]0;owned\x07ready\r\n")
LOG_LINES = ("resolving oci:/x", "writing squashfs", "done")
_AT_NS = 1_795_433_424 * NS_PER_SECOND


class Asked(Protocol):
    """Where calls are noted."""

    damage: str
    """What is wrong with the asset's bytes."""

    def ask(self, method: str, request: Message[Any], *, after: bool = False) -> None:
        """Note a call; raise what was ordered."""
        ...


class _Handlers:
    def __init__(self, api: Asked) -> None:
        self._api = api


def _known(given: str, known: str, kind: str) -> None:
    if given != known:
        raise NotFound(f"There is no {kind} {given}.")


def _vm_network() -> vm_pb.VmNetworkSpec:
    tcp = vm_pb.TransportProtocol.TCP
    return vm_pb.VmNetworkSpec(
        egress=[vm_pb.EgressRule(cidr="203.0.113.0/24", first_port=80, last_port=90, protocol=tcp)],
        published_ports=[vm_pb.PublishedPort(host_port=40_000, guest_port=80, protocol=tcp)],
    )


class _Vms(_Handlers, SteeredVms):
    async def get_vm(self, request: vm_pb.GetVmRequest, ctx: Any) -> vm_pb.Vm:
        self._api.ask("GetVm", request)
        _known(request.vm_id, VM_ID, "VM")
        return vm_pb.Vm(
            id=VM_ID,
            spec=vm_pb.VmSpec(name="web-0", vcpus=2, memory_bytes=256 * MIB, network=_vm_network()),
            state=vm_pb.VmState.RUNNING,
            driver="qemu",
            accel="tcg",
            boot_epoch=1,
            network=vm_pb.VmNetwork(
                fabric_address="198.18.0.2", published_ports=_vm_network().published_ports
            ),
            timings=[vm_pb.StepTiming(step="vmm.spawn", duration_ns=45_000_000)],
            history=[vm_pb.VmTransition(to=vm_pb.VmState.RUNNING, at_ns=_AT_NS, reason="ready")],
            drift=["Its tap is gone."],
            exit=vm_pb.VmExit(
                kind=vm_pb.VmExitKind.WORKLOAD,
                sentence="The application exited with status 3.",
                workload_status=3,
                vmm_status=0,
                console_tail=["no such table"],
                at_ns=_AT_NS,
            ),
            created_at_ns=_AT_NS,
        )

    async def list_vms(self, request: vm_pb.ListVmsRequest, ctx: Any) -> vm_pb.ListVmsResponse:
        self._api.ask("ListVms", request)
        vm = await self.get_vm(vm_pb.GetVmRequest(vm_id=VM_ID), ctx)
        return vm_pb.ListVmsResponse(vms=[vm])

    async def get_vm_network_stats(
        self, request: vm_pb.GetVmNetworkStatsRequest, ctx: Any
    ) -> vm_pb.GetVmNetworkStatsResponse:
        del ctx
        self._api.ask("GetVmNetworkStats", request)
        refused = vm_pb.DeniedTraffic(rule="egress", packets=7, bytes=420)
        return vm_pb.GetVmNetworkStatsResponse(in_bytes=2048, out_bytes=1024, denied=[refused])

    async def stream_console(
        self, request: vm_pb.StreamConsoleRequest, ctx: Any
    ) -> AsyncIterator[vm_pb.StreamConsoleResponse]:
        self._api.ask("StreamConsole", request)
        _known(request.vm_id, VM_ID, "VM")
        for piece in CONSOLE:
            yield vm_pb.StreamConsoleResponse(data=piece)


class _Builds(FakeBuilds):
    async def get_build(
        self, request: build_pb.GetBuildRequest, ctx: Any
    ) -> build_pb.GetBuildResponse:
        self._api.ask("GetBuild", request)
        if request.build_id in self.made:
            return build_pb.GetBuildResponse(build=self.made[request.build_id])
        _known(request.build_id, BUILD_ID, "build")
        stage = build_pb.BuildStage(
            state=build_pb.BuildState.BUILDING,
            started_at_ns=_AT_NS,
            ended_at_ns=_AT_NS + 600_000_000,
        )
        return build_pb.GetBuildResponse(
            build=build_pb.Build(
                build_id=BUILD_ID,
                image="oci:/x",
                state=build_pb.BuildState.COMPLETED,
                stages=[stage],
                result=build_pb.BuildResult(
                    asset_id=ASSET_ID,
                    size_bytes=80 * MIB,
                    unpacked_bytes=190 * MIB,
                    file_count=4321,
                    layer_count=5,
                ),
                created_at_ns=_AT_NS,
                ended_at_ns=_AT_NS + NS_PER_SECOND,
            )
        )

    async def list_builds(
        self, request: build_pb.ListBuildsRequest, ctx: Any
    ) -> build_pb.ListBuildsResponse:
        self._api.ask("ListBuilds", request)
        answer = await self.get_build(build_pb.GetBuildRequest(build_id=BUILD_ID), ctx)
        return build_pb.ListBuildsResponse(builds=[answer.build] if answer.build else [])

    async def stream_build_logs(
        self, request: build_pb.StreamBuildLogsRequest, ctx: Any
    ) -> AsyncIterator[build_pb.StreamBuildLogsResponse]:
        self._api.ask("StreamBuildLogs", request)
        for number, text in enumerate(LOG_LINES, start=1):
            yield build_pb.StreamBuildLogsResponse(
                sequence=number, at_ns=_AT_NS, state=build_pb.BuildState.BUILDING, text=text
            )


def _archived(asset_id: str) -> asset_pb.AssetEvent:
    return asset_pb.AssetEvent(
        asset_id=asset_id,
        at_ns=_AT_NS,
        from_state=asset_pb.AssetState.AVAILABLE,
        to_state=asset_pb.AssetState.ARCHIVED,
        reason="not now",
        actor="key_1",
    )


class _Assets(_Handlers, AssetService):
    def __init__(self, api: Asked) -> None:
        super().__init__(api)
        self.uploads: dict[str, bytes] = {}

    async def get_asset(
        self, request: asset_pb.GetAssetRequest, ctx: Any
    ) -> asset_pb.GetAssetResponse:
        self._api.ask("GetAsset", request)
        _known(request.asset_id, ASSET_ID, "asset")
        return asset_pb.GetAssetResponse(
            asset=asset_pb.Asset(
                asset_id=ASSET_ID,
                kind=asset_pb.AssetKind.ROOTFS,
                format=asset_pb.AssetFormat.SQUASHFS,
                state=asset_pb.AssetState.IN_USE,
                size_bytes=80 * MIB,
                sha256="cd" * 32,
                lease_count=1,
                labels={"app": "web", "tier": "edge"},
                damage="The bytes of this asset are gone.",
            )
        )

    async def list_assets(
        self, request: asset_pb.ListAssetsRequest, ctx: Any
    ) -> asset_pb.ListAssetsResponse:
        self._api.ask("ListAssets", request)
        answer = await self.get_asset(asset_pb.GetAssetRequest(asset_id=ASSET_ID), ctx)
        return asset_pb.ListAssetsResponse(assets=[answer.asset] if answer.asset else [])

    async def query_asset(
        self, request: asset_pb.QueryAssetRequest, ctx: Any
    ) -> asset_pb.QueryAssetResponse:
        self._api.ask("QueryAsset", request)
        answer = await self.get_asset(asset_pb.GetAssetRequest(asset_id=ASSET_ID), ctx)
        return asset_pb.QueryAssetResponse(
            asset=answer.asset, chosen_because="The only one.", candidate_count=1
        )

    async def list_asset_events(
        self, request: asset_pb.ListAssetEventsRequest, ctx: Any
    ) -> asset_pb.ListAssetEventsResponse:
        self._api.ask("ListAssetEvents", request)
        _known(request.asset_id, ASSET_ID, "asset")
        return asset_pb.ListAssetEventsResponse(events=[_archived(ASSET_ID)])

    async def watch_assets(  # pyright: ignore[reportIncompatibleMethodOverride] - a generator
        self, request: asset_pb.WatchAssetsRequest, ctx: Any
    ) -> AsyncIterator[asset_pb.WatchAssetsResponse]:
        self._api.ask("WatchAssets", request)
        if request.after == "p7":
            raise FailedPrecondition("The history no longer reaches back so far.")
        yield asset_pb.WatchAssetsResponse(position="p6")
        yield asset_pb.WatchAssetsResponse(
            position="p7",
            event=_archived(ASSET_ID),
            asset=asset_pb.Asset(asset_id=ASSET_ID, kind=asset_pb.AssetKind.ROOTFS),
        )

    async def archive_asset(
        self, request: asset_pb.ArchiveAssetRequest, ctx: Any
    ) -> asset_pb.ArchiveAssetResponse:
        self._api.ask("ArchiveAsset", request)
        return asset_pb.ArchiveAssetResponse(
            asset=asset_pb.Asset(asset_id=ASSET_ID, state=asset_pb.AssetState.ARCHIVED)
        )

    async def restore_asset(
        self, request: asset_pb.RestoreAssetRequest, ctx: Any
    ) -> asset_pb.RestoreAssetResponse:
        self._api.ask("RestoreAsset", request)
        return asset_pb.RestoreAssetResponse(
            asset=asset_pb.Asset(asset_id=ASSET_ID, state=asset_pb.AssetState.AVAILABLE)
        )

    async def delete_asset(
        self, request: asset_pb.DeleteAssetRequest, ctx: Any
    ) -> asset_pb.DeleteAssetResponse:
        self._api.ask("DeleteAsset", request)
        return asset_pb.DeleteAssetResponse(
            asset=asset_pb.Asset(asset_id=ASSET_ID, state=asset_pb.AssetState.DELETED)
        )

    async def collect_garbage(
        self, request: asset_pb.CollectGarbageRequest, ctx: Any
    ) -> asset_pb.CollectGarbageResponse:
        self._api.ask("CollectGarbage", request)
        verdict = asset_pb.GarbageVerdict(
            asset_id=ASSET_ID, collected=True, reason="Nobody has used it.", freed_bytes=80 * MIB
        )
        return asset_pb.CollectGarbageResponse(
            verdicts=[verdict], collected_count=1, kept_count=2, freed_bytes=80 * MIB
        )

    async def repair_assets(
        self, request: asset_pb.RepairAssetsRequest, ctx: Any
    ) -> asset_pb.RepairAssetsResponse:
        self._api.ask("RepairAssets", request)
        if not self._api.damage:
            return asset_pb.RepairAssetsResponse()
        fault = asset_pb.RepairFault.ROW_WITHOUT_BYTES
        return asset_pb.RepairAssetsResponse(
            findings=[asset_pb.RepairFinding(fault=fault, name=ASSET_ID, action=self._api.damage)],
            counts=[asset_pb.RepairCount(fault=fault, count=1)],
        )

    async def get_upload(
        self, request: asset_pb.GetUploadRequest, ctx: Any
    ) -> asset_pb.GetUploadResponse:
        self._api.ask("GetUpload", request)
        if request.idempotency_key not in self.uploads:
            raise NotFound("This upload is not known here.")
        return asset_pb.GetUploadResponse(offset_bytes=len(self.uploads[request.idempotency_key]))

    async def upload_asset(
        self, request: AsyncIterator[asset_pb.UploadAssetRequest], ctx: Any
    ) -> asset_pb.UploadAssetResponse:
        key, wanted = "", ""
        async for message in request:
            if message.part is None or message.part.field == "chunk":
                self.uploads[key] += b"" if message.part is None else message.part.value
                self._api.ask("UploadAsset", message)
                continue
            start = message.part.value
            key, wanted = start.idempotency_key, (start.facts or asset_pb.AssetFacts()).sha256
            there = self.uploads.setdefault(key, b"")
            if start.offset_bytes != len(there):
                raise FailedPrecondition(f"This upload stands at {len(there)} bytes.")
        if hashlib.sha256(self.uploads[key]).hexdigest() != wanted:
            raise InvalidRequest("The bytes have another SHA-256 than was claimed.")
        return asset_pb.UploadAssetResponse(
            asset=asset_pb.Asset(asset_id=ASSET_ID, sha256=wanted, kind=asset_pb.AssetKind.ROOTFS)
        )

    async def verify_asset(
        self, request: asset_pb.VerifyAssetRequest, ctx: Any
    ) -> asset_pb.VerifyAssetResponse:
        self._api.ask("VerifyAsset", request)
        _known(request.asset_id, ASSET_ID, "asset")
        return asset_pb.VerifyAssetResponse(intact=not self._api.damage, problem=self._api.damage)

    async def list_leases(
        self, request: asset_pb.ListLeasesRequest, ctx: Any
    ) -> asset_pb.ListLeasesResponse:
        self._api.ask("ListLeases", request)
        lease = asset_pb.Lease(lease_id=derived_id("lse", "fake"), asset_ids=[ASSET_ID])
        return asset_pb.ListLeasesResponse(leases=[lease])


_COMPLETENESS = usage_pb.Completeness(expected=600, received=590, missing=10, partial=2)


class _Usage(_Handlers, UsageService):
    async def get_usage(
        self, request: usage_pb.GetUsageRequest, ctx: Any
    ) -> usage_pb.GetUsageResponse:
        self._api.ask("GetUsage", request)
        row = usage_pb.UsageRow(
            interval=request.interval,
            meter=usage_pb.Meter.VCPU_USED,
            quantity=str(5 * NS_PER_SECOND),
            unit=usage_pb.Unit.VCPU_NANOSECOND,
        )
        return usage_pb.GetUsageResponse(rows=[row], completeness=_COMPLETENESS)

    async def list_gaps(
        self, request: usage_pb.ListGapsRequest, ctx: Any
    ) -> usage_pb.ListGapsResponse:
        self._api.ask("ListGaps", request)
        gap = samples_pb.Gap(
            vm_id="vm_a", first_seq=3, last_seq=7, reason=samples_pb.GapReason.AGENT_DOWN
        )
        one = usage_pb.UsageGap(gap=gap, interval=usage_pb.Interval(from_ns=1, to_ns=2))
        return usage_pb.ListGapsResponse(gaps=[one])

    async def recompute_usage(
        self, request: usage_pb.RecomputeUsageRequest, ctx: Any
    ) -> usage_pb.RecomputeUsageResponse:
        self._api.ask("RecomputeUsage", request)
        return usage_pb.RecomputeUsageResponse(hours=7)

    async def list_adjustments(
        self, request: usage_pb.ListAdjustmentsRequest, ctx: Any
    ) -> usage_pb.ListAdjustmentsResponse:
        self._api.ask("ListAdjustments", request)
        one = usage_pb.Adjustment(vm_id="vm_a", settled_quantity="5", adjustment="2")
        return usage_pb.ListAdjustmentsResponse(adjustments=[one])

    async def stream_usage(
        self, request: usage_pb.StreamUsageRequest, ctx: Any
    ) -> AsyncIterator[usage_pb.StreamUsageResponse]:
        self._api.ask("StreamUsage", request)
        row = usage_pb.UsageRow(
            vm_id="vm_a",
            meter=usage_pb.Meter.VCPU_USED,
            quantity="7000000000",
            unit=usage_pb.Unit.VCPU_NANOSECOND,
        )
        for _ in range(2):
            yield usage_pb.StreamUsageResponse(rows=[row])

    async def export_usage(
        self, request: usage_pb.ExportUsageRequest, ctx: Any
    ) -> AsyncIterator[usage_pb.ExportUsageResponse]:
        self._api.ask("ExportUsage", request)
        for chunk in (b"from,to\r\n", b"1,2\r\n"):
            yield usage_pb.ExportUsageResponse(chunk=chunk)

    async def get_completeness(
        self, request: usage_pb.GetCompletenessRequest, ctx: Any
    ) -> usage_pb.GetCompletenessResponse:
        self._api.ask("GetCompleteness", request)
        gap = usage_pb.GapCount(reason=samples_pb.GapReason.AGENT_DOWN, samples=10)
        vm = usage_pb.VmCompleteness(vm_id="vm_a", completeness=_COMPLETENESS, gaps=[gap])
        return usage_pb.GetCompletenessResponse(total=_COMPLETENESS, vms=[vm])


class _Batches(_Handlers, BatchService):
    async def list_quarantined_windows(
        self, request: batch_pb.ListQuarantinedWindowsRequest, ctx: Any
    ) -> batch_pb.ListQuarantinedWindowsResponse:
        self._api.ask("ListQuarantinedWindows", request)
        windows = [
            batch_pb.QuarantinedWindow(
                window_id="win_a",
                vm_id="vm_a",
                tenant_id="tnt_a",
                reason=batch_pb.QuarantineReason.CLOCK,
                detail="The window lies in the future.",
                state=batch_pb.QuarantineState.OPEN,
                content_sha256=bytes([number] * 32),
            )
            for number in (1, 2)
        ]
        return batch_pb.ListQuarantinedWindowsResponse(windows=windows)

    async def resolve_quarantined_window(
        self, request: batch_pb.ResolveQuarantinedWindowRequest, ctx: Any
    ) -> batch_pb.QuarantinedWindow:
        self._api.ask("ResolveQuarantinedWindow", request)
        return batch_pb.QuarantinedWindow(
            window_id=request.window_id, state=request.state, note=request.note
        )


class _Invoices(_Handlers, InvoiceService):
    async def preview_invoice(
        self, request: invoice_pb.PreviewInvoiceRequest, ctx: Any
    ) -> invoice_pb.Invoice:
        self._api.ask("PreviewInvoice", request)
        amount = common_pb.Money(nanos=1_234_567, currency="USD")
        used = invoice_pb.InvoiceLine(
            kind=invoice_pb.InvoiceLineKind.USAGE,
            meter=usage_pb.Meter.VCPU_USED,
            quantity=str(5 * NS_PER_SECOND),
            unit=usage_pb.Unit.VCPU_NANOSECOND,
            unit_price_nanos=40_000_000,
            unit_name="vCPU-hour",
            amount=amount,
            price_version=1,
        )
        discount = invoice_pb.InvoiceLine(
            kind=invoice_pb.InvoiceLineKind.DISCOUNT,
            description="coupon WELCOME",
            amount=common_pb.Money(nanos=-567, currency="USD"),
        )
        return invoice_pb.Invoice(
            interval=request.interval,
            lines=[used, discount],
            subtotal=amount,
            total=common_pb.Money(nanos=1_234_000, currency="USD"),
            completeness=_COMPLETENESS,
            price_plan_name="standard",
        )

    async def get_invoice(
        self, request: invoice_pb.GetInvoiceRequest, ctx: Any
    ) -> invoice_pb.Invoice:
        self._api.ask("GetInvoice", request)
        return invoice_pb.Invoice(invoice_id=request.invoice_id)

    async def list_invoices(
        self, request: invoice_pb.ListInvoicesRequest, ctx: Any
    ) -> invoice_pb.ListInvoicesResponse:
        self._api.ask("ListInvoices", request)
        return invoice_pb.ListInvoicesResponse(invoices=[invoice_pb.Invoice(number="1")])


NOUNS = (
    (VmServiceASGIApplication, _Vms),
    (HostServiceASGIApplication, FakeHost),
    (BuildServiceASGIApplication, _Builds),
    (AssetServiceASGIApplication, _Assets),
    (UsageServiceASGIApplication, _Usage),
    (BatchServiceASGIApplication, _Batches),
    (InvoiceServiceASGIApplication, _Invoices),
)
"""ASGI application of each service and its handlers."""
