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

    async def create(
        self, spec: vm_pb.VmSpec, *, vm_id: str = "", idempotency_key: str = ""
    ) -> vm_pb.Vm:
        """Make a VM up to CREATED; `boot` lets it run.

        Args:
            spec: What it shall be.
            vm_id: `vm_…`; made by the host if empty.
            idempotency_key: Made if empty.
        """
        request = vm_pb.CreateVmRequest(spec=spec, vm_id=vm_id, idempotency_key=idempotency_key)
        return await self._connection.call(VmServiceClient, VmServiceClient.create_vm, request)

    async def boot(
        self, vm_id: str, *, timeout_seconds: float = 0, detach: bool = False
    ) -> vm_pb.Vm:
        """Boot a VM that is CREATED, and wait until it is ready.

        Args:
            vm_id: `vm_…`.
            timeout_seconds: After which the boot has failed; 0: the host's default.
            detach: Answer as soon as it boots.
        """
        request = vm_pb.BootVmRequest(vm_id=vm_id, timeout_seconds=timeout_seconds, detach=detach)
        return await self._connection.call(VmServiceClient, VmServiceClient.boot_vm, request)

    async def pause(self, vm_id: str) -> vm_pb.Vm:
        """Stop its vCPUs."""
        request = vm_pb.PauseVmRequest(vm_id=vm_id)
        return await self._connection.call(VmServiceClient, VmServiceClient.pause_vm, request)

    async def resume(self, vm_id: str) -> vm_pb.Vm:
        """Let its vCPUs run on."""
        request = vm_pb.ResumeVmRequest(vm_id=vm_id)
        return await self._connection.call(VmServiceClient, VmServiceClient.resume_vm, request)

    async def reboot(self, vm_id: str, *, timeout_seconds: float = 0) -> vm_pb.Vm:
        """End its guest and boot it again at the same address; answers when it is ready.

        Args:
            vm_id: `vm_…`.
            timeout_seconds: After which the old guest is ended by force; 0: 30 seconds.
        """
        request = vm_pb.RebootVmRequest(vm_id=vm_id, timeout_seconds=timeout_seconds)
        return await self._connection.call(VmServiceClient, VmServiceClient.reboot_vm, request)

    async def shutdown(
        self, vm_id: str, *, timeout_seconds: float = 0, force: bool = False, reason: str = ""
    ) -> vm_pb.Vm:
        """Ask its guest to end, and end it by force if it does not.

        Args:
            vm_id: `vm_…`.
            timeout_seconds: After which it is ended by force; 0: 30 seconds.
            force: At once, without asking.
            reason: Kept in its history.
        """
        request = vm_pb.ShutdownVmRequest(
            vm_id=vm_id, timeout_seconds=timeout_seconds, force=force, reason=reason
        )
        return await self._connection.call(VmServiceClient, VmServiceClient.shutdown_vm, request)

    async def delete(self, vm_id: str, *, force: bool = False) -> vm_pb.Vm:
        """Remove a VM and everything of it; with `force` also one that runs."""
        request = vm_pb.DeleteVmRequest(vm_id=vm_id, force=force)
        return await self._connection.call(VmServiceClient, VmServiceClient.delete_vm, request)

    async def update(self, request: vm_pb.UpdateVmRequest) -> vm_pb.Vm:
        """Change a VM's limits, rules, policy or size."""
        return await self._connection.call(VmServiceClient, VmServiceClient.update_vm, request)

    async def watch(
        self,
        *,
        states: Sequence[vm_pb.VmState] = (),
        deployment_id: str = "",
        after_sequence: int = 0,
    ) -> AsyncGenerator[vm_pb.VmEvent]:
        """What is, then what changes; without an end.

        Args:
            states: Only VMs that are in one of these states, or leave them.
            deployment_id: Only replicas of this deployment.
            after_sequence: Go on after this event; 0: begin with what is.
        """
        chosen = vm_pb.VmFilter(states=[*states], deployment_id=deployment_id)
        request = vm_pb.WatchVmsRequest(filter=chosen, after_sequence=after_sequence)
        async with aclosing(
            self._connection.stream(VmServiceClient, VmServiceClient.watch_vms, request)
        ) as messages:
            async for message in messages:
                if message.event is not None:
                    yield message.event

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
