"""Is there such a tenant? gatewayd owns them and says so.

Asked once for each tenant of a VM that is new here. While gatewayd does not answer nobody is
unknown: usage must not be held back because another service is away, and metald has started the VM
for a tenant that gatewayd had verified.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Protocol

import structlog

from ironworks.gen.ironworks.gatewayd.v1 import tenants_pb
from ironworks.model.errors import IronError, NotFound
from ironworks.model.units import NS_PER_SECOND
from ironworks.runtime.clock import Clock

_log = structlog.stdlib.get_logger()

MAX_KNOWN = 100_000
SILENT_NS = 30 * NS_PER_SECOND
"""How long gatewayd is not asked again after it has not answered."""


class TenantDirectory(Protocol):
    """The part of gatewayd's generated client that is used here."""

    async def get_tenant(
        self, request: tenants_pb.GetTenantRequest, /
    ) -> tenants_pb.GetTenantResponse:
        """One tenant."""
        ...


class Tenants:
    """Remembers who exists."""

    def __init__(self, directory: TenantDirectory | None, clock: Clock) -> None:
        """Ask `directory`; without one every tenant exists."""
        self._directory = directory
        self._clock = clock
        self._known: OrderedDict[str, None] = OrderedDict()
        self._silent_until_ns = 0

    def unsure(self, tenant_ids: Iterable[str]) -> set[str]:
        """Those of which nobody has said yet that they exist."""
        if self._directory is None:
            return set()
        return {one for one in tenant_ids if one not in self._known}

    async def unknown(self, tenant_ids: Iterable[str]) -> set[str]:
        """Those of which gatewayd says that they do not exist."""
        found: set[str] = set()
        for tenant_id in sorted(self.unsure(tenant_ids)):
            if self._directory is None or self._clock.monotonic_ns() < self._silent_until_ns:
                break
            try:
                await self._directory.get_tenant(tenants_pb.GetTenantRequest(tenant_id=tenant_id))
            except NotFound:
                found.add(tenant_id)
            except IronError as error:
                self._silent_until_ns = self._clock.monotonic_ns() + SILENT_NS
                _log.warning("tenant_not_verified", tenant_id=tenant_id, error=str(error))
            else:
                self._known[tenant_id] = None
                while len(self._known) > MAX_KNOWN:
                    self._known.popitem(last=False)
        return found
