"""Bring the store and the machine together: at the start of metald, and again and again.

A VM is found by its evidence: the very process (pid and start time) of this boot of the host. What
lives is taken over; what ended while nobody watched is told with what can be known; a boot that was
cut off goes on, and what else was half-way is undone.
"""

from dataclasses import replace

from ironworks.metald import decide, store
from ironworks.metald.app import health
from ironworks.metald.app.boot import attach_metering, boot_on
from ironworks.metald.app.cleanup import clean_up, end_vmm, fail
from ironworks.metald.app.context import Context, log, tried
from ironworks.metald.app.drift import keep
from ironworks.metald.app.watch import settle_stopped, start_watch, vmm_ended
from ironworks.metald.drivers.driver import DriverError, ExitKind, ExitReport, Handle
from ironworks.metald.drivers.processes import boot_id
from ironworks.metald.types import Vm, VmState
from ironworks.model.errors import Aborted

_HALF_MADE = frozenset({VmState.REQUESTED, VmState.CREATING})
_METERED = frozenset({VmState.RUNNING, VmState.PAUSED})


async def converge(context: Context, vm_id: str) -> bool:
    """Bring one VM in line unless a transition of it is under way; answers whether it changed.

    Raises:
        IronError: it could not be done now; the next time may go better.
    """
    try:
        context.operations.begin(vm_id, "reconcile")
    except Aborted:
        return False
    changed = await context.operations.run(vm_id, _converge(context, vm_id), "reconcile")
    return await _boot_on(context, vm_id) or changed


async def _boot_on(context: Context, vm_id: str) -> bool:
    """Let a boot that was cut off go on, beyond this call; answers whether there was one."""
    handle = context.handles.get(vm_id)
    if handle is None:
        return False
    vm = await context.db.read(lambda connection: store.find_vm(connection, vm_id))
    if vm is None or vm.state is not VmState.BOOTING:
        return False
    try:
        operation = context.operations.begin(vm_id, "boot")
    except Aborted:
        return False
    context.operations.run_alone(vm_id, boot_on(context, vm, handle, operation), "boot")
    return True


async def _converge(context: Context, vm_id: str) -> bool:
    vm = await context.db.read(lambda connection: store.find_vm(connection, vm_id))
    if vm is None:
        return False
    if vm.state is VmState.DELETING:
        return await _finish_deletion(context, vm)
    if vm.state not in decide.HAS_VMM and vm.state not in _HALF_MADE:
        vm_after, _ = await clean_up(context, vm)
        return vm_after != vm
    return await _converge_live(context, vm)


async def _converge_live(context: Context, vm: Vm) -> bool:
    if vm.restart_at_ns:
        # Whatever lives of it is replaced when its time has come.
        return False
    handle, problem = await _find(context, vm)
    if handle is None and problem:
        return await keep(context, vm, (problem,))
    interrupted = decide.after_restart(vm.state)
    if interrupted is not None:
        await _finish(context, vm, interrupted)
        return True
    if handle is None:
        await _ended_unseen(context, vm)
        return True
    return False


async def _find(context: Context, vm: Vm) -> tuple[Handle | None, str]:
    """The VM's handle, adopted if need be; or what is wrong with a VMM that lives."""
    handle = context.handles.get(vm.vm_id)
    if handle is not None or vm.evidence is None:
        return handle, ""
    try:
        handle = await context.driver_of(vm.evidence).adopt(vm.evidence)
    except DriverError as error:
        return None, f"Its VMM runs and cannot be controlled: {error.sentence}"
    if handle is None:
        return None, ""
    context.handles[vm.vm_id] = handle
    start_watch(context, vm.vm_id, handle)
    if vm.state in _METERED:
        await attach_metering(context, vm, handle)
    if vm.state is VmState.RUNNING:
        health.start(context, vm)
    log.info("vm_adopted", vm_id=vm.vm_id, pid=vm.evidence.pid, state=vm.state.value)
    return handle, ""


async def _finish(context: Context, vm: Vm, interrupted: decide.Interrupted) -> None:
    if interrupted.finish is VmState.STOPPED:
        report = await end_vmm(context, vm)
        await settle_stopped(context, vm, report, interrupted.reason)
    else:
        await fail(context, vm, interrupted.reason)


async def _ended_unseen(context: Context, vm: Vm) -> None:
    report = ExitReport(kind=ExitKind.LOST, sentence="Its VMM is gone; how it ended is not known.")
    if vm.evidence is not None:
        report = await context.driver_of(vm.evidence).post_mortem(vm.evidence)
        if report.kind is ExitKind.LOST and vm.evidence.boot_id != boot_id():
            report = replace(report, sentence="The host was rebooted, and its VMM ended with it.")
    await vmm_ended(context, vm.vm_id, report)


async def _finish_deletion(context: Context, vm: Vm) -> bool:
    vm, clean = await clean_up(context, vm)
    await context.jails.forget_console(vm.vm_id)
    if clean:
        await context.move(vm, VmState.DELETED, "Nothing is left of it.")
    return clean


async def recover_all(context: Context) -> None:
    """At the start, before any call is served: find every VM again."""
    unsettled = (*decide.HAS_VMM, *_HALF_MADE, VmState.DELETING)
    vms = await context.db.read(lambda connection: store.vms_in(connection, unsettled))
    for vm in vms:
        # One VM that cannot be found now must not keep metald from all the others.
        await tried("recover_failed", converge(context, vm.vm_id), vm_id=vm.vm_id)
