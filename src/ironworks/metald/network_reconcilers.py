"""The loops that keep networks ready, and as the store has them."""

from ironworks.metald import decide, store
from ironworks.metald.app.context import Context, tried
from ironworks.metald.app.drift import check_network
from ironworks.metald.app.network import free_slot
from ironworks.metald.network.naming import USABLE_SLOTS
from ironworks.model.errors import ResourceExhausted
from ironworks.runtime.reconcile import Reconciler, Report

POOL_PERIOD_SECONDS = 0.5
"""Often: an activation that finds the pool full costs nothing."""
POOL_A_PASS = 4
"""Slots made in one activation: what a boot needs of the CPU comes first."""
NETWORKS_PERIOD_SECONDS = 10.0
MENDED_A_PASS = 100


class PoolReconciler:
    """Keeps network slots ready, so that none has to be made while a VM waits for it."""

    def __init__(self, context: Context) -> None:
        """Work on the slots of `context`."""
        self._context = context
        self._has_looked = False
        self._last: int | None = None
        """Where to go on: the slot before it is another platform's."""

    async def activate(self) -> Report:
        """Take over what an earlier metald has left ready, then make what is missing."""
        if not self._has_looked:
            await self._take_over()
            self._has_looked = True
        network, size = self._context.network, self._context.settings.ready_slots
        made = 0
        while len(network.ready) < size and made < POOL_A_PASS:
            made += 1
            if not await self._make_one():
                break
        return Report(counts={"ready": len(network.ready), "made": made})

    async def _take_over(self) -> None:
        context = self._context
        present = await context.network.present()
        for slot in sorted(present):
            if len(context.network.ready) >= context.settings.ready_slots:
                break
            # In the writer's queue: no slot is given out between the look and the reservation.
            if await context.db.write(lambda connection, slot=slot: self._claim(connection, slot)):
                await self._prepare(slot)

    def _claim(self, connection: store.Connection, slot: int) -> bool:
        context = self._context
        if slot in store.taken_slots(connection) | context.reaping_slots | context.network.pooled:
            return False
        context.network.reserve(slot)
        return True

    async def _make_one(self) -> bool:
        context = self._context

        def claim(connection: store.Connection) -> int:
            slot = free_slot(context, connection, for_pool=True, above=self._last)
            context.network.reserve(slot)
            return slot

        try:
            slot = await context.db.write(claim)
        except ResourceExhausted:
            return False
        ready = await self._prepare(slot)
        # A slot of another platform is not asked for again and again.
        self._last = None if ready else slot % USABLE_SLOTS
        return True

    async def _prepare(self, slot: int) -> bool:
        work = self._context.network.prepare(slot, self._context.uid_of(slot))
        return await tried("slot_not_prepared", work, slot=slot)


class NetworkReconciler:
    """Makes again what is gone, or was changed, of the fabric and of the networks of VMs."""

    def __init__(self, context: Context) -> None:
        """Work on the networks of `context`."""
        self._context = context
        self._checked_to = ""

    async def activate(self) -> Report:
        """The fabric, and some of the VMs: the next ones the next time, all if it was mended."""
        context = self._context
        fabric = await context.network.mend_fabric()
        vms = await context.db.read(lambda connection: store.vms_in(connection, decide.HAS_VMM))
        ordered = sorted(vms, key=lambda vm: (vm.vm_id <= self._checked_to, vm.vm_id))
        mended = 0
        for vm in ordered if fabric else ordered[:MENDED_A_PASS]:
            self._checked_to = vm.vm_id
            if vm.vm_id in context.handles:
                work = check_network(context, vm.vm_id)
                mended += await tried("network_not_mended", work, vm_id=vm.vm_id)
        return Report(counts={"vms": len(vms), "mended": mended, "fabric": int(fabric)})


def network_reconcilers(context: Context) -> tuple[Reconciler, ...]:
    """The loops for networks."""
    return (
        Reconciler("network-pool", POOL_PERIOD_SECONDS, PoolReconciler(context).activate),
        Reconciler("networks", NETWORKS_PERIOD_SECONDS, NetworkReconciler(context).activate),
    )
