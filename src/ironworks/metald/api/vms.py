"""VmService."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from connectrpc.request import RequestContext
from protobuf import Oneof

from ironworks.gen.ironworks.common.v1 import common_pb
from ironworks.gen.ironworks.metald.v1 import vm_pb as pb
from ironworks.gen.ironworks.metald.v1.vm_connect import VmService
from ironworks.metald.api import messages
from ironworks.metald.api.network_messages import (
    read_network,
    read_rate_limits,
    stats_message,
)
from ironworks.metald.api.repeats import finite_seconds, once_of
from ironworks.metald.app import boot, change, create, queries, restart, stop
from ironworks.metald.app.change import Change
from ironworks.metald.app.context import Context, Once
from ironworks.metald.app.network import network_stats
from ironworks.metald.app.watching import watch_vms
from ironworks.metald.types import Vm, VmKey
from ironworks.model.ids import check_id
from ironworks.model.pages import encode_token, read_page
from ironworks.runtime.identity.caller import current_caller, current_tenant_id

MAX_LISTED = 4096
"""Messages of VMs that are kept for the next list, at some kilobytes each; most of a page are as
they were a moment ago, and to make their messages again takes longer than all the rest."""
_Ctx = RequestContext[Any, Any]
_Change = pb.PauseVmRequest | pb.ResumeVmRequest | pb.RebootVmRequest


def _visible_tenant() -> str | None:
    """The tenant whose VMs the caller may see; None: all of them.

    Only an operator and a service that acts for no tenant have none.
    """
    return current_caller().tenant_id


class VmHandlers(VmService):
    """VmService."""

    def __init__(self, context: Context) -> None:
        """Serve the VMs of `context`."""
        self._context = context
        self._listed: dict[VmKey, pb.Vm] = {}

    async def _vm(self, vm_id: str) -> Vm:
        check_id(vm_id, "vm", "vm_id")
        return await queries.get_vm(self._context, vm_id, _visible_tenant())

    def _message(self, vm: Vm) -> pb.Vm:
        return messages.vm_message(vm, self._context)

    async def create_vm(self, request: pb.CreateVmRequest, _ctx: _Ctx, /) -> pb.Vm:
        """See the proto."""
        vm = await create.create_vm(
            self._context,
            tenant_id=current_tenant_id(),
            vm_id=request.vm_id,
            spec=messages.read_spec(request.spec),
            idempotency_key=request.idempotency_key,
            reservation_id=request.reservation_id,
        )
        return await self._details(vm.vm_id)

    async def _claimed(self, request: _Change) -> tuple[Vm, Once, bool]:
        """The VM of a request, the request's key, and whether it has been done already."""
        vm = await self._vm(request.vm_id)
        once = once_of(request, vm.tenant_id)
        repeated = await self._context.is_repeated(once)
        if repeated:
            await self._context.operations.settled(vm.vm_id)
        return vm, once, repeated

    async def boot_vm(self, request: pb.BootVmRequest, _ctx: _Ctx, /) -> pb.Vm:
        """See the proto."""
        timeout_seconds = finite_seconds(request.timeout_seconds, "timeout_seconds")
        vm = await self._vm(request.vm_id)
        # Joined, not answered: who repeats a boot waits for it, and is told how it ended.
        await boot.boot_vm(
            self._context,
            vm,
            timeout_seconds=timeout_seconds,
            detach=request.detach,
            once=once_of(request, vm.tenant_id),
        )
        return await self._details(vm.vm_id)

    async def pause_vm(self, request: pb.PauseVmRequest, _ctx: _Ctx, /) -> pb.Vm:
        """See the proto."""
        vm, once, repeated = await self._claimed(request)
        if not repeated:
            await stop.pause_vm(self._context, vm, once=once)
        return await self._details(vm.vm_id)

    async def resume_vm(self, request: pb.ResumeVmRequest, _ctx: _Ctx, /) -> pb.Vm:
        """See the proto."""
        vm, once, repeated = await self._claimed(request)
        if not repeated:
            await stop.resume_vm(self._context, vm, once=once)
        return await self._details(vm.vm_id)

    async def reboot_vm(self, request: pb.RebootVmRequest, _ctx: _Ctx, /) -> pb.Vm:
        """See the proto."""
        wanted = stop.shutdown_request(
            self._context,
            timeout_seconds=finite_seconds(request.timeout_seconds, "timeout_seconds"),
            force=False,
            reason="",
        )
        vm, once, repeated = await self._claimed(request)
        if not repeated:
            await restart.reboot_vm(self._context, vm, wanted, once=once)
        return await self._details(vm.vm_id)

    async def shutdown_vm(self, request: pb.ShutdownVmRequest, _ctx: _Ctx, /) -> pb.Vm:
        """See the proto."""
        wanted = stop.shutdown_request(
            self._context,
            timeout_seconds=finite_seconds(request.timeout_seconds, "timeout_seconds"),
            force=request.force,
            reason=request.reason,
        )
        vm = await self._vm(request.vm_id)
        once = once_of(request, vm.tenant_id)
        await stop.shutdown_vm(self._context, vm, wanted, once=once)
        return await self._details(vm.vm_id)

    async def delete_vm(self, request: pb.DeleteVmRequest, _ctx: _Ctx, /) -> pb.Vm:
        """See the proto."""
        vm = await self._vm(request.vm_id)
        once = once_of(request, vm.tenant_id)
        await stop.delete_vm(self._context, vm, force=request.force, once=once)
        return await self._details(vm.vm_id)

    async def update_vm(self, request: pb.UpdateVmRequest, _ctx: _Ctx, /) -> pb.Vm:
        """See the proto."""
        wanted = Change(
            if_generation=request.if_generation,
            network=None if request.network is None else read_network(request.network),
            rate_limits=(
                None if request.rate_limits is None else read_rate_limits(request.rate_limits)
            ),
            restart=None if request.restart is None else messages.read_restart(request.restart),
            cpu_weight=request.cpu_weight,
            vcpus=request.vcpus,
            memory_bytes=request.memory_bytes,
        )
        vm = await self._vm(request.vm_id)
        once = once_of(request, vm.tenant_id)
        await change.update_vm(self._context, vm, wanted, once=once)
        return await self._details(vm.vm_id)

    async def get_vm(self, request: pb.GetVmRequest, _ctx: _Ctx, /) -> pb.Vm:
        """See the proto."""
        check_id(request.vm_id, "vm", "vm_id")
        return await self._details(request.vm_id)

    async def _details(self, vm_id: str) -> pb.Vm:
        details = await queries.get_details(self._context, vm_id, _visible_tenant())
        message = self._message(details.vm)
        message.history = [messages.transition_message(line) for line in details.history]
        message.timings = [messages.timing_message(timing) for timing in details.timings]
        return message

    async def list_vms(self, request: pb.ListVmsRequest, _ctx: _Ctx, /) -> pb.ListVmsResponse:
        """See the proto."""
        wanted = messages.read_filter(request.filter, _visible_tenant())
        page_request = request.page or common_pb.PageRequest()
        filters = (wanted,)
        page = read_page(page_request.page_size, page_request.page_token, filters)
        if len(self._listed) >= MAX_LISTED:
            self._listed = {}
        listed = self._listed
        found = await queries.list_vms(self._context, wanted, page, listed)
        listed.update((key, self._message(vm)) for key, vm in found.vms.items())
        token = "" if found.after is None else encode_token(found.after, filters)
        return pb.ListVmsResponse(
            vms=[listed[key] for key in found.keys],
            page=common_pb.PageInfo(next_page_token=token),
        )

    async def watch_vms(
        self, request: pb.WatchVmsRequest, _ctx: _Ctx, /
    ) -> AsyncGenerator[pb.WatchVmsResponse]:
        """See the proto."""
        wanted = messages.read_filter(request.filter, _visible_tenant())
        async with aclosing(watch_vms(self._context, wanted, request.after_sequence)) as changes:
            async for one in changes:
                yield pb.WatchVmsResponse(event=messages.change_message(one, self._context))

    async def get_vm_network_stats(
        self, request: pb.GetVmNetworkStatsRequest, _ctx: _Ctx, /
    ) -> pb.GetVmNetworkStatsResponse:
        """See the proto."""
        vm = await self._vm(request.vm_id)
        return stats_message(await network_stats(self._context, vm))

    async def stream_console(
        self, request: pb.StreamConsoleRequest, _ctx: _Ctx, /
    ) -> AsyncGenerator[pb.StreamConsoleResponse]:
        """See the proto."""
        vm = await self._vm(request.vm_id)
        start = queries.ConsoleStart()
        match request.start:
            case Oneof(field="offset", value=int(offset)):
                start = queries.ConsoleStart(offset=offset)
            case Oneof(field="tail_lines", value=int(lines)):
                start = queries.ConsoleStart(tail_lines=lines)
            case _:
                pass
        pieces = queries.stream_console(self._context, vm, start, follow=request.follow)
        async for offset, data in pieces:
            yield pb.StreamConsoleResponse(data=data, offset=offset)
