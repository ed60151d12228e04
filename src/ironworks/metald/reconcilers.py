"""The loops that converge what is on the machine with what the store says should be."""

from collections.abc import Awaitable, Callable

from ironworks.metald import decide, store
from ironworks.metald.app.context import Context, log
from ironworks.metald.app.recover import converge, note_drift
from ironworks.metald.types import Vm, VmState
from ironworks.model.errors import IronError
from ironworks.model.units import NS_PER_SECOND
from ironworks.runtime.reconcile import Reconciler, Report

VMS_PERIOD_SECONDS = 5.0
LEASES_PERIOD_SECONDS = 20.0
"""A third of the leases' TTL: two renewals may fail before one is lost."""
LEFTOVERS_PERIOD_SECONDS = 15.0
TOMBSTONES_PERIOD_SECONDS = 600.0
TOMBSTONES_A_PASS = 1000
DRIFT_CHECKS_A_PASS = 50
_UNSETTLED = (VmState.REQUESTED, VmState.CREATING, VmState.DELETING, *decide.HAS_VMM)


class VmReconciler:
    """Adopts, finishes and undoes; notes what has gone missing behind our back."""

    def __init__(self, context: Context) -> None:
        """Work on the VMs of `context`."""
        self._context = context
        self._checked_to = ""

    async def activate(self) -> Report:
        """One pass over all VMs that are not settled."""
        context = self._context
        vms = await context.db.read(lambda connection: store.vms_in(connection, _UNSETTLED))
        changed = 0
        for vm in vms:
            if vm.state in decide.HAS_VMM and vm.vm_id in context.handles and not _stuck(vm):
                continue
            if await _tried(vm.vm_id, lambda vm=vm: converge(context, vm.vm_id)):
                changed += 1
        drifted = await self._note_drift([vm for vm in vms if vm.vm_id in context.handles])
        return Report(counts={"vms": len(vms), "changed": changed, "drifted": drifted})

    async def _note_drift(self, vms: list[Vm]) -> int:
        """Look at some of the VMs, the next ones the next time."""
        context = self._context
        ordered = sorted(vms, key=lambda vm: (vm.vm_id <= self._checked_to, vm.vm_id))
        drifted = 0
        for seen in ordered[:DRIFT_CHECKS_A_PASS]:
            self._checked_to = seen.vm_id
            if seen.slot is None or context.operations.busy(seen.vm_id):
                continue
            drift = (*await context.network.drift(seen.slot), *context.groups.missing(seen.vm_id))
            drifted += bool(drift)
            if drift != seen.drift and not context.operations.busy(seen.vm_id):
                await _tried(seen.vm_id, lambda: note_drift(context, seen, drift))  # noqa: B023
        return drifted


def _stuck(vm: Vm) -> bool:
    """Whether a VM is in a state that only a transition under way should have it in."""
    return vm.state in {VmState.BOOTING, VmState.STOPPING}


async def _tried(vm_id: str, work: Callable[[], Awaitable[bool]]) -> bool:
    try:
        return await work()
    except IronError as error:
        log.warning("reconcile_failed", vm_id=vm_id, error=str(error), **error.context)
        return False


class LeaseReconciler:
    """Renews the leases of all VMs; takes those anew that were lost."""

    def __init__(self, context: Context) -> None:
        """Work on the leases of `context`."""
        self._context = context

    async def activate(self) -> Report:
        """One renewal of all leases."""
        context = self._context
        held = await context.db.read(store.held_leases)
        if not held:
            return Report(counts={"held": 0})
        lost_ids = await context.lessor.renew([lease.lease_id for _, lease in held])
        lost = [(vm, lease) for vm, lease in held if lease.lease_id in lost_ids]
        for vm, lease in lost:
            if context.operations.busy(vm.vm_id):
                continue
            again = await context.lessor.acquire(vm.tenant_id, vm.vm_id, lease.asset_ids)
            renewed = store.with_lease_id(lease, again.lease_id)
            await context.db.write(
                lambda connection, vm=vm, renewed=renewed: store.write_lease(
                    connection, vm.vm_id, renewed
                )
            )
            log.warning("lease_lost", vm_id=vm.vm_id, old=lease.lease_id, new=again.lease_id)
        return Report(counts={"held": len(held), "lost": len(lost)})


class LeftoverReconciler:
    """Removes what carries our name on this machine and belongs to no VM.

    The machine is read before the store: what is made later has its row first, so it is found.
    """

    def __init__(self, context: Context) -> None:
        """Work on the machine of `context`."""
        self._context = context

    async def activate(self) -> Report:
        """One pass over jails, cgroups, networks, and VMs whose clean-up was cut off."""
        context = self._context
        jails = await context.jails.present()
        groups = await context.groups.present()
        slots = await context.network.present()
        unclean = await context.db.read(store.ended_but_not_clean)
        for vm in unclean:
            await _tried(vm.vm_id, lambda vm=vm: converge(context, vm.vm_id))
        known = await context.db.read(store.vms_with_parts)
        removed = {"jails": 0, "cgroups": 0, "networks": 0, "unclean": len(unclean)}
        for vm_id in (groups | jails) - known:
            if context.operations.busy(vm_id):
                continue
            # The cgroup first: it is what kills, and a jail in use cannot go.
            await context.groups.remove(vm_id)
            if vm_id in groups:
                removed["cgroups"] += 1
            if vm_id in jails:
                await context.driver.destroy(context.jails.path(vm_id), None)
                await context.jails.remove(vm_id)
                await context.jails.forget_console(vm_id)
                removed["jails"] += 1
            log.warning("leftover_removed", vm_id=vm_id)
        for slot in slots:
            removed["networks"] += await self._remove_slot(slot)
        return Report(counts=removed)

    async def _remove_slot(self, slot: int) -> bool:
        context = self._context
        context.reaping_slots.add(slot)
        try:
            # In the writer's queue: no slot is given out between the look and the removal.
            taken = await context.db.write(store.taken_slots)
            if slot in taken:
                return False
            await context.network.remove(slot)
            log.warning("leftover_removed", slot=slot)
            return True
        finally:
            context.reaping_slots.discard(slot)


class TombstoneReconciler:
    """Forgets VMs that have been deleted long enough."""

    def __init__(self, context: Context) -> None:
        """Work on the store of `context`."""
        self._context = context

    async def activate(self) -> Report:
        """One bounded pass."""
        context = self._context
        now_ns = context.clock.now_ns()
        before_ns = now_ns - int(context.settings.tombstone_seconds * NS_PER_SECOND)
        forgotten = await context.db.write(
            lambda connection: store.forget_deleted(
                connection, before_ns, now_ns, TOMBSTONES_A_PASS
            )
        )
        return Report(counts={"forgotten": forgotten})


def lifecycle_reconcilers(context: Context) -> tuple[Reconciler, ...]:
    """The loops that need nothing but the machine, the store and assetmanagerd."""
    return (
        Reconciler("vms", VMS_PERIOD_SECONDS, VmReconciler(context).activate),
        Reconciler("leases", LEASES_PERIOD_SECONDS, LeaseReconciler(context).activate),
        Reconciler("leftovers", LEFTOVERS_PERIOD_SECONDS, LeftoverReconciler(context).activate),
        Reconciler("tombstones", TOMBSTONES_PERIOD_SECONDS, TombstoneReconciler(context).activate),
    )
