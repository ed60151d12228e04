"""VMs."""

from __future__ import annotations

import pytest
from protobuf import Oneof

from ironworks.gen.ironworks.metald.v1 import vm_pb
from ironworks.model.errors import NotFound
from ironworks.sdk import AsyncIronworks
from ironworks.testkit.fakeapi import FakeApi
from ironworks.testkit.fakenouns import CONSOLE, VM_ID


async def test_get_and_list(api: FakeApi, client: AsyncIronworks) -> None:
    assert (await client.vms.get(VM_ID)).accel == "tcg"
    page = await client.vms.list(states=[vm_pb.VmState.RUNNING], deployment_id="dep_x")
    assert [vm.id for vm in page] == [VM_ID]
    request = api.asked["ListVms"][-1]
    assert isinstance(request, vm_pb.ListVmsRequest)
    assert request.filter == vm_pb.VmFilter(states=[vm_pb.VmState.RUNNING], deployment_id="dep_x")
    with pytest.raises(NotFound):
        await client.vms.get("vm_none")


async def test_network_stats(api: FakeApi, client: AsyncIronworks) -> None:
    stats = await client.vms.network_stats(VM_ID)
    assert (stats.in_bytes, stats.denied[0].rule) == (2048, "egress")
    assert len(api.asked["GetVmNetworkStats"]) == 1


async def test_console(api: FakeApi, client: AsyncIronworks) -> None:
    pieces = [piece async for piece in client.vms.console(VM_ID, tail_lines=3, follow=True)]
    assert tuple(pieces) == CONSOLE
    request = api.asked["StreamConsole"][-1]
    assert isinstance(request, vm_pb.StreamConsoleRequest)
    assert (request.start, request.follow) == (Oneof("tail_lines", 3), True)


async def test_the_console_of_nobody(client: AsyncIronworks) -> None:
    with pytest.raises(NotFound):
        _ = [piece async for piece in client.vms.console("vm_none")]


async def test_a_vm_is_steered_through_its_life(api: FakeApi, client: AsyncIronworks) -> None:
    vms, state = client.vms, vm_pb.VmState
    created = await vms.create(vm_pb.VmSpec(name="web"), vm_id=VM_ID)
    assert (created.state, created.spec) == (state.CREATED, vm_pb.VmSpec(name="web"))
    assert (await vms.boot(VM_ID, timeout_seconds=9, detach=True)).state is state.RUNNING
    assert (await vms.pause(VM_ID)).state is state.PAUSED
    assert (await vms.resume(VM_ID)).state is state.RUNNING
    assert (await vms.reboot(VM_ID, timeout_seconds=3)).state is state.RUNNING
    await vms.update(vm_pb.UpdateVmRequest(vm_id=VM_ID, cpu_weight=7))
    assert (await vms.shutdown(VM_ID, force=True, reason="over")).reason == "over"
    assert (await vms.delete(VM_ID, force=True)).state is state.DELETED
    for method in ("CreateVm", "BootVm", "PauseVm", "RebootVm", "UpdateVm", "DeleteVm"):
        assert getattr(api.asked[method][-1], "idempotency_key", "") != ""


async def test_changes_are_handed_out_as_they_come(api: FakeApi, client: AsyncIronworks) -> None:
    events = [event async for event in client.vms.watch(deployment_id="dep_x", after_sequence=6)]
    assert [event.sequence for event in events] == [7, 8]
    request = api.asked["WatchVms"][-1]
    assert isinstance(request, vm_pb.WatchVmsRequest)
    assert request.after_sequence == 6
