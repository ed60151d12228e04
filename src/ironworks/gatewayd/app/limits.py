"""What a tenant may use, and what it uses."""

from __future__ import annotations

from sqlalchemy import Connection

from ironworks.gatewayd import decide
from ironworks.gatewayd.settings import GatewaydSettings
from ironworks.gatewayd.store import deployments as store
from ironworks.gatewayd.store import jobs as job_store
from ironworks.gatewayd.store import tenants as tenant_store
from ironworks.gatewayd.types import TenantLimits
from ironworks.model.errors import NotFound
from ironworks.runtime.clock import Clock
from ironworks.runtime.identity import Caller
from ironworks.storage.sql import Database


class LimitApp:
    """Use cases of limits."""

    def __init__(self, *, database: Database, clock: Clock, settings: GatewaydSettings) -> None:
        self._database = database
        self._clock = clock
        self._settings = settings

    async def _tenant(self, caller: Caller, tenant_id: str) -> str:
        wanted = decide.visible_tenant(caller, tenant_id)
        known = wanted is not None and await self._database.read(
            lambda c: tenant_store.find_tenant(c, wanted)
        )
        if wanted is None or not known:
            raise NotFound("There is no such tenant.", hint="List tenants, or check the id.")
        return wanted

    async def limits(self, caller: Caller, tenant_id: str) -> tuple[str, TenantLimits]:
        """The tenant, and what applies to it."""
        return await self._tenant(caller, tenant_id), self._settings.limits

    async def consumption(
        self, caller: Caller, tenant_id: str
    ) -> tuple[TenantLimits, TenantLimits]:
        """What a tenant uses of its limits (rates are counted in Envoy: 0), and the limits."""
        wanted = await self._tenant(caller, tenant_id)
        now_ns = self._clock.now_ns()

        def read(connection: Connection) -> TenantLimits:
            used = store.wanted_by(connection, wanted)
            return TenantLimits(
                requests_per_second=0,
                request_burst=0,
                deployments=store.count_deployments(connection, wanted),
                vms=used.vms,
                vcpus=used.vcpus,
                memory_bytes=used.memory_bytes,
                concurrent_jobs=job_store.count_unfinished(connection, wanted),
                api_keys=tenant_store.count_living_api_keys(connection, wanted, now_ns),
            )

        return await self._database.read(read), self._settings.limits
