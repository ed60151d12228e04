"""HostDirectoryService."""

from __future__ import annotations

from typing import Any

from connectrpc.request import RequestContext

from ironworks.gatewayd.api.paging import cut, page_of
from ironworks.gatewayd.app.hosts import HEARTBEAT_PERIOD_MS, HostApp
from ironworks.gatewayd.types import Host, HostState, Resources
from ironworks.gen.ironworks.gatewayd.v1 import hosts_pb
from ironworks.gen.ironworks.gatewayd.v1.hosts_connect import HostDirectoryService
from ironworks.model.errors import InvalidRequest

_Context = RequestContext[Any, Any]
_STATES = {state: hosts_pb.HostState[state.name] for state in HostState}
_REPORTED = {_STATES[state]: state for state in (HostState.CORDONED, HostState.DRAINING)}


def _resources_from_wire(wire: hosts_pb.HostResources | None) -> Resources:
    if wire is None:
        return Resources()
    if min(wire.vcpus, wire.memory_bytes, wire.disk_bytes, wire.vms) < 0:
        raise InvalidRequest("Resources cannot be negative.")
    return Resources(
        vcpus=wire.vcpus,
        memory_bytes=wire.memory_bytes,
        disk_bytes=wire.disk_bytes,
        vms=wire.vms,
    )


def _resources_to_wire(resources: Resources) -> hosts_pb.HostResources:
    return hosts_pb.HostResources(
        vcpus=resources.vcpus,
        memory_bytes=resources.memory_bytes,
        disk_bytes=resources.disk_bytes,
        vms=resources.vms,
    )


def _host_from_wire(wire: hosts_pb.Host) -> Host:
    return Host(
        host_id=wire.host_id,
        name=wire.name,
        metald_url=wire.metald_url,
        zone=wire.zone,
        region=wire.region,
        architecture=wire.architecture,
        driver=wire.driver,
        acceleration=wire.acceleration,
        capacity=_resources_from_wire(wire.capacity),
        allocated=_resources_from_wire(wire.allocated),
        labels=dict(wire.labels),
        state=HostState.READY,
        version=wire.version,
        registered_at_ns=0,
        last_heartbeat_at_ns=0,
        reported=_REPORTED.get(wire.state, HostState.READY),
    )


def host_to_wire(host: Host) -> hosts_pb.Host:
    """A host as callers see it."""
    return hosts_pb.Host(
        host_id=host.host_id,
        name=host.name,
        metald_url=host.metald_url,
        zone=host.zone,
        region=host.region,
        architecture=host.architecture,
        driver=host.driver,
        acceleration=host.acceleration,
        capacity=_resources_to_wire(host.capacity),
        allocated=_resources_to_wire(host.allocated),
        labels=dict(host.labels),
        state=_STATES[host.state],
        registered_at_ns=host.registered_at_ns,
        last_heartbeat_at_ns=host.last_heartbeat_at_ns,
        version=host.version,
    )


class HostHandlers(HostDirectoryService):
    """HostDirectoryService."""

    def __init__(self, app: HostApp) -> None:
        self._app = app

    async def register_host(
        self, request: hosts_pb.RegisterHostRequest, ctx: _Context
    ) -> hosts_pb.RegisterHostResponse:
        """See the API's reference."""
        del ctx
        host = await self._app.register(_host_from_wire(request.host or hosts_pb.Host()))
        return hosts_pb.RegisterHostResponse(
            host=host_to_wire(host), heartbeat_period_ms=HEARTBEAT_PERIOD_MS
        )

    async def heartbeat(
        self, request: hosts_pb.HeartbeatRequest, ctx: _Context
    ) -> hosts_pb.HeartbeatResponse:
        """See the API's reference."""
        del ctx
        allocated = _resources_from_wire(request.allocated)
        reported = _REPORTED.get(request.state, HostState.READY)
        host = await self._app.heartbeat(request.host_id, allocated, reported)
        return hosts_pb.HeartbeatResponse(state=_STATES[host.state])

    async def get_host(
        self, request: hosts_pb.GetHostRequest, ctx: _Context
    ) -> hosts_pb.GetHostResponse:
        """See the API's reference."""
        del ctx
        return hosts_pb.GetHostResponse(host=host_to_wire(await self._app.get(request.host_id)))

    async def list_hosts(
        self, request: hosts_pb.ListHostsRequest, ctx: _Context
    ) -> hosts_pb.ListHostsResponse:
        """See the API's reference."""
        del ctx
        wanted = set(request.states)
        page = page_of(request.page, request.zone)
        found = await self._app.list(page, request.zone)
        items, info = cut(found, page, lambda one: (one.name,), request.zone)
        # Down follows from the time, not from the store: such filters act within the page.
        hosts = [host_to_wire(one) for one in items]
        return hosts_pb.ListHostsResponse(
            hosts=[one for one in hosts if not wanted or one.state in wanted], page=info
        )

    async def cordon_host(
        self, request: hosts_pb.CordonHostRequest, ctx: _Context
    ) -> hosts_pb.CordonHostResponse:
        """See the API's reference."""
        del ctx
        host = await self._app.set_cordoned(request.host_id, cordoned=True)
        return hosts_pb.CordonHostResponse(host=host_to_wire(host))

    async def uncordon_host(
        self, request: hosts_pb.UncordonHostRequest, ctx: _Context
    ) -> hosts_pb.UncordonHostResponse:
        """See the API's reference."""
        del ctx
        host = await self._app.set_cordoned(request.host_id, cordoned=False)
        return hosts_pb.UncordonHostResponse(host=host_to_wire(host))
