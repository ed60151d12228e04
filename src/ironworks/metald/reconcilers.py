"""The loops that converge what is on the machine with what the store says should be."""

from collections.abc import Awaitable
from dataclasses import replace

from ironworks.metald import capacity_store, decide, store
from ironworks.metald.app.context import Context, log, tried
from ironworks.metald.app.drift import look, mend
from ironworks.metald.app.host import MAX_DRAIN_SECONDS, drain_pass
from ironworks.metald.app.recover import converge
from ironworks.metald.app.restart import start_due
from ironworks.metald.types import Lease, Vm, VmState
from ironworks.model.errors import FailedPrecondition, NotFound
from ironworks.model.units import NS_PER_SECOND
from ironworks.runtime.reconcile import Reconciler, Report

VMS_PERIOD_SECONDS = 5.0
LEASES_PERIOD_SECONDS = 20.0
"""A third of the leases' TTL: two renewals may fail before one is lost."""
LEFTOVERS_PERIOD_SECONDS = 15.0
RESTARTS_PERIOD_SECONDS = 0.25
"""A wait of a restart policy is as exact as this."""
DRAIN_PERIOD_SECONDS = 1.0
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
            if vm.restart_at_ns:
                continue
            changed += await _tried(vm.vm_id, converge(context, vm.vm_id))
        drifted = await self._note_drift([vm for vm in vms if vm.vm_id in context.handles])
        return Report(counts={"vms": len(vms), "changed": changed, "drifted": drifted})

    async def _note_drift(self, vms: list[Vm]) -> int:
        """Look at some of the VMs, the next ones the next time."""
        context = self._context
        ordered = sorted(vms, key=lambda vm: (vm.vm_id <= self._checked_to, vm.vm_id))
        unleased = await context.db.read(store.unleased)
        drifted = 0
        for seen in ordered[:DRIFT_CHECKS_A_PASS]:
            self._checked_to = seen.vm_id
            if seen.slot is None or context.operations.busy(seen.vm_id):
                continue
            work = self._compare(seen, lost_lease=seen.vm_id in unleased)
            drifted += await _tried(seen.vm_id, work)
        return drifted

    async def _compare(self, seen: Vm, *, lost_lease: bool) -> bool:
        found = await look(self._context, seen, lost_lease=lost_lease)
        await mend(self._context, seen, found)
        return bool(found.sentences)


def _stuck(vm: Vm) -> bool:
    """Whether a VM is in a state that only a transition under way should have it in."""
    return vm.state in {VmState.BOOTING, VmState.STOPPING}


async def _tried(vm_id: str, work: Awaitable[bool]) -> bool:
    # The others have their turn all the same.
    return await tried("reconcile_failed", work, vm_id=vm_id)


class LeaseReconciler:
    """Renews the leases of all VMs; takes those anew that were lost."""

    def __init__(self, context: Context) -> None:
        """Work on the leases of `context`."""
        self._context = context

    async def activate(self) -> Report:
        """One renewal of all leases."""
        context = self._context
        leases = await context.db.read(store.leases)
        held = [lease.lease_id for _, lease in leases if lease.lease_id]
        lost_ids = await context.lessor.renew(held) if held else frozenset[str]()
        counts = {"held": len(held), "lost": len(lost_ids), "taken_anew": 0}
        for vm, lease in leases:
            lost = lease.lease_id in lost_ids or not lease.lease_id
            if not lost or vm.state not in decide.HAS_VMM or context.operations.busy(vm.vm_id):
                continue
            counts["taken_anew"] += await _tried(vm.vm_id, self._take_anew(vm, lease))
        return Report(counts=counts)

    async def _take_anew(self, vm: Vm, lease: Lease) -> bool:
        """Lease a VM's assets once more; if they are gone, that is kept as drift of the VM."""
        context = self._context
        try:
            again = await context.lessor.acquire(vm.tenant_id, vm.vm_id, lease.asset_ids)
            lease_id = again.lease_id
        except (NotFound, FailedPrecondition) as error:
            # The VM runs on with the bytes that are in its jail.
            log.warning("lease_gone", vm_id=vm.vm_id, old=lease.lease_id, error=str(error))
            lease_id = ""
        renewed = replace(lease, lease_id=lease_id)
        await context.db.write(lambda connection: store.change_lease(connection, vm.vm_id, renewed))
        log.warning("lease_lost", vm_id=vm.vm_id, old=lease.lease_id, new=lease_id)
        return bool(lease_id)


class RestartReconciler:
    """Gives those VMs a fresh VMM whose restart policy, or a reboot that was cut off, wants it."""

    def __init__(self, context: Context) -> None:
        """Work on the VMs of `context`."""
        self._context = context

    async def activate(self) -> Report:
        """Begin what is due; a restart goes on beyond the activation."""
        begun, waiting = await start_due(self._context)
        return Report(counts={"begun": begun, "waiting": waiting})


class DrainReconciler:
    """Ends the VMs of a host that is being drained."""

    def __init__(self, context: Context) -> None:
        """Work on the host of `context`."""
        self._context = context

    async def activate(self) -> Report:
        """End some of them."""
        ended, left = await drain_pass(self._context)
        return Report(counts={"ended": ended, "left": left})


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
            await _tried(vm.vm_id, converge(context, vm.vm_id))
        known = await context.db.read(store.vms_with_parts)
        ghosts = [
            vm_id
            for vm_id in sorted((groups | jails) - known)
            if not context.operations.busy(vm_id)
        ]
        removed = networks = 0
        for vm_id in ghosts:
            removed += await _tried(vm_id, self._remove(vm_id, in_jail=vm_id in jails))
        for slot in slots:
            networks += await tried("reconcile_failed", self._remove_slot(slot), slot=slot)
        return Report(counts={"vms": removed, "networks": networks, "unclean": len(unclean)})

    async def _remove(self, vm_id: str, *, in_jail: bool) -> bool:
        context = self._context
        # The cgroup first: it is what kills, and a jail in use cannot go.
        await context.groups.remove(vm_id)
        if in_jail:
            await context.driver.destroy(context.jails.path(vm_id), None)
            await context.jails.remove(vm_id)
            await context.jails.forget_console(vm_id)
        log.warning("leftover_removed", vm_id=vm_id)
        return True

    async def _remove_slot(self, slot: int) -> bool:
        context = self._context
        context.reaping_slots.add(slot)
        try:
            # In the writer's queue: no slot is given out between the look and the removal.
            taken = await context.db.write(
                lambda connection: store.taken_slots(connection) | context.network.pooled
            )
            if slot in taken:
                return False
            await context.network.remove(slot)
            log.warning("leftover_removed", slot=slot)
            return True
        finally:
            context.reaping_slots.discard(slot)


class TombstoneReconciler:
    """Forgets VMs that have been deleted long enough, and reservations that have expired."""

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
        expired = await context.db.write(
            lambda connection: capacity_store.drop_expired(connection, now_ns)
        )
        return Report(counts={"forgotten": forgotten, "expired": expired})


def lifecycle_reconcilers(context: Context) -> tuple[Reconciler, ...]:
    """The loops that need nothing but the machine, the store and assetmanagerd."""
    return (
        Reconciler("restarts", RESTARTS_PERIOD_SECONDS, RestartReconciler(context).activate),
        Reconciler(
            "drain",
            DRAIN_PERIOD_SECONDS,
            DrainReconciler(context).activate,
            timeout_seconds=MAX_DRAIN_SECONDS,
        ),
        Reconciler("vms", VMS_PERIOD_SECONDS, VmReconciler(context).activate),
        Reconciler("leases", LEASES_PERIOD_SECONDS, LeaseReconciler(context).activate),
        Reconciler("leftovers", LEFTOVERS_PERIOD_SECONDS, LeftoverReconciler(context).activate),
        Reconciler("tombstones", TOMBSTONES_PERIOD_SECONDS, TombstoneReconciler(context).activate),
    )
