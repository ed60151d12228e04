"""Hosts: the machines that run VMs. For operators."""

from __future__ import annotations

from collections.abc import Sequence

from ironworks.gen.ironworks.common.v1 import common_pb
from ironworks.gen.ironworks.gatewayd.v1 import hosts_pb
from ironworks.gen.ironworks.gatewayd.v1.hosts_connect import HostDirectoryServiceClient
from ironworks.sdk.resource import DEFAULT_LIMIT, Page, Resource, present, walk


class Hosts(Resource):
    """The directory of hosts."""

    async def get(self, host_id: str) -> hosts_pb.Host:
        """One host."""
        request = hosts_pb.GetHostRequest(host_id=host_id)
        answer = await self._connection.call(
            HostDirectoryServiceClient, HostDirectoryServiceClient.get_host, request
        )
        return present(answer.host)

    async def list(
        self,
        *,
        zone: str = "",
        states: Sequence[hosts_pb.HostState] = (),
        limit: int = DEFAULT_LIMIT,
        page_token: str = "",
    ) -> Page[hosts_pb.Host]:
        """Hosts, by name."""

        async def ask(page: common_pb.PageRequest) -> hosts_pb.ListHostsResponse:
            request = hosts_pb.ListHostsRequest(page=page, zone=zone, states=[*states])
            return await self._connection.call(
                HostDirectoryServiceClient, HostDirectoryServiceClient.list_hosts, request
            )

        return await walk(ask, lambda a: a.hosts, limit=limit, page_token=page_token)
