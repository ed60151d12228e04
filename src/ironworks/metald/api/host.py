"""HostService."""

import platform
from collections.abc import AsyncGenerator, Mapping
from importlib.metadata import version
from typing import Any

from connectrpc.request import RequestContext

from ironworks.gen.ironworks.common.v1 import common_pb
from ironworks.gen.ironworks.metald.v1 import host_pb as pb
from ironworks.gen.ironworks.metald.v1.host_connect import HostService
from ironworks.metald.api.repeats import finite_seconds, once_of
from ironworks.metald.app import host as hosts
from ironworks.metald.app import queries
from ironworks.metald.app.context import Context
from ironworks.metald.types import Host, HostState, Reservation, Resources
from ironworks.model.pages import encode_token, read_page
from ironworks.runtime.identity.caller import current_caller, current_tenant_id

_Ctx = RequestContext[Any, Any]
_STATES = {state: getattr(pb.HostState, state.name) for state in HostState}


class HostHandlers(HostService):
    """HostService."""

    def __init__(self, context: Context, cgroup_layout: str) -> None:
        """Serve the host of `context`."""
        self._context = context
        self._cgroup_layout = cgroup_layout

    async def get_host(self, request: pb.GetHostRequest, _ctx: _Ctx, /) -> pb.Host:
        """See the proto."""
        del request
        return await self._message()

    async def _message(self) -> pb.Host:
        context = self._context
        # Before the rest is read: what changes meanwhile has a later generation.
        generation = context.changes.host_generation
        host, settings = context.host, context.settings
        taken, reserved = await queries.taken(context)
        return pb.Host(
            id=host.host_id,
            name=settings.effective_host_name,
            region=settings.host_region,
            zone=settings.host_zone,
            state=_STATES[host.state],
            reason=host.reason,
            capacity=_resources(context.limits.capacity),
            allocated=_resources(taken),
            reserved=_resources(reserved),
            largest_vm=_resources(context.limits.largest),
            drivers=self._drivers(),
            default_kernel_asset_id=host.default_kernel_asset_id,
            default_initrd_asset_id=host.default_initrd_asset_id,
            architecture=platform.machine(),
            kernel_version=platform.release(),
            version=version("ironworks"),
            cgroup_layout=self._cgroup_layout,
            url=settings.metald_url,
            started_at_ns=context.started_at_ns,
            generation=generation,
            drain=_drain(host, taken.vms, context.drain_problems),
        )

    def _drivers(self) -> list[pb.HostDriver]:
        return [
            pb.HostDriver(
                kind=kind.value,
                available=probe.available,
                accel=probe.accel.value,
                version=probe.version,
                sentence=probe.sentence,
                chosen=kind is self._context.chosen,
            )
            for kind, probe in self._context.probes.items()
        ]

    async def watch_host(
        self, request: pb.WatchHostRequest, _ctx: _Ctx, /
    ) -> AsyncGenerator[pb.WatchHostResponse]:
        """See the proto."""
        changes = self._context.changes
        changes.enter(None)
        try:
            seen, sent = request.after_generation, b""
            while True:
                if changes.host_generation <= seen:
                    await changes.wait()
                    continue
                host = await self._message()
                seen, host.generation = host.generation, 0
                content = host.to_binary()
                host.generation = seen
                # Most changes of a VM are none of the host.
                if content != sent:
                    sent = content
                    yield pb.WatchHostResponse(host=host)
        finally:
            changes.leave(None)

    async def cordon_host(self, request: pb.CordonHostRequest, _ctx: _Ctx, /) -> pb.Host:
        """See the proto."""
        await hosts.cordon(self._context, request.reason, once=once_of(request, ""))
        return await self._message()

    async def uncordon_host(self, request: pb.UncordonHostRequest, _ctx: _Ctx, /) -> pb.Host:
        """See the proto."""
        await hosts.uncordon(self._context, once=once_of(request, ""))
        return await self._message()

    async def drain_host(self, request: pb.DrainHostRequest, _ctx: _Ctx, /) -> pb.Host:
        """See the proto."""
        timeout_seconds = finite_seconds(request.timeout_seconds, "timeout_seconds")
        once = once_of(request, "")
        await hosts.drain(self._context, request.reason, timeout_seconds, once=once)
        return await self._message()

    async def reserve_capacity(
        self, request: pb.ReserveCapacityRequest, _ctx: _Ctx, /
    ) -> pb.Reservation:
        """See the proto."""
        tenant_id = current_tenant_id()
        return _reservation(
            await hosts.reserve(
                self._context,
                tenant_id=tenant_id,
                reservation_id=request.reservation_id,
                resources=_read_resources(request.resources),
                ttl_seconds=finite_seconds(request.ttl_seconds, "ttl_seconds"),
                once=once_of(request, tenant_id),
            )
        )

    async def release_reservation(
        self, request: pb.ReleaseReservationRequest, _ctx: _Ctx, /
    ) -> pb.ReleaseReservationResponse:
        """See the proto."""
        tenant_id = current_caller().tenant_id
        await hosts.release(
            self._context,
            tenant_id=tenant_id,
            reservation_id=request.reservation_id,
            once=once_of(request, tenant_id or ""),
        )
        return pb.ReleaseReservationResponse()

    async def list_reservations(
        self, request: pb.ListReservationsRequest, _ctx: _Ctx, /
    ) -> pb.ListReservationsResponse:
        """See the proto."""
        tenant_id = current_caller().tenant_id
        asked = request.page or common_pb.PageRequest()
        filters = (tenant_id,)
        page = read_page(asked.page_size, asked.page_token, filters)
        found, after = await queries.list_reservations(self._context, tenant_id, page)
        token = "" if after is None else encode_token(after, filters)
        return pb.ListReservationsResponse(
            reservations=[_reservation(one) for one in found],
            page=common_pb.PageInfo(next_page_token=token),
        )

    async def set_tenant_quota(
        self, request: pb.SetTenantQuotaRequest, _ctx: _Ctx, /
    ) -> pb.TenantQuota:
        """See the proto."""
        limit = _read_resources(request.limit)
        once = once_of(request, "")
        return _quota(await hosts.set_quota(self._context, request.tenant_id, limit, once=once))

    async def get_tenant_quota(
        self, request: pb.GetTenantQuotaRequest, _ctx: _Ctx, /
    ) -> pb.TenantQuota:
        """See the proto."""
        return _quota(await hosts.get_quota(self._context, request.tenant_id))


def _drain(host: Host, left: int, problems: Mapping[str, str]) -> pb.HostDrain | None:
    if host.drain is None:
        return None
    return pb.HostDrain(
        started_at_ns=host.drain.started_at_ns,
        vms_at_start=host.drain.vms_at_start,
        vms_left=left,
        problems=[f"{vm_id}: {why}" for vm_id, why in sorted(problems.items())],
    )


def _read_resources(message: pb.HostResources | None) -> Resources:
    if message is None:
        return Resources()
    return Resources(
        vcpus=message.vcpus,
        memory_bytes=message.memory_bytes,
        disk_bytes=message.disk_bytes,
        vms=message.vms,
    )


def _resources(amount: Resources) -> pb.HostResources:
    return pb.HostResources(
        vcpus=amount.vcpus,
        memory_bytes=amount.memory_bytes,
        disk_bytes=amount.disk_bytes,
        vms=amount.vms,
    )


def _reservation(found: Reservation) -> pb.Reservation:
    return pb.Reservation(
        id=found.reservation_id,
        tenant_id=found.tenant_id,
        resources=_resources(found.resources),
        expires_at_ns=found.expires_at_ns,
    )


def _quota(quota: hosts.Quota) -> pb.TenantQuota:
    return pb.TenantQuota(
        tenant_id=quota.tenant_id, limit=_resources(quota.limit), used=_resources(quota.used)
    )
