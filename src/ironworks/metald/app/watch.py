"""Watch over each VMM: an end that nobody asked for becomes STOPPED or FAILED, with its reason."""

from dataclasses import replace

from ironworks.metald import decide, store
from ironworks.metald.app.cleanup import clean_up, fail, power_off
from ironworks.metald.app.context import EXPECTED, Context, log, warn
from ironworks.metald.drivers.driver import ExitReport, Handle
from ironworks.metald.types import Vm, VmState
from ironworks.model.errors import Aborted

RETRY_SECONDS = 1.0


def start_watch(context: Context, vm_id: str, handle: Handle) -> None:
    """Watch a VMM from now on."""
    context.tasks.start(_watch(context, vm_id, handle), name=f"watch {vm_id}")


async def _watch(context: Context, vm_id: str, handle: Handle) -> None:
    report = await handle.wait()
    while True:
        # A boot or a shutdown that is under way sees the end by itself.
        await context.operations.settled(vm_id)
        try:
            if await _tell(context, vm_id, handle, report):
                return
        except EXPECTED as error:
            # A full disk, say: nobody else would ever notice that this VM has ended.
            warn("vmm_end_not_told", error, vm_id=vm_id)
            await context.clock.sleep(RETRY_SECONDS)


async def _tell(context: Context, vm_id: str, handle: Handle, report: ExitReport) -> bool:
    """Do what follows from an end; answers whether it is done, or nobody's affair any more."""
    vm = await context.db.read(lambda connection: store.find_vm(connection, vm_id))
    gone = context.handles.get(vm_id) is not handle
    if gone or vm is None or vm.state not in decide.HAS_VMM or vm.restart_at_ns:
        return True
    try:
        context.operations.begin(vm_id, "end")
    except Aborted:
        return False
    await context.operations.run(vm_id, vmm_ended(context, vm_id, report), "end")
    return True


async def vmm_ended(context: Context, vm_id: str, report: ExitReport) -> Vm | None:
    """Bring a VM's state in line with an end that nobody asked for; None: there is no such VM.

    Its restart policy has the first word. What still runs of it is ended.
    """
    vm = await context.db.read(lambda connection: store.find_vm(connection, vm_id))
    if vm is None or vm.state not in decide.HAS_VMM or vm.restart_at_ns:
        return vm
    report = context.explain_end(vm, report)
    log.info("vmm_ended", vm_id=vm_id, kind=report.kind.value, sentence=report.sentence)
    plan = decide.restart(vm, report, context.host.state, now_ns=context.clock.now_ns())
    if plan is not None:
        return await follow_plan(context, vm, plan, report)
    if decide.after_end(vm.state, report) is VmState.FAILED:
        return await fail(context, vm, report.sentence, report=report)
    if vm.state is not VmState.STOPPING:
        vm = await context.move(vm, VmState.STOPPING, report.sentence)
    return await settle_stopped(context, vm, report, report.sentence)


async def follow_plan(context: Context, vm: Vm, plan: decide.Restart, report: ExitReport) -> Vm:
    """Do what a restart policy has decided: write when the VM is booted again, or give it up."""
    if plan.line is None:
        return await fail(context, vm, plan.reason, report=report)
    waiting = await context.commit(vm, plan.vm, plan.line)
    try:
        await power_off(context, waiting)
    except EXPECTED as error:
        # The restart itself ends what still runs, cgroup and all.
        warn("power_off_failed", error, vm_id=vm.vm_id)
    return waiting


async def settle_stopped(context: Context, vm: Vm, report: ExitReport | None, reason: str) -> Vm:
    """From STOPPING to STOPPED: remove everything, keep how it ended."""
    vm, _ = await clean_up(context, vm)
    if report is not None:
        vm = replace(vm, exit=report, exit_at_ns=context.clock.now_ns())
    return await context.move(vm, VmState.STOPPED, reason)
