"""Proto ↔ types, nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from connectrpc.request import RequestContext

from ironworks.assetmanagerd.app import Registry
from ironworks.assetmanagerd.decide import collectable_at_ns, shown
from ironworks.assetmanagerd.intake import Intake
from ironworks.assetmanagerd.leasing import Leasing
from ironworks.assetmanagerd.positions import Positions
from ironworks.assetmanagerd.repair import Fault, Repair
from ironworks.assetmanagerd.types import (
    Asset,
    AssetEvent,
    AssetFilter,
    AssetFormat,
    AssetKind,
    AssetState,
    Facts,
    HealthCheck,
    ImageConfig,
    Lease,
    LeaseFilter,
    LeaseState,
    Placed,
    PrepareMethod,
    Verdict,
    Who,
)
from ironworks.assetmanagerd.watch import Watches
from ironworks.gen.ironworks.assetmanagerd.v1 import asset_pb as pb
from ironworks.gen.ironworks.assetmanagerd.v1.asset_connect import AssetService
from ironworks.gen.ironworks.common.v1 import common_pb
from ironworks.model.errors import InvalidRequest
from ironworks.model.pages import cut, read_page
from ironworks.runtime.identity.caller import current_caller

_Context = RequestContext[Any, Any]

_KINDS: Mapping[pb.AssetKind, AssetKind] = {
    pb.AssetKind.KERNEL: AssetKind.KERNEL,
    pb.AssetKind.INITRD: AssetKind.INITRD,
    pb.AssetKind.ROOTFS: AssetKind.ROOTFS,
    pb.AssetKind.SNAPSHOT: AssetKind.SNAPSHOT,
}
_FORMATS: Mapping[pb.AssetFormat, AssetFormat] = {
    pb.AssetFormat.BZIMAGE: AssetFormat.BZIMAGE,
    pb.AssetFormat.ELF: AssetFormat.ELF,
    pb.AssetFormat.ARM64_IMAGE: AssetFormat.ARM64_IMAGE,
    pb.AssetFormat.CPIO: AssetFormat.CPIO,
    pb.AssetFormat.CPIO_GZIP: AssetFormat.CPIO_GZIP,
    pb.AssetFormat.CPIO_ZSTD: AssetFormat.CPIO_ZSTD,
    pb.AssetFormat.SQUASHFS: AssetFormat.SQUASHFS,
    pb.AssetFormat.EXT4: AssetFormat.EXT4,
    pb.AssetFormat.VM_SNAPSHOT: AssetFormat.VM_SNAPSHOT,
}
_STATES: Mapping[pb.AssetState, AssetState] = {
    pb.AssetState.REGISTERED: AssetState.REGISTERED,
    pb.AssetState.AVAILABLE: AssetState.AVAILABLE,
    pb.AssetState.IN_USE: AssetState.IN_USE,
    pb.AssetState.ARCHIVED: AssetState.ARCHIVED,
    pb.AssetState.FAILED: AssetState.FAILED,
    pb.AssetState.DELETED: AssetState.DELETED,
}
_LEASE_STATES: Mapping[pb.LeaseState, LeaseState] = {
    pb.LeaseState.ACTIVE: LeaseState.ACTIVE,
    pb.LeaseState.RELEASED: LeaseState.RELEASED,
    pb.LeaseState.EXPIRED: LeaseState.EXPIRED,
}
_METHODS: Mapping[PrepareMethod, pb.PrepareMethod] = {
    PrepareMethod.HARD_LINK: pb.PrepareMethod.HARD_LINK,
    PrepareMethod.REFLINK: pb.PrepareMethod.REFLINK,
    PrepareMethod.COPY: pb.PrepareMethod.COPY,
}
_FAULTS = {fault: pb.RepairFault[fault.value.upper()] for fault in Fault}
_KINDS_OUT = {value: key for key, value in _KINDS.items()}
_FORMATS_OUT = {value: key for key, value in _FORMATS.items()}
_STATES_OUT = {value: key for key, value in _STATES.items()}
_LEASE_STATES_OUT = {value: key for key, value in _LEASE_STATES.items()}


def _who() -> Who:
    caller = current_caller()
    return Who(
        actor=caller.subject,
        tenant_id=caller.tenant_id or "",
        is_service=caller.kind == "service",
        sees_all=caller.is_operator and not caller.tenant_id,
    )


def _read_config(message: common_pb.ImageConfig | None) -> ImageConfig | None:
    if message is None:
        return None
    return ImageConfig(
        entrypoint=tuple(message.entrypoint),
        cmd=tuple(message.cmd),
        env=tuple(message.env),
        user=message.user,
        working_directory=message.working_directory,
        exposed_ports=tuple(message.exposed_ports),
        stop_signal=message.stop_signal,
        labels=dict(sorted(message.labels.items())),
        health_check=_read_health_check(message.health_check),
    )


def _read_health_check(message: common_pb.HealthCheck | None) -> HealthCheck | None:
    if message is None:
        return None
    return HealthCheck(
        test=tuple(message.test),
        interval_ns=message.interval_ns,
        timeout_ns=message.timeout_ns,
        start_period_ns=message.start_period_ns,
        retries=message.retries,
    )


def _config(config: ImageConfig | None) -> common_pb.ImageConfig | None:
    if config is None:
        return None
    return common_pb.ImageConfig(
        entrypoint=list(config.entrypoint),
        cmd=list(config.cmd),
        env=list(config.env),
        user=config.user,
        working_directory=config.working_directory,
        exposed_ports=list(config.exposed_ports),
        stop_signal=config.stop_signal,
        labels=dict(config.labels),
        health_check=_health_check(config.health_check),
    )


def _health_check(check: HealthCheck | None) -> common_pb.HealthCheck | None:
    if check is None:
        return None
    return common_pb.HealthCheck(
        test=list(check.test),
        interval_ns=check.interval_ns,
        timeout_ns=check.timeout_ns,
        start_period_ns=check.start_period_ns,
        retries=check.retries,
    )


def _read_facts(message: pb.AssetFacts | None) -> Facts:
    if message is None or message.kind not in _KINDS:
        raise InvalidRequest("facts.kind is required.")
    return Facts(
        kind=_KINDS[message.kind],
        format=_FORMATS.get(message.format),
        sha256=message.sha256,
        size_bytes=message.size_bytes,
        media_type=message.media_type,
        architecture=message.architecture,
        source_digest=message.source_digest,
        build_id=message.build_id,
        image_config=_read_config(message.image_config),
        labels=dict(sorted(message.labels.items())),
        platform=message.platform,
    )


def _read_filter(message: pb.AssetFilter | None) -> AssetFilter:
    if message is None:
        return AssetFilter()
    return AssetFilter(
        kind=_KINDS.get(message.kind),
        states=tuple(_STATES[state] for state in message.states if state in _STATES),
        labels=dict(sorted(message.labels.items())),
        source_digest=message.source_digest,
        architecture=message.architecture,
        sha256=message.sha256,
        format=_FORMATS.get(message.format),
    )


def _event(event: AssetEvent) -> pb.AssetEvent:
    before = pb.AssetState.UNSPECIFIED
    return pb.AssetEvent(
        asset_id=event.asset_id,
        at_ns=event.at_ns,
        from_state=before if event.from_state is None else _STATES_OUT[event.from_state],
        to_state=_STATES_OUT[event.to_state],
        reason=event.reason,
        actor=event.actor,
    )


def _lease(lease: Lease) -> pb.Lease:
    return pb.Lease(
        lease_id=lease.lease_id,
        tenant_id=lease.tenant_id,
        asset_ids=list(lease.asset_ids),
        owner=lease.owner,
        holder=lease.holder,
        purpose=lease.purpose,
        state=_LEASE_STATES_OUT[lease.state],
        created_at_ns=lease.created_at_ns,
        expires_at_ns=lease.expires_at_ns,
        ended_at_ns=lease.ended_at_ns,
    )


def _placed(file: Placed) -> pb.PreparedFile:
    return pb.PreparedFile(
        asset_id=file.asset_id,
        file_name=file.file_name,
        method=_METHODS[file.method],
        size_bytes=file.size_bytes,
    )


def _verdict(verdict: Verdict) -> pb.GarbageVerdict:
    return pb.GarbageVerdict(
        asset_id=verdict.asset_id,
        collected=verdict.collected,
        reason=verdict.reason,
        freed_bytes=verdict.freed_bytes,
    )


async def _chunks(stream: AsyncIterator[pb.UploadAssetRequest]) -> AsyncIterator[bytes]:
    async for message in stream:
        if message.part is None or message.part.field != "chunk":
            raise InvalidRequest("Only the first message of an upload may be a start.")
        yield message.part.value


class Handlers(AssetService):
    """The RPC methods."""

    def __init__(
        self,
        *,
        registry: Registry,
        leasing: Leasing,
        intake: Intake,
        repair: Repair,
        watches: Watches,
        positions: Positions,
        ttl_seconds: int,
    ) -> None:
        self._registry = registry
        self._leasing = leasing
        self._intake = intake
        self._repair = repair
        self._watches = watches
        self._positions = positions
        self._ttl_seconds = ttl_seconds

    def _asset(self, asset: Asset) -> pb.Asset:
        unknown = pb.AssetFormat.UNSPECIFIED
        return pb.Asset(
            asset_id=asset.asset_id,
            tenant_id=asset.tenant_id,
            kind=_KINDS_OUT[asset.kind],
            format=unknown if asset.format is None else _FORMATS_OUT[asset.format],
            state=_STATES_OUT[asset.state],
            reason=asset.reason,
            size_bytes=asset.size_bytes,
            sha256=asset.sha256,
            media_type=asset.media_type,
            architecture=asset.architecture,
            source_digest=asset.source_digest,
            build_id=asset.build_id,
            image_config=_config(asset.image_config),
            labels=dict(asset.labels),
            lease_count=asset.lease_count,
            created_at_ns=asset.created_at_ns,
            updated_at_ns=asset.updated_at_ns,
            last_used_at_ns=asset.last_used_at_ns,
            collectable_at_ns=collectable_at_ns(asset, self._ttl_seconds),
            revision=asset.revision,
            damage=asset.damage,
        )

    # --- intake -----------------------------------------------------------------------------------

    async def register_asset(
        self, request: pb.RegisterAssetRequest, ctx: _Context, /
    ) -> pb.RegisterAssetResponse:
        asset, existed = await self._intake.register(
            _who(), _read_facts(request.facts), request.staged_name, request.idempotency_key
        )
        return pb.RegisterAssetResponse(asset=self._asset(asset), existed=existed)

    async def upload_asset(
        self, request: AsyncIterator[pb.UploadAssetRequest], ctx: _Context, /
    ) -> pb.UploadAssetResponse:
        first = await anext(aiter(request), None)
        if first is None or first.part is None or first.part.field != "start":
            raise InvalidRequest("The first message of an upload must be its start.")
        start = first.part.value
        asset, existed = await self._intake.upload(
            _who(),
            _read_facts(start.facts),
            upload_id=start.upload_id,
            key=start.idempotency_key,
            offset_bytes=start.offset_bytes,
            chunks=_chunks(request),
        )
        return pb.UploadAssetResponse(asset=self._asset(asset), existed=existed)

    async def get_upload(
        self, request: pb.GetUploadRequest, ctx: _Context, /
    ) -> pb.GetUploadResponse:
        upload = await self._intake.get_upload(_who(), request.upload_id, request.idempotency_key)
        return pb.GetUploadResponse(
            upload_id=upload.upload_id,
            offset_bytes=upload.offset_bytes,
            size_bytes=upload.facts.size_bytes,
            expires_at_ns=upload.expires_at_ns,
            asset_id=upload.asset_id,
        )

    # --- registry ---------------------------------------------------------------------------------

    async def get_asset(self, request: pb.GetAssetRequest, ctx: _Context, /) -> pb.GetAssetResponse:
        asset = await self._registry.get(_who(), request.asset_id)
        return pb.GetAssetResponse(asset=self._asset(shown(_who(), asset)))

    async def list_assets(
        self, request: pb.ListAssetsRequest, ctx: _Context, /
    ) -> pb.ListAssetsResponse:
        who, query = _who(), _read_filter(request.filter)
        asked = request.page or common_pb.PageRequest()
        filters = (who.tenant_id, who.sees_all, query)
        page = read_page(asked.page_size, asked.page_token, filters)
        found = await self._registry.page(who, query, page)
        assets, token = cut(found, page.size, lambda last: (last.asset_id,), filters)
        return pb.ListAssetsResponse(
            assets=[self._asset(shown(who, asset)) for asset in assets],
            page=common_pb.PageInfo(next_page_token=token),
        )

    async def query_asset(
        self, request: pb.QueryAssetRequest, ctx: _Context, /
    ) -> pb.QueryAssetResponse:
        who = _who()
        asset, because, count = await self._registry.query(who, _read_filter(request.filter))
        return pb.QueryAssetResponse(
            asset=self._asset(shown(who, asset)), chosen_because=because, candidate_count=count
        )

    async def list_asset_events(
        self, request: pb.ListAssetEventsRequest, ctx: _Context, /
    ) -> pb.ListAssetEventsResponse:
        who, asked = _who(), request.page or common_pb.PageRequest()
        filters = (request.asset_id,)
        page = read_page(asked.page_size, asked.page_token, filters)
        if page.after:
            after = self._positions.open(who, str(page.after[0]), "page_token")
            page = replace(page, after=(after,))
        found = await self._registry.events(who, request.asset_id, page)
        events, token = cut(
            found, page.size, lambda last: (self._positions.seal(who, last.sequence),), filters
        )
        return pb.ListAssetEventsResponse(
            events=[_event(event) for event in events],
            page=common_pb.PageInfo(next_page_token=token),
        )

    async def archive_asset(
        self, request: pb.ArchiveAssetRequest, ctx: _Context, /
    ) -> pb.ArchiveAssetResponse:
        asset = await self._registry.archive(
            _who(), request.asset_id, request.reason, request.idempotency_key
        )
        return pb.ArchiveAssetResponse(asset=self._asset(asset))

    async def restore_asset(
        self, request: pb.RestoreAssetRequest, ctx: _Context, /
    ) -> pb.RestoreAssetResponse:
        asset = await self._registry.restore(_who(), request.asset_id, request.idempotency_key)
        return pb.RestoreAssetResponse(asset=self._asset(asset))

    async def delete_asset(
        self, request: pb.DeleteAssetRequest, ctx: _Context, /
    ) -> pb.DeleteAssetResponse:
        asset = await self._registry.delete(
            _who(), request.asset_id, request.reason, request.idempotency_key
        )
        return pb.DeleteAssetResponse(asset=self._asset(asset))

    async def collect_garbage(
        self, request: pb.CollectGarbageRequest, ctx: _Context, /
    ) -> pb.CollectGarbageResponse:
        done = await self._registry.collect(
            dry_run=request.dry_run, unused_seconds=request.unused_seconds, actor=_who().actor
        )
        return pb.CollectGarbageResponse(
            verdicts=[_verdict(verdict) for verdict in done.verdicts],
            collected_count=done.collected_count,
            kept_count=done.kept_count,
            freed_bytes=done.freed_bytes,
        )

    async def verify_asset(
        self, request: pb.VerifyAssetRequest, ctx: _Context, /
    ) -> pb.VerifyAssetResponse:
        asset, problem = await self._registry.verify(_who(), request.asset_id)
        return pb.VerifyAssetResponse(asset=self._asset(asset), intact=not problem, problem=problem)

    async def repair_assets(
        self, request: pb.RepairAssetsRequest, ctx: _Context, /
    ) -> pb.RepairAssetsResponse:
        found = await self._repair.run(dry_run=request.dry_run)
        return pb.RepairAssetsResponse(
            findings=[
                pb.RepairFinding(
                    fault=_FAULTS[one.fault], name=one.name, action=one.action, mended=one.is_mended
                )
                for one in found.findings
            ],
            counts=[
                pb.RepairCount(fault=_FAULTS[fault], count=count) for fault, count in found.counts
            ],
        )

    async def watch_assets(  # pyright: ignore[reportIncompatibleMethodOverride] - a generator
        self, request: pb.WatchAssetsRequest, ctx: _Context, /
    ) -> AsyncIterator[pb.WatchAssetsResponse]:
        who = _who()
        after = self._positions.open(who, request.after, "after") if request.after else None
        changes = self._watches.changes(who, _read_filter(request.filter), after)
        async with aclosing(changes):
            async for change in changes:
                yield pb.WatchAssetsResponse(
                    event=None if change.event is None else _event(change.event),
                    asset=None if change.asset is None else self._asset(change.asset),
                    position=self._positions.seal(who, change.sequence),
                )

    # --- leases -----------------------------------------------------------------------------------

    async def acquire_lease(
        self, request: pb.AcquireLeaseRequest, ctx: _Context, /
    ) -> pb.AcquireLeaseResponse:
        lease, assets = await self._leasing.acquire(
            _who(),
            request.asset_ids,
            holder=request.holder,
            purpose=request.purpose,
            ttl_seconds=request.ttl_seconds,
            key=request.idempotency_key,
        )
        return pb.AcquireLeaseResponse(
            lease=_lease(lease), assets=[self._asset(asset) for asset in assets]
        )

    async def renew_lease(
        self, request: pb.RenewLeaseRequest, ctx: _Context, /
    ) -> pb.RenewLeaseResponse:
        kept, lost = await self._leasing.renew(_who(), request.lease_ids, request.ttl_seconds)
        return pb.RenewLeaseResponse(leases=[_lease(lease) for lease in kept], lost_lease_ids=lost)

    async def release_lease(
        self, request: pb.ReleaseLeaseRequest, ctx: _Context, /
    ) -> pb.ReleaseLeaseResponse:
        return pb.ReleaseLeaseResponse(
            lease=_lease(await self._leasing.release(_who(), request.lease_id))
        )

    async def list_leases(
        self, request: pb.ListLeasesRequest, ctx: _Context, /
    ) -> pb.ListLeasesResponse:
        query = LeaseFilter(
            asset_id=request.asset_id,
            holder=request.holder,
            state=_LEASE_STATES.get(request.state),
        )
        asked = request.page or common_pb.PageRequest()
        page = read_page(asked.page_size, asked.page_token, (query,))
        found = await self._leasing.leases(_who(), query, page)
        leases, token = cut(found, page.size, lambda last: (last.lease_id,), (query,))
        return pb.ListLeasesResponse(
            leases=[_lease(lease) for lease in leases],
            page=common_pb.PageInfo(next_page_token=token),
        )

    async def prepare_assets(
        self, request: pb.PrepareAssetsRequest, ctx: _Context, /
    ) -> pb.PrepareAssetsResponse:
        placed = await self._leasing.prepare(
            _who(),
            request.lease_id,
            request.directory,
            [(file.asset_id, file.file_name) for file in request.files],
        )
        return pb.PrepareAssetsResponse(files=[_placed(file) for file in placed])
