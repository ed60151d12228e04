"""Hosts."""

from __future__ import annotations

from ironworks.gen.ironworks.gatewayd.v1 import hosts_pb
from ironworks.sdk import AsyncIronworks
from ironworks.testkit.fakeapi import FakeApi


async def test_list(api: FakeApi, client: AsyncIronworks) -> None:
    page = await client.hosts.list(zone="az-1a", states=[hosts_pb.HostState.READY])
    assert [host.name for host in page] == ["one"]
    request = api.asked["ListHosts"][-1]
    assert isinstance(request, hosts_pb.ListHostsRequest)
    assert (request.zone, request.states) == ("az-1a", [hosts_pb.HostState.READY])
