"""Is there such a VM? The metald of its host says so; gatewayd says where that answers.

A batch comes from billaged, with a credential of its own. So a VM that is new here is asked for at
the other service of the host, and what that says is remembered. While one of them does not answer
no VM is unknown: usage must not be held back because another service is away. metald remembers VMs
for a day after they were deleted (its `tombstone_seconds`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import NamedTuple, Protocol, TypeVar

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
MISSING_NS = 30 * NS_PER_SECOND
"""How long a host is not asked again for a VM that it does not have: reports come every second."""
MAX_KNOWN = 100_000
MAX_HOSTS = 10_000
_PAGE = 1_000
_T = TypeVar("_T")


class Claim(NamedTuple):
    """Whose a VM is said to be."""

    vm_id: str
    tenant_id: str


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
        self._there: OrderedDict[tuple[str, Claim], None] = OrderedDict()
        self._missing_until_ns: OrderedDict[tuple[str, Claim], int] = OrderedDict()

    async def unknown(self, host_id: str, claims: Collection[Claim]) -> set[Claim]:
        """Those of which their host says otherwise."""
        now_ns = self._clock.monotonic_ns()
        asked = [one for one in sorted(claims) if (host_id, one) not in self._there]
        found = {
            one for one in asked if self._missing_until_ns.get((host_id, one), now_ns) > now_ns
        }
        asked = [one for one in asked if one not in found]
        if not asked or now_ns < self._silent_until_ns.get(host_id, 0):
            return found
        try:
            url = await self._url(host_id)
            for claim in asked if url else ():
                if await self._is_there(url, claim):
                    _remember(self._there, (host_id, claim), None)
                else:
                    found.add(claim)
                    _remember(self._missing_until_ns, (host_id, claim), now_ns + MISSING_NS)
        except IronError as error:
            # It may answer elsewhere by now.
            self._urls.pop(host_id, None)
            self._silent_until_ns[host_id] = self._clock.monotonic_ns() + SILENT_NS
            _log.warning("vm_not_verified", host_id=host_id, error=str(error))
        return found

    async def _is_there(self, url: str, claim: Claim) -> bool:
        try:
            vm = await self._vms_at(url).get_vm(vm_pb.GetVmRequest(vm_id=claim.vm_id))
        except (NotFound, InvalidRequest):
            # What is no id of a VM is none of its VMs either.
            return False
        return vm.tenant_id == claim.tenant_id

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


def _remember(known: OrderedDict[tuple[str, Claim], _T], key: tuple[str, Claim], value: _T) -> None:
    known[key] = value
    known.move_to_end(key)
    while len(known) > MAX_KNOWN:
        known.popitem(last=False)
