"""What differs from what should be, and what becomes of it.

Each difference is kept with the VM first, where people see it. If it is still there the next time,
it is mended: a cgroup is made anew and the VM's processes are put back into it, a network is made
anew around the VMM. Only a tap cannot be replaced under a VMM that has it open: such a VM has
ended, and its restart policy says what follows. vCPUs that stand still though nobody asked for
that, or run though somebody paused them, are set right: a metald that was killed between a pause
and its record, or a QEMU that stopped its guest as the host's disk was full.
"""

from dataclasses import dataclass, replace

from ironworks.metald import store
from ironworks.metald.app.boot import attach_metering
from ironworks.metald.app.context import Context, log
from ironworks.metald.app.network import mend_network
from ironworks.metald.app.parts import group_limits, slot_of
from ironworks.metald.app.watch import vmm_ended
from ironworks.metald.drivers.driver import DriverError, ExitKind, ExitReport
from ironworks.metald.network.slots import TAP_LOST
from ironworks.metald.types import Vm, VmState
from ironworks.model.errors import Aborted

STANDS_STILL = "Its vCPUs stand still, and nobody paused it; was there no room on the host's disk?"
RUNS_ON = "Its vCPUs run, though it is paused."
_METERED = frozenset({VmState.RUNNING, VmState.PAUSED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """What was found of one VM, each a sentence."""

    network: tuple[str, ...] = ()
    cgroup: tuple[str, ...] = ()
    vcpus: tuple[str, ...] = ()
    lasting: tuple[str, ...] = ()
    """What is shown and cannot be mended here: a lost lease, a VMM that does not answer."""

    @property
    def mendable(self) -> tuple[str, ...]:
        """What is mended if it lasts."""
        return (*self.network, *self.cgroup, *self.vcpus)

    @property
    def sentences(self) -> tuple[str, ...]:
        """All of it."""
        return (*self.mendable, *self.lasting)


async def look(context: Context, vm: Vm, *, lost_lease: bool) -> Drift:
    """Compare what a VM has on the machine with what it should have."""
    lease = (
        "The lease on its assets was lost, and they can be leased no more: it cannot be restarted."
    )
    vcpus, deaf = await _vcpus(context, vm)
    return Drift(
        network=await context.network.drift(slot_of(vm)),
        cgroup=context.groups.missing(vm.vm_id),
        vcpus=vcpus,
        lasting=((lease,) if lost_lease else ()) + deaf,
    )


async def _vcpus(context: Context, vm: Vm) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Whether the vCPUs run as the VM's state says, and whether its VMM does not tell."""
    handle = context.handles.get(vm.vm_id)
    if handle is None or vm.state not in _METERED:
        return (), ()
    try:
        still = await handle.stands_still()
    except DriverError as error:
        return (), (error.sentence,)
    if still == (vm.state is VmState.PAUSED):
        return (), ()
    return (STANDS_STILL if still else RUNS_ON,), ()


async def mend(context: Context, seen: Vm, found: Drift) -> bool:
    """Keep what was found; mend what was there the last time too. Answers whether it did."""
    if found.sentences == seen.drift and not found.mendable:
        return False
    try:
        context.operations.begin(seen.vm_id, "reconcile")
    except Aborted:
        return False
    return await context.operations.run(seen.vm_id, _mend(context, seen, found), "reconcile")


async def _mend(context: Context, seen: Vm, found: Drift) -> bool:
    vm = await context.db.read(lambda connection: store.find_vm(connection, seen.vm_id))
    if vm is None or vm.generation != seen.generation:
        # It has made a transition since it was looked at.
        return False
    again = set(found.sentences) & set(vm.drift)
    if again.isdisjoint(found.mendable):
        return await keep(context, vm, found.sentences)
    if again & {*found.network}:
        return await _mend_network(context, vm, found)
    if again & {*found.cgroup}:
        return await _mend_cgroup(context, vm, found)
    return await _mend_vcpus(context, vm, found)


async def _mend_vcpus(context: Context, vm: Vm, found: Drift) -> bool:
    handle = context.handles.get(vm.vm_id)
    if handle is None:
        return False
    try:
        if vm.state is VmState.PAUSED:
            await handle.pause()
        else:
            await handle.resume()
    except DriverError as error:
        log.warning("vcpus_not_mended", vm_id=vm.vm_id, error=str(error))
        return False
    log.warning("vcpus_mended", vm_id=vm.vm_id, found=found.vcpus)
    return await keep(context, vm, (*found.cgroup, *found.lasting))


async def _mend_network(context: Context, vm: Vm, found: Drift) -> bool:
    if _is_lost(await _make_network_again(context, vm)):
        return True
    return await keep(context, vm, (*found.cgroup, *found.vcpus, *found.lasting))


def _is_lost(mended: tuple[str, ...]) -> bool:
    return any(TAP_LOST in sentence for sentence in mended)


async def _make_network_again(context: Context, vm: Vm) -> tuple[str, ...]:
    """Make again what is gone of the network around a VMM; answers what it was.

    A VM whose tap was removed has ended: its VMM has the old one open.
    """
    handle = context.handles.get(vm.vm_id)
    mended = await mend_network(context, vm, None if handle is None else handle.evidence.pid)
    if mended:
        log.warning("network_mended", vm_id=vm.vm_id, found=mended)
    if _is_lost(mended):
        sentence = "Its tap is gone: somebody removed it, so the VM was ended."
        await vmm_ended(context, vm.vm_id, ExitReport(kind=ExitKind.LOST, sentence=sentence))
    return mended


async def check_network(context: Context, vm_id: str) -> bool:
    """Compare all of a VM's network with the store; answers whether something was made again.

    Raises:
        IronError: it could not be done now.
    """
    try:
        context.operations.begin(vm_id, "reconcile")
    except Aborted:
        return False
    return await context.operations.run(vm_id, _check_network(context, vm_id), "reconcile")


async def _check_network(context: Context, vm_id: str) -> bool:
    vm = await context.db.read(lambda connection: store.find_vm(connection, vm_id))
    if vm is None or vm.slot is None or vm_id not in context.handles:
        return False
    return bool(await _make_network_again(context, vm))


async def _mend_cgroup(context: Context, vm: Vm, found: Drift) -> bool:
    handle = context.handles.get(vm.vm_id)
    if handle is None:
        return False
    group = await context.groups.create(vm.vm_id, group_limits(context, vm))
    await context.groups.enter(group, handle.evidence.pid)
    # Its counters begin anew, and so does the epoch that its samples are counted in.
    mended = replace(vm, boot_epoch=vm.boot_epoch + 1, drift=(*found.vcpus, *found.lasting))
    vm = await context.amend(mended)
    if vm.state in _METERED:
        await context.sampler.detach(vm.vm_id)
        await attach_metering(context, vm, handle)
    log.warning("cgroup_mended", vm_id=vm.vm_id)
    return True


async def keep(context: Context, vm: Vm, drift: tuple[str, ...]) -> bool:
    """Keep what differs from what should be; answers whether that is news."""
    if vm.drift == drift:
        return False
    await context.amend(replace(vm, drift=drift))
    log.warning("vm_drift", vm_id=vm.vm_id, drift=drift)
    return True
