"""Removing VMs: for a deletion, for undoing, for the reconciler that finishes what both left."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import structlog

from ironworks.gatewayd.app.patience import at_most, errors_of, patiently
from ironworks.gatewayd.remote.vms import Vms
from ironworks.gatewayd.store import deployments as store
from ironworks.gatewayd.store import hosts as host_store
from ironworks.gatewayd.types import Replica, ReplicaState
from ironworks.model.errors import FailedPrecondition, IronError, NotFound
from ironworks.runtime.clock import Clock
from ironworks.storage.sql import Database

_log = structlog.stdlib.get_logger()
AT_ONCE = 8


class Removal:
    """Takes replicas away from their hosts."""

    def __init__(self, *, database: Database, vms: Vms, clock: Clock) -> None:
        self._database = database
        self._vms = vms
        self._clock = clock

    async def url_of(self, host_id: str) -> str:
        """Where the metald of a host answers.

        Raises:
            NotFound: the directory has no such host.
        """
        host = await self._database.read(lambda c: host_store.find_host(c, host_id))
        if host is None:
            raise NotFound(f"The host {host_id} is not in the directory any more.")
        return host.metald_url

    async def change(self, vm_id: str, change: Callable[[Replica], Replica]) -> Replica:
        """Write a changed replica."""
        return await self._database.write(lambda c: store.change_replica(c, vm_id, change))

    async def mark(self, deployment_id: str) -> list[Replica]:
        """Say of every replica that it is to go; answers those whose VM may exist."""
        replicas = await self._database.read(lambda c: store.replicas_of(c, deployment_id))
        for replica in replicas:
            await self.change(replica.vm_id, lambda old: replace(old, state=ReplicaState.DELETING))
        return replicas

    async def stop(self, replicas: list[Replica], grace_seconds: float) -> None:
        """Ask guests to end. What cannot be asked is deleted by force soon after."""

        async def one(replica: Replica) -> None:
            url = await self.url_of(replica.host_id)
            try:
                await self._vms.shutdown(url, replica.tenant_id, replica.vm_id, grace_seconds)
            except (NotFound, FailedPrecondition) as error:
                _log.info("vm_not_stopped", vm_id=replica.vm_id, error=str(error))

        work = [functools.partial(one, each) for each in replicas]
        for error in errors_of(await at_most(AT_ONCE, work)):
            _log.warning("vm_not_stopped", error=str(error))

    async def delete(self, replica: Replica, patience_seconds: float) -> None:
        """Remove the VM of one replica; once its host says that it is gone, so do we.

        Raises:
            IronError: its host did not say so.
        """
        url = await self.url_of(replica.host_id)

        async def attempt() -> None:
            try:
                await self._vms.delete(url, replica.tenant_id, replica.vm_id)
            except NotFound:
                # It was never created, or its tombstone is gone: both are what we want.
                return

        await patiently(self._clock, attempt, patience_seconds)
        await self.change(replica.vm_id, lambda old: replace(old, state=ReplicaState.DELETED))

    async def delete_all(self, replicas: list[Replica], patience_seconds: float) -> list[IronError]:
        """Remove them all; answers what went wrong. What is left, the reconciler removes."""
        work = [functools.partial(self.delete, each, patience_seconds) for each in replicas]
        return errors_of(await at_most(AT_ONCE, work))
