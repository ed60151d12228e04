"""A fresh VMM for a VM that stays RUNNING: its restart policy wants it, or RebootVm.

`restart_at_ns` in the store is the intent: it is written before the old VMM is touched and cleared
when the workload runs again, so a metald that dies in between does the whole once more. Slot,
addresses, lease, jail and console stay; VMM, cgroup and boot epoch are new.
"""

import asyncio
from dataclasses import replace

from ironworks.metald import decide, store
from ironworks.metald.app import health
from ironworks.metald.app.boot import NotBootedError, default_timeout, run_guest
from ironworks.metald.app.cleanup import fail, power_off, reason_of
from ironworks.metald.app.context import Context, Once, warn
from ironworks.metald.app.network import mend_network
from ironworks.metald.app.operations import Operation
from ironworks.metald.app.parts import group_limits, prepare_assets, slot_of, vmm_spec
from ironworks.metald.app.stop import Shutdown, ask_to_end
from ironworks.metald.app.watch import follow_plan, start_watch
from ironworks.metald.drivers.driver import ExitKind, ExitReport, Handle
from ironworks.metald.jail_directories import ROOTFS_NAME
from ironworks.metald.steps import Step
from ironworks.metald.types import Lease, Vm, VmmSize, VmState
from ironworks.model.errors import (
    Aborted,
    FailedPrecondition,
    Internal,
    IronError,
)

AT_ONCE = 4
"""Restarts that metald itself has under way: a host that comes up again must not drown."""


async def reboot_vm(context: Context, vm: Vm, request: Shutdown, *, once: Once | None = None) -> Vm:
    """End the guest of a RUNNING VM and boot it again; see VmService.RebootVm."""
    _check_running(vm)
    operation = await context.operations.begin_after_ours(vm.vm_id, "reboot")
    return await context.operations.run(
        vm.vm_id, _reboot(context, vm.vm_id, request, operation, once), "reboot"
    )


def _check_running(vm: Vm) -> None:
    if vm.state is not VmState.RUNNING:
        raise FailedPrecondition(
            f"VM {vm.vm_id} is {vm.state}: only one that is running can be rebooted.",
            hint="ResumeVm first." if vm.state is VmState.PAUSED else "",
        )


async def _reboot(
    context: Context, vm_id: str, request: Shutdown, operation: Operation, once: Once | None
) -> Vm:
    vm = await context.read(vm_id)
    if once is not None and await context.is_repeated(once):
        return vm
    _check_running(vm)
    now_ns = context.clock.now_ns()
    changed, line = decide.note(vm, "It was asked to boot again.", now_ns=now_ns)
    vm = await context.commit(vm, replace(changed, restart_at_ns=now_ns), line, once=once)
    handle = context.handles.get(vm_id)
    if handle is not None:
        report = await ask_to_end(context, vm, handle, request)
        if report is not None:
            vm = await context.amend(replace(vm, exit=report, exit_at_ns=context.clock.now_ns()))
    return await _restart(context, vm, operation)


async def start_due(context: Context) -> tuple[int, int]:
    """Begin the restarts whose time has come; answers how many, and how many wait for others."""
    now_ns = context.clock.now_ns()
    running = context.operations.count("restart")
    due = await context.db.read(
        lambda connection: store.restarts_due(connection, now_ns, AT_ONCE + running)
    )
    begun = waiting = 0
    for vm in due:
        if context.operations.busy(vm.vm_id):
            continue
        if running + begun >= AT_ONCE:
            waiting += 1
            continue
        operation = context.operations.begin(vm.vm_id, "restart")
        context.operations.run_alone(
            vm.vm_id, _restart_by_itself(context, vm.vm_id, operation), "restart"
        )
        begun += 1
    return begun, waiting


async def _restart_by_itself(context: Context, vm_id: str, operation: Operation) -> None:
    try:
        vm = await context.read(vm_id)
        if vm.state is VmState.RUNNING and vm.restart_at_ns:
            await _restart(context, vm, operation)
    except IronError as error:
        # Nobody waits for an answer; the VM's state and reason carry it.
        warn("restart_failed", error, vm_id=vm_id)


async def _restart(context: Context, vm: Vm, operation: Operation) -> Vm:
    try:
        vm, handle = await _fresh_vmm(context, vm)
        await run_guest(context, vm, handle, operation, default_timeout(context, vm))
    except NotBootedError as error:
        await _again_or_never(context, vm.vm_id, error.report)
        raise error.public from error
    except Aborted:
        raise
    except Exception as error:
        report = ExitReport(kind=ExitKind.CRASHED, sentence=reason_of(error))
        await _again_or_never(context, vm.vm_id, report)
        if isinstance(error, IronError):
            raise
        public = f"VM {vm.vm_id} could not be booted again: {report.sentence}"
        raise FailedPrecondition(public, context={"fault": repr(error)}) from error
    noted, line = decide.note(vm, "The workload runs again.", now_ns=context.clock.now_ns())
    running = await context.commit(vm, replace(noted, ready=True, restart_at_ns=0), line)
    start_watch(context, vm.vm_id, handle)
    health.start(context, running)
    return running


async def _again_or_never(context: Context, vm_id: str, report: ExitReport) -> None:
    vm = await context.read(vm_id)
    plan = decide.restart(vm, report, context.host.state, now_ns=context.clock.now_ns())
    if plan is None:
        await fail(context, vm, report.sentence, report=report)
    else:
        await follow_plan(context, vm, plan, report)


async def _fresh_vmm(context: Context, vm: Vm) -> tuple[Vm, Handle]:
    """The VM with a VMM whose guest does not run yet; the old one and its cgroup are gone."""
    lease = await context.db.read(lambda connection: store.find_lease(connection, vm.vm_id))
    if lease is None or vm.evidence is None:
        raise Internal(f"VM {vm.vm_id} has no lease on its assets any more.")
    await power_off(context, vm)
    await context.steps.reach(Step.CGROUP_REMOVE, vm.vm_id)
    await context.groups.remove(vm.vm_id)
    await context.steps.reach(Step.CGROUP_CREATE, vm.vm_id)
    group = await context.groups.create(vm.vm_id, group_limits(context, vm))
    # After a reboot of the host all of the network is gone; it is made again in the VM's slot.
    await context.steps.reach(Step.NETWORK_SLOT, vm.vm_id)
    await mend_network(context, vm, None)
    await _mend_jail(context, vm, lease)
    driver = context.driver_of(vm.evidence)
    handle = await driver.reboot(vmm_spec(context, vm, lease, group), vm.evidence)
    context.handles[vm.vm_id] = handle
    size = VmmSize(vcpus=vm.spec.vcpus, memory_bytes=vm.spec.memory_bytes)
    fresh = replace(
        vm,
        evidence=handle.evidence,
        boot_epoch=vm.boot_epoch + 1,
        vmm=size,
        committed=replace(
            vm.committed,
            vcpus=size.vcpus,
            memory_bytes=size.memory_bytes + context.share.memory_bytes,
        ),
        drift=(),
    )
    return await context.amend(fresh), handle


async def _mend_jail(context: Context, vm: Vm, lease: Lease) -> None:
    """Place the assets anew if the jail is gone."""
    jail = context.jails.path(vm.vm_id)
    if await asyncio.to_thread((jail / ROOTFS_NAME).exists):
        return
    await context.steps.reach(Step.JAIL_DIRECTORY, vm.vm_id)
    await context.jails.create(vm.vm_id, context.uid_of(slot_of(vm)))
    await context.steps.reach(Step.ASSET_PREPARE, vm.vm_id)
    await prepare_assets(context, vm, lease)
