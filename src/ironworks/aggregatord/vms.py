"""Is there such a VM? The metald of its host says so; gatewayd says where that answers.

A batch comes from billaged, with a credential of its own. So a VM that is new here is asked for at
the other service of the host, once. While one of them does not answer no VM is unknown: usage must
not be held back because another service is away. metald remembers VMs for a day after they were
deleted (its `tombstone_seconds`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import structlog

from ironworks.gen.ironworks.common.v1 import common_pb
from ironworks.gen.ironworks.gatewayd.v1 import hosts_pb
from ironworks.gen.ironworks.metald.v1 import vm_pb
from ironworks.model.errors import InvalidRequest, IronError, NotFound
from ironworks.model.units import NS_PER_SECOND
from ironworks.runtime.clock import Clock

_log = structlog.stdlib.get_logger()

SILENT_NS = 30 * NS_PER_SECOND
"""How long a host is not asked again after it, or gatewayd, has not answered."""
MAX_HOSTS = 10_000
_PAGE = 1_000


class HostDirectory(Protocol):
    """The part of gatewayd's generated client that is used here."""

    async def list_hosts(self, request: hosts_pb.ListHostsRequest, /) -> hosts_pb.ListHostsResponse:
        """Hosts, in pages."""
        ...


class VmDirectory(Protocol):
    """The part of metald's generated client that is used here."""

    async def get_vm(self, request: vm_pb.GetVmRequest, /) -> vm_pb.Vm:
        """One VM."""
        ...


class Vms:
    """Asks hosts for their VMs."""

    def __init__(
        self, hosts: HostDirectory, vms_at: Callable[[str], VmDirectory], clock: Clock
    ) -> None:
        """Find hosts by `hosts`; `vms_at` makes the client of the metald at a URL."""
        self._hosts = hosts
        self._vms_at = vms_at
        self._clock = clock
        self._urls: dict[str, str] = {}
        self._silent_until_ns: dict[str, int] = {}

    async def unknown(self, host_id: str, tenants: Mapping[str, str]) -> set[str]:
        """Of VMs (and whose they are said to be) those of which their host says otherwise."""
        found: set[str] = set()
        if self._clock.monotonic_ns() < self._silent_until_ns.get(host_id, 0):
            return found
        vm_id = ""
        try:
            url = await self._url(host_id) if tenants else ""
            for vm_id, tenant_id in sorted(tenants.items() if url else ()):
                if not await self._is_there(url, vm_id, tenant_id):
                    found.add(vm_id)
        except IronError as error:
            # It may answer elsewhere by now.
            self._urls.pop(host_id, None)
            self._silent_until_ns[host_id] = self._clock.monotonic_ns() + SILENT_NS
            _log.warning("vm_not_verified", vm_id=vm_id, host_id=host_id, error=str(error))
        return found

    async def _is_there(self, url: str, vm_id: str, tenant_id: str) -> bool:
        try:
            vm = await self._vms_at(url).get_vm(vm_pb.GetVmRequest(vm_id=vm_id))
        except (NotFound, InvalidRequest):
            # What is no id of a VM is none of its VMs either.
            return False
        return vm.tenant_id == tenant_id

    async def _url(self, host_id: str) -> str:
        """Where a host's metald answers; empty if gatewayd does not know the host."""
        if host_id not in self._urls:
            token, urls = "", dict[str, str]()
            while len(urls) < MAX_HOSTS:
                page = common_pb.PageRequest(page_size=_PAGE, page_token=token)
                answer = await self._hosts.list_hosts(hosts_pb.ListHostsRequest(page=page))
                urls |= {one.host_id: one.metald_url for one in answer.hosts}
                token = answer.page.next_page_token if answer.page else ""
                if not token:
                    break
            self._urls = urls
        return self._urls.get(host_id, "")
