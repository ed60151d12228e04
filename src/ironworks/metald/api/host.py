"""HostService."""

import platform
from importlib.metadata import version
from typing import Any

from connectrpc.request import RequestContext

from ironworks.gen.ironworks.metald.v1 import host_pb as pb
from ironworks.gen.ironworks.metald.v1.host_connect import HostService
from ironworks.metald.app import queries
from ironworks.metald.app.context import Context
from ironworks.metald.types import HostState, Resources

_Ctx = RequestContext[Any, Any]
_STATES = {HostState.ACTIVE: pb.HostState.ACTIVE, HostState.CORDONED: pb.HostState.CORDONED}


class HostHandlers(HostService):
    """HostService."""

    def __init__(self, context: Context, cgroup_layout: str) -> None:
        """Serve the host of `context`."""
        self._context = context
        self._cgroup_layout = cgroup_layout

    async def get_host(self, request: pb.GetHostRequest, _ctx: _Ctx, /) -> pb.Host:
        """See the proto."""
        del request
        context = self._context
        host, settings = context.host, context.settings
        return pb.Host(
            id=host.host_id,
            name=settings.effective_host_name,
            region=settings.host_region,
            zone=settings.host_zone,
            state=_STATES[host.state],
            reason=host.reason,
            capacity=_resources(context.limits.capacity),
            allocated=_resources(await queries.committed(context)),
            reserved=_resources(Resources()),
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
            generation=host.generation,
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


def _resources(amount: Resources) -> pb.HostResources:
    return pb.HostResources(vcpus=amount.vcpus, memory_bytes=amount.memory_bytes, vms=amount.vms)
