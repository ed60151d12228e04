"""Take apart what a VM has on the machine, in the reverse of the order in which it was made.

Every step is idempotent and the whole can be repeated: after a failed step the others still run,
and the VM keeps its slot in the store, so that the reconciler of leftovers comes back to it.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from ironworks.metald import store
from ironworks.metald.app import health
from ironworks.metald.app.context import EXPECTED, Context, log, warn
from ironworks.metald.drivers.driver import DriverError, ExitReport
from ironworks.metald.steps import Step
from ironworks.metald.types import Vm, VmState
from ironworks.model.errors import IronError

_Undo = Callable[[Context, Vm], Awaitable[None]]


async def end_vmm(context: Context, vm: Vm) -> ExitReport | None:
    """Kill the VMM if it lives; answers how it ended, or None if there never was one."""
    handle = context.handles.get(vm.vm_id)
    if handle is None and vm.evidence is not None:
        driver = context.driver_of(vm.evidence)
        try:
            handle = await driver.adopt(vm.evidence)
        except DriverError as error:
            # Alive, and deaf: `destroy` kills by pid.
            log.warning("vmm_deaf", vm_id=vm.vm_id, error=str(error))
            await driver.destroy(context.jails.path(vm.vm_id), vm.evidence)
            return await driver.post_mortem(vm.evidence)
        if handle is None:
            return await driver.post_mortem(vm.evidence)
        context.handles[vm.vm_id] = handle
    if handle is None:
        return None
    await handle.kill()
    return context.explain_end(vm, await handle.wait())


async def clean_up(context: Context, vm: Vm) -> tuple[Vm, bool]:
    """Remove everything of a VM whose state says that nothing of it should be there.

    Returns:
        The VM as it is in the store now, and whether nothing of it is left on this machine; then it
        has neither slot nor evidence. A lease that could not be given back is left to the
        reconciler, or to its expiry: it is not on this machine.
    """
    clean = True
    for step, undo in _UNDOS:
        clean = await _try(context, vm, step, undo) and clean
    lease = await context.db.read(lambda connection: store.find_lease(connection, vm.vm_id))
    if lease is not None and await _try(context, vm, Step.ASSET_RELEASE, _release):
        await context.db.write(lambda connection: store.drop_lease(connection, vm.vm_id))
    context.steps.take(vm.vm_id)
    if not clean:
        return vm, False
    if vm.slot is None and vm.evidence is None and not vm.drift:
        return vm, True
    return await context.amend(replace(vm, slot=None, evidence=None, drift=())), True


async def _try(context: Context, vm: Vm, step: Step, undo: _Undo) -> bool:
    try:
        await context.steps.reach(step, vm.vm_id)
        await undo(context, vm)
    except EXPECTED as error:
        warn("cleanup_failed", error, vm_id=vm.vm_id, step=step)
        return False
    return True


async def _kill(context: Context, vm: Vm) -> None:
    await end_vmm(context, vm)


async def _detach(context: Context, vm: Vm) -> None:
    await context.sampler.detach(vm.vm_id)


async def _destroy(context: Context, vm: Vm) -> None:
    health.stop(context, vm.vm_id)
    handle = context.handles.pop(vm.vm_id, None)
    if handle is not None:
        await context.jails.archive_console(vm.vm_id, handle.console_path)
        await handle.close()
    driver = context.driver if vm.evidence is None else context.driver_of(vm.evidence)
    await driver.destroy(context.jails.path(vm.vm_id), vm.evidence)


async def _remove_jail(context: Context, vm: Vm) -> None:
    await context.jails.remove(vm.vm_id)


async def _remove_cgroup(context: Context, vm: Vm) -> None:
    await context.groups.remove(vm.vm_id)


async def _remove_network(context: Context, vm: Vm) -> None:
    if vm.slot is not None:
        await context.network.remove(vm.slot)


async def _release(context: Context, vm: Vm) -> None:
    await context.lessor.release(vm.tenant_id, vm.vm_id)


_UNDOS: Final[tuple[tuple[Step, _Undo], ...]] = (
    (Step.VMM_KILL, _kill),
    (Step.METERING_DETACH, _detach),
    (Step.VMM_DESTROY, _destroy),
    (Step.JAIL_REMOVE, _remove_jail),
    (Step.CGROUP_REMOVE, _remove_cgroup),
    (Step.NETWORK_REMOVE, _remove_network),
)
"""What takes a VM apart, in the reverse of the order in which it was put together."""


async def power_off(context: Context, vm: Vm) -> None:
    """End the VMM and its metering; the VM's place stays: slot, network, cgroup, jail, lease.

    Raises:
        DriverError: the VMM does not end.
    """
    health.stop(context, vm.vm_id)
    handle = context.handles.get(vm.vm_id)
    await context.steps.reach(Step.VMM_KILL, vm.vm_id)
    if handle is not None:
        await handle.kill()
    await context.steps.reach(Step.METERING_DETACH, vm.vm_id)
    await context.sampler.detach(vm.vm_id)
    if handle is not None:
        context.handles.pop(vm.vm_id, None)
        await handle.close()


def reason_of(error: Exception) -> str:
    """A sentence for the VM's record."""
    if isinstance(error, IronError):
        return error.message
    if isinstance(error, DriverError):
        return error.sentence
    if isinstance(error, OSError):
        return f"The machine refused: {error.strerror}."
    return "A fault of metald; its log has it."


async def fail(context: Context, vm: Vm, reason: str, *, report: ExitReport | None = None) -> Vm:
    """Make a VM FAILED for `reason`, then remove everything of it."""
    now_ns = context.clock.now_ns()
    if report is not None:
        vm = replace(vm, exit=report, exit_at_ns=now_ns)
    vm = await context.move(vm, VmState.FAILED, reason)
    vm, _ = await clean_up(context, vm)
    return vm
