"""Hosts: the machines that run VMs. For operators.

`list` and `get` ask the directory of all hosts. The other calls go to the host that the API runs
on: on one machine, that is the host.
"""

from __future__ import annotations

from collections.abc import Sequence

from ironworks.gen.ironworks.common.v1 import common_pb
from ironworks.gen.ironworks.gatewayd.v1 import hosts_pb
from ironworks.gen.ironworks.gatewayd.v1.hosts_connect import HostDirectoryServiceClient
from ironworks.gen.ironworks.metald.v1 import host_pb
from ironworks.gen.ironworks.metald.v1.host_connect import HostServiceClient
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

    async def show(self) -> host_pb.Host:
        """The host itself: capacity, what is taken and reserved, drivers, how far a drain is."""
        return await self._connection.call(
            HostServiceClient, HostServiceClient.get_host, host_pb.GetHostRequest()
        )

    async def cordon(self, reason: str = "") -> host_pb.Host:
        """Take no new VMs."""
        request = host_pb.CordonHostRequest(reason=reason)
        return await self._connection.call(
            HostServiceClient, HostServiceClient.cordon_host, request
        )

    async def uncordon(self) -> host_pb.Host:
        """Take VMs again; ends a drain."""
        return await self._connection.call(
            HostServiceClient, HostServiceClient.uncordon_host, host_pb.UncordonHostRequest()
        )

    async def drain(self, reason: str = "", *, timeout_seconds: float = 0) -> host_pb.Host:
        """End every VM, and take no new ones; answers at once, `show` tells how far it is.

        Args:
            reason: Kept with the state.
            timeout_seconds: How long each guest may take; 0: 30 seconds.
        """
        request = host_pb.DrainHostRequest(reason=reason, timeout_seconds=timeout_seconds)
        return await self._connection.call(HostServiceClient, HostServiceClient.drain_host, request)

    async def quota(self, tenant_id: str) -> host_pb.TenantQuota:
        """What a tenant may have on the host, and has."""
        request = host_pb.GetTenantQuotaRequest(tenant_id=tenant_id)
        return await self._connection.call(
            HostServiceClient, HostServiceClient.get_tenant_quota, request
        )

    async def set_quota(self, tenant_id: str, limit: host_pb.HostResources) -> host_pb.TenantQuota:
        """Set what a tenant may have on the host; 0 in a field: no limit."""
        request = host_pb.SetTenantQuotaRequest(tenant_id=tenant_id, limit=limit)
        return await self._connection.call(
            HostServiceClient, HostServiceClient.set_tenant_quota, request
        )
