"""The fake API's VMs as they are steered, and its host."""

# ruff: noqa: ARG002, D102 - handlers of the API: their contract is in the proto

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

from protobuf import Message

from ironworks.gen.ironworks.metald.v1 import host_pb, vm_pb
from ironworks.gen.ironworks.metald.v1.host_connect import HostService
from ironworks.gen.ironworks.metald.v1.vm_connect import VmService
from ironworks.model.errors import NotFound
from ironworks.model.ids import derived_id
from ironworks.model.units import GIB

VM_ID = derived_id("vm", "fake")
HOST_ID = derived_id("hst", "fake")
_STATE = vm_pb.VmState
_SIZE = host_pb.HostResources(vms=10, vcpus=8, memory_bytes=8 * GIB, disk_bytes=100 * GIB)


class Asked(Protocol):
    """Where calls are noted."""

    def ask(self, method: str, request: Message[Any], *, after: bool = False) -> None: ...


class SteeredVms(VmService):
    """What changes a VM; reading one is the subclass's affair."""

    def __init__(self, api: Asked) -> None:
        self._api = api

    def _after(self, method: str, request: Any, state: vm_pb.VmState, reason: str) -> vm_pb.Vm:
        self._api.ask(method, request)
        if request.vm_id != VM_ID:
            raise NotFound(f"There is no VM {request.vm_id}.")
        return vm_pb.Vm(id=VM_ID, state=state, reason=reason, ready=state is _STATE.RUNNING)

    async def create_vm(self, request: vm_pb.CreateVmRequest, ctx: Any) -> vm_pb.Vm:
        self._api.ask("CreateVm", request)
        return vm_pb.Vm(id=VM_ID, spec=request.spec, state=_STATE.CREATED)

    async def boot_vm(self, request: vm_pb.BootVmRequest, ctx: Any) -> vm_pb.Vm:
        return self._after("BootVm", request, _STATE.RUNNING, "The workload runs.")

    async def pause_vm(self, request: vm_pb.PauseVmRequest, ctx: Any) -> vm_pb.Vm:
        return self._after("PauseVm", request, _STATE.PAUSED, "It was asked to pause.")

    async def resume_vm(self, request: vm_pb.ResumeVmRequest, ctx: Any) -> vm_pb.Vm:
        return self._after("ResumeVm", request, _STATE.RUNNING, "It was asked to run on.")

    async def reboot_vm(self, request: vm_pb.RebootVmRequest, ctx: Any) -> vm_pb.Vm:
        return self._after("RebootVm", request, _STATE.RUNNING, "The workload runs again.")

    async def shutdown_vm(self, request: vm_pb.ShutdownVmRequest, ctx: Any) -> vm_pb.Vm:
        return self._after("ShutdownVm", request, _STATE.STOPPED, request.reason)

    async def delete_vm(self, request: vm_pb.DeleteVmRequest, ctx: Any) -> vm_pb.Vm:
        return self._after("DeleteVm", request, _STATE.DELETED, "Nothing is left of it.")

    async def update_vm(self, request: vm_pb.UpdateVmRequest, ctx: Any) -> vm_pb.Vm:
        return self._after("UpdateVm", request, _STATE.RUNNING, "")

    async def watch_vms(
        self, request: vm_pb.WatchVmsRequest, ctx: Any
    ) -> AsyncIterator[vm_pb.WatchVmsResponse]:
        self._api.ask("WatchVms", request)
        for sequence, state in enumerate((_STATE.BOOTING, _STATE.RUNNING), start=7):
            vm = vm_pb.Vm(id=VM_ID, state=state, reason="why", ready=state is _STATE.RUNNING)
            yield vm_pb.WatchVmsResponse(event=vm_pb.VmEvent(sequence=sequence, vm=vm))


class FakeHost(HostService):
    """A host that is steered."""

    def __init__(self, api: Asked) -> None:
        self._api = api
        self._limit = host_pb.HostResources()

    def _host(self, method: str, request: Any, state: host_pb.HostState) -> host_pb.Host:
        self._api.ask(method, request)
        return host_pb.Host(
            id=HOST_ID,
            name="one",
            state=state,
            reason=getattr(request, "reason", ""),
            capacity=_SIZE,
            allocated=host_pb.HostResources(vms=2, vcpus=3),
            drivers=[
                host_pb.HostDriver(
                    kind="qemu", available=True, accel="tcg", sentence="No KVM here.", chosen=True
                )
            ],
            drain=host_pb.HostDrain(vms_at_start=5, vms_left=2, problems=["vm_x: it hangs"])
            if state is host_pb.HostState.DRAINING
            else None,
        )

    async def get_host(self, request: host_pb.GetHostRequest, ctx: Any) -> host_pb.Host:
        return self._host("ShowHost", request, host_pb.HostState.ACTIVE)

    async def cordon_host(self, request: host_pb.CordonHostRequest, ctx: Any) -> host_pb.Host:
        return self._host("CordonHost", request, host_pb.HostState.CORDONED)

    async def uncordon_host(self, request: host_pb.UncordonHostRequest, ctx: Any) -> host_pb.Host:
        return self._host("UncordonHost", request, host_pb.HostState.ACTIVE)

    async def drain_host(self, request: host_pb.DrainHostRequest, ctx: Any) -> host_pb.Host:
        return self._host("DrainHost", request, host_pb.HostState.DRAINING)

    async def get_tenant_quota(
        self, request: host_pb.GetTenantQuotaRequest, ctx: Any
    ) -> host_pb.TenantQuota:
        self._api.ask("GetTenantQuota", request)
        return host_pb.TenantQuota(tenant_id=request.tenant_id, limit=self._limit)

    async def set_tenant_quota(
        self, request: host_pb.SetTenantQuotaRequest, ctx: Any
    ) -> host_pb.TenantQuota:
        self._api.ask("SetTenantQuota", request)
        self._limit = request.limit or host_pb.HostResources()
        return host_pb.TenantQuota(tenant_id=request.tenant_id, limit=self._limit)
