"""VMs, as their host knows them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from protobuf import Oneof

from ironworks.gen.ironworks.common.v1 import common_pb
from ironworks.gen.ironworks.metald.v1 import vm_pb
from ironworks.gen.ironworks.metald.v1.vm_connect import VmServiceClient
from ironworks.sdk.resource import DEFAULT_LIMIT, Page, Resource, walk


class Vms(Resource):
    """VMs of the caller's tenant."""

    async def get(self, vm_id: str) -> vm_pb.Vm:
        """One VM, with its history and the time of each step of its boot."""
        request = vm_pb.GetVmRequest(vm_id=vm_id)
        return await self._connection.call(VmServiceClient, VmServiceClient.get_vm, request)

    async def list(
        self,
        *,
        states: Sequence[vm_pb.VmState] = (),
        deployment_id: str = "",
        limit: int = DEFAULT_LIMIT,
        page_token: str = "",
    ) -> Page[vm_pb.Vm]:
        """VMs, oldest first; without `states` all but deleted ones."""
        chosen = vm_pb.VmFilter(states=[*states], deployment_id=deployment_id)

        async def ask(page: common_pb.PageRequest) -> vm_pb.ListVmsResponse:
            request = vm_pb.ListVmsRequest(page=page, filter=chosen)
            return await self._connection.call(VmServiceClient, VmServiceClient.list_vms, request)

        return await walk(ask, lambda a: a.vms, limit=limit, page_token=page_token)

    async def network_stats(self, vm_id: str) -> vm_pb.GetVmNetworkStatsResponse:
        """What a VM has sent and received, and what its firewall has refused."""
        request = vm_pb.GetVmNetworkStatsRequest(vm_id=vm_id)
        return await self._connection.call(
            VmServiceClient, VmServiceClient.get_vm_network_stats, request
        )

    async def console(
        self, vm_id: str, *, tail_lines: int = 100, follow: bool = False
    ) -> AsyncGenerator[bytes]:
        """The serial console's log, as the guest wrote it.

        Args:
            vm_id: `vm_…`.
            tail_lines: Begin with this many of the last lines.
            follow: Stay and hand out what comes, until the VM ends.
        """
        request = vm_pb.StreamConsoleRequest(
            vm_id=vm_id, start=Oneof("tail_lines", tail_lines), follow=follow
        )
        async with aclosing(
            self._connection.stream(VmServiceClient, VmServiceClient.stream_console, request)
        ) as messages:
            async for message in messages:
                yield message.data
