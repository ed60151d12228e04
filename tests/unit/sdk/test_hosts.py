"""Hosts."""

from __future__ import annotations

from ironworks.gen.ironworks.gatewayd.v1 import hosts_pb
from ironworks.gen.ironworks.metald.v1 import host_pb
from ironworks.sdk import AsyncIronworks
from ironworks.testkit.fakeapi import FakeApi


async def test_list(api: FakeApi, client: AsyncIronworks) -> None:
    page = await client.hosts.list(zone="az-1a", states=[hosts_pb.HostState.READY])
    assert [host.name for host in page] == ["one"]
    request = api.asked["ListHosts"][-1]
    assert isinstance(request, hosts_pb.ListHostsRequest)
    assert (request.zone, request.states) == ("az-1a", [hosts_pb.HostState.READY])


async def test_the_host_is_steered(api: FakeApi, client: AsyncIronworks) -> None:
    hosts, state = client.hosts, host_pb.HostState
    assert (await hosts.show()).state is state.ACTIVE
    assert (await hosts.cordon("disks")).reason == "disks"
    assert (await hosts.uncordon()).state is state.ACTIVE
    drained = await hosts.drain("kernel", timeout_seconds=9)
    assert drained.drain is not None
    assert drained.drain.vms_left == 2
    limit = host_pb.HostResources(vms=3)
    assert (await hosts.set_quota("tnt_x", limit)).limit == limit
    assert (await hosts.quota("tnt_x")).limit == limit
    assert getattr(api.asked["DrainHost"][-1], "idempotency_key", "") != ""
