"""VmService."""

import math
from collections.abc import AsyncGenerator
from typing import Any

from connectrpc.request import RequestContext
from protobuf import Oneof

from ironworks.gen.ironworks.common.v1 import common_pb
from ironworks.gen.ironworks.metald.v1 import vm_pb as pb
from ironworks.gen.ironworks.metald.v1.vm_connect import VmService
from ironworks.metald.api import messages
from ironworks.metald.app import boot, create, queries, stop
from ironworks.metald.app.context import Context
from ironworks.metald.types import Vm
from ironworks.model.errors import InvalidRequest
from ironworks.model.ids import check_id
from ironworks.model.pages import encode_token, read_page
from ironworks.runtime.identity.caller import current_caller, current_tenant_id

_Ctx = RequestContext[Any, Any]


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

    async def _vm(self, vm_id: str) -> Vm:
        check_id(vm_id, "vm", "vm_id")
        return await queries.get_vm(self._context, vm_id, _visible_tenant())

    def _message(self, vm: Vm) -> pb.Vm:
        return messages.vm_message(vm, self._context)

    async def create_vm(self, request: pb.CreateVmRequest, _ctx: _Ctx, /) -> pb.Vm:
        """See the proto."""
        if request.reservation_id:
            raise messages.later("Reservations", "reservation_id")
        vm = await create.create_vm(
            self._context,
            tenant_id=current_tenant_id(),
            vm_id=request.vm_id,
            spec=messages.read_spec(request.spec),
            idempotency_key=request.idempotency_key,
        )
        return await self._details(vm.vm_id)

    async def boot_vm(self, request: pb.BootVmRequest, _ctx: _Ctx, /) -> pb.Vm:
        """See the proto."""
        vm = await boot.boot_vm(
            self._context,
            await self._vm(request.vm_id),
            timeout_seconds=_finite(request.timeout_seconds, "timeout_seconds"),
            detach=request.detach,
        )
        return await self._details(vm.vm_id)

    async def pause_vm(self, request: pb.PauseVmRequest, _ctx: _Ctx, /) -> pb.Vm:
        """See the proto."""
        return self._message(await stop.pause_vm(self._context, await self._vm(request.vm_id)))

    async def resume_vm(self, request: pb.ResumeVmRequest, _ctx: _Ctx, /) -> pb.Vm:
        """See the proto."""
        return self._message(await stop.resume_vm(self._context, await self._vm(request.vm_id)))

    async def shutdown_vm(self, request: pb.ShutdownVmRequest, _ctx: _Ctx, /) -> pb.Vm:
        """See the proto."""
        wanted = stop.shutdown_request(
            self._context,
            timeout_seconds=_finite(request.timeout_seconds, "timeout_seconds"),
            force=request.force,
            reason=request.reason,
        )
        vm = await stop.shutdown_vm(self._context, await self._vm(request.vm_id), wanted)
        return await self._details(vm.vm_id)

    async def delete_vm(self, request: pb.DeleteVmRequest, _ctx: _Ctx, /) -> pb.Vm:
        """See the proto."""
        vm = await self._vm(request.vm_id)
        vm = await stop.delete_vm(self._context, vm, force=request.force)
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
        vms, after = await queries.list_vms(self._context, wanted, page)
        token = "" if after is None else encode_token(after, filters)
        return pb.ListVmsResponse(
            vms=[self._message(vm) for vm in vms],
            page=common_pb.PageInfo(next_page_token=token),
        )

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


def _finite(value: float, field: str) -> float:
    if not math.isfinite(value) or value < 0:
        raise InvalidRequest(f"{field} must be a number of seconds, 0 for the default.")
    return value
