"""Tells gatewayd's host directory that this host is there, and what it has left."""

import platform
from collections.abc import Callable
from importlib.metadata import version

from ironworks.gen.ironworks.gatewayd.v1 import hosts_pb as pb
from ironworks.gen.ironworks.gatewayd.v1.hosts_connect import HostDirectoryServiceClient
from ironworks.metald.app.context import Context, Once
from ironworks.metald.app.host import drain
from ironworks.metald.app.queries import taken
from ironworks.metald.types import HostState, Resources
from ironworks.model.errors import NotFound
from ironworks.model.units import NS_PER_SECOND
from ironworks.runtime.reconcile import Report

PERIOD_SECONDS = 1.0
"""Often, so that a platform that is just starting has its host as soon as gatewayd is up."""
HEARTBEAT_SECONDS = 5.0
_STATES = {
    HostState.ACTIVE: pb.HostState.READY,
    HostState.CORDONED: pb.HostState.CORDONED,
    HostState.DRAINING: pb.HostState.DRAINING,
    HostState.DRAINED: pb.HostState.DRAINING,
}
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class HostReporter:
    """Registers when it has to, and reports otherwise."""

    def __init__(self, context: Context, client: Callable[[], HostDirectoryServiceClient]) -> None:
        """Report the host of `context`."""
        self._context = context
        self._client = client
        self._registered = False
        self._reported_at_ns = 0

    async def activate(self) -> Report:
        """One report, if it is time for one."""
        context = self._context
        now_ns = context.clock.monotonic_ns()
        fresh_ns = int(HEARTBEAT_SECONDS * NS_PER_SECOND)
        if self._registered and now_ns - self._reported_at_ns < fresh_ns:
            return Report()
        committed, reserved = await taken(context)
        used = committed + reserved
        client = self._client()
        if not self._registered:
            await client.register_host(pb.RegisterHostRequest(host=self._host(used)))
            self._registered, self._reported_at_ns = True, now_ns
            return Report(counts={"registered": 1})
        try:
            answer = await client.heartbeat(
                pb.HeartbeatRequest(
                    host_id=context.host.host_id,
                    allocated=_resources(used),
                    vms_known=committed.vms,
                    state=_STATES[context.host.state],
                )
            )
        except NotFound:
            self._registered = False
            raise
        self._reported_at_ns = now_ns
        if answer.state is pb.HostState.DRAINING and context.host.drain is None:
            once = Once(scope="/DrainHost", key="", request=b"")
            await drain(context, "The directory of hosts drains it.", 0, once=once)
        return Report(counts={"vms": committed.vms})

    def _host(self, used: Resources) -> pb.Host:
        context = self._context
        settings = context.settings
        return pb.Host(
            host_id=context.host.host_id,
            name=settings.effective_host_name,
            metald_url=settings.metald_url,
            zone=settings.host_zone,
            region=settings.host_region,
            architecture=ARCHITECTURES.get(platform.machine(), platform.machine()),
            driver=context.probe.kind.value,
            acceleration=context.probe.accel.value,
            state=_STATES[context.host.state],
            capacity=_resources(context.limits.capacity),
            allocated=_resources(used),
            version=version("ironworks"),
        )


def _resources(amount: Resources) -> pb.HostResources:
    return pb.HostResources(
        vcpus=amount.vcpus,
        memory_bytes=amount.memory_bytes,
        disk_bytes=amount.disk_bytes,
        vms=amount.vms,
    )
