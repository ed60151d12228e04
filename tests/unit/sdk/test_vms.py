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
