"""ShutdownVm, PauseVm, ResumeVm and DeleteVm."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from ironworks.metald import decide
from ironworks.metald.app import health
from ironworks.metald.app.boot import attach_metering
from ironworks.metald.app.cleanup import clean_up, end_vmm, fail
from ironworks.metald.app.context import Context, Once, log
from ironworks.metald.app.watch import settle_stopped
from ironworks.metald.drivers.driver import DriverError, ExitReport, Handle
from ironworks.metald.types import MAX_REASON_CHARS, Vm, VmState
from ironworks.model.errors import FailedPrecondition, InvalidRequest, Unimplemented

MIN_SHUTDOWN_SECONDS = 0.1
MAX_SHUTDOWN_SECONDS = 600.0
INTERRUPT_SECONDS = 30.0
_BOOTS = frozenset({"boot", "reboot", "restart"})
_BOOTS_AND_SHUTDOWN = _BOOTS | {"shutdown"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shutdown:
    """How a VM is to be ended."""

    timeout_seconds: float
    force: bool
    reason: str


def shutdown_request(
    context: Context, *, timeout_seconds: float, force: bool, reason: str
) -> Shutdown:
    """The request with its defaults.

    Raises:
        InvalidRequest: a bound is not kept.
    """
    timeout_seconds = timeout_seconds or context.settings.shutdown_timeout_seconds
    if not MIN_SHUTDOWN_SECONDS <= timeout_seconds <= MAX_SHUTDOWN_SECONDS:
        raise InvalidRequest(
            f"timeout_seconds must be {MIN_SHUTDOWN_SECONDS:g} to {MAX_SHUTDOWN_SECONDS:g}.",
            hint="To end the VM at once, use force.",
        )
    if len(reason) > MAX_REASON_CHARS:
        raise InvalidRequest(f"reason may have at most {MAX_REASON_CHARS} characters.")
    return Shutdown(
        timeout_seconds=timeout_seconds,
        force=force,
        reason=reason or "It was asked to shut down.",
    )


async def shutdown_vm(
    context: Context, vm: Vm, request: Shutdown, *, once: Once | None = None
) -> Vm:
    """End a VM: ask the guest, wait, then by force; see VmService.ShutdownVm."""
    if vm.state is VmState.STOPPED:
        return vm
    if vm.state is not VmState.STOPPING:
        decide.check_transition(vm, VmState.STOPPING)
    await context.operations.interrupt(vm.vm_id, _BOOTS, INTERRUPT_SECONDS)
    return await _exclusively(
        context, vm.vm_id, "shutdown", _shutdown(context, vm.vm_id, request, once)
    )


async def _exclusively(
    context: Context, vm_id: str, name: str, work: Coroutine[Any, Any, Vm]
) -> Vm:
    try:
        await context.operations.begin_after_ours(vm_id, name)
    except BaseException:
        work.close()
        raise
    return await context.operations.run(vm_id, work, name)


async def _shutdown(context: Context, vm_id: str, request: Shutdown, once: Once | None) -> Vm:
    vm = await context.read(vm_id)
    if vm.state is VmState.STOPPED:
        return vm
    had_guest = vm.state in decide.HAS_GUEST
    paused = vm.state is VmState.PAUSED
    if vm.state is not VmState.STOPPING:
        vm = await context.move(vm, VmState.STOPPING, request.reason, once=once)
    handle = context.handles.get(vm_id)
    report: ExitReport | None = None
    if handle is not None and had_guest and not request.force:
        report = await ask_to_end(context, vm, handle, request, paused=paused)
    if report is None:
        report = await end_vmm(context, vm)
    sentence = request.reason if report is None else report.sentence
    return await settle_stopped(context, vm, report, sentence)


async def ask_to_end(
    context: Context, vm: Vm, handle: Handle, request: Shutdown, *, paused: bool = False
) -> ExitReport | None:
    """How the guest ended by itself; None if it did not in time, or cannot be asked."""
    try:
        async with asyncio.timeout(request.timeout_seconds):
            if paused:
                await handle.resume()
            await handle.shutdown()
            return context.explain_end(vm, await handle.wait())
    except TimeoutError:
        log.info("shutdown_timeout", vm_id=vm.vm_id, timeout_seconds=request.timeout_seconds)
    except DriverError as error:
        log.warning("shutdown_not_asked", vm_id=vm.vm_id, error=str(error))
    return None


async def pause_vm(context: Context, vm: Vm, *, once: Once | None = None) -> Vm:
    """Stop the vCPUs of a RUNNING VM."""
    if vm.state is VmState.PAUSED:
        return vm
    decide.check_transition(vm, VmState.PAUSED)
    return await _exclusively(
        context, vm.vm_id, "pause", _switch(context, vm.vm_id, VmState.PAUSED, once)
    )


async def resume_vm(context: Context, vm: Vm, *, once: Once | None = None) -> Vm:
    """Let the vCPUs of a PAUSED VM run on."""
    if vm.state is VmState.RUNNING:
        return vm
    if vm.state is not VmState.PAUSED:
        # The table has BOOTING → RUNNING too, which is not for this call to make.
        raise FailedPrecondition(f"VM {vm.vm_id} is {vm.state}, not paused.")
    return await _exclusively(
        context, vm.vm_id, "resume", _switch(context, vm.vm_id, VmState.RUNNING, once)
    )


async def _switch(context: Context, vm_id: str, after: VmState, once: Once | None) -> Vm:
    vm = await context.read(vm_id)
    decide.check_transition(vm, after)
    handle = context.handles.get(vm_id)
    if vm.restart_at_ns:
        raise FailedPrecondition(
            f"VM {vm_id} is being booted again.", hint="Wait until it is ready."
        )
    if handle is None:
        raise FailedPrecondition(f"The VMM of VM {vm_id} cannot be controlled.")
    if not context.probes[handle.evidence.kind].capabilities.pause:
        raise Unimplemented(f"The {handle.evidence.kind} driver cannot pause VMs.")
    try:
        if after is VmState.PAUSED:
            await handle.pause()
            health.stop(context, vm_id)
            paused = await context.move(vm, after, "It was asked to pause.", once=once)
            await attach_metering(context, paused, handle)
            return paused
        await handle.resume()
        resumed = await context.move(vm, after, "It was asked to run on.", once=once)
    except DriverError as error:
        raise FailedPrecondition(f"VM {vm_id}: {error.sentence}") from error
    await attach_metering(context, resumed, handle)
    health.start(context, resumed)
    return resumed


async def delete_vm(context: Context, vm: Vm, *, force: bool, once: Once | None = None) -> Vm:
    """Remove a VM and everything of it; see VmService.DeleteVm."""
    if vm.state is VmState.DELETED:
        return vm
    decide.path_to_deleting(vm, force=force)
    if force:
        await context.operations.interrupt(vm.vm_id, _BOOTS_AND_SHUTDOWN, INTERRUPT_SECONDS)
    return await _exclusively(
        context, vm.vm_id, "delete", _delete(context, vm.vm_id, force=force, once=once)
    )


async def _delete(context: Context, vm_id: str, *, force: bool, once: Once | None) -> Vm:
    vm = await context.read(vm_id)
    reason = "It was asked to be deleted."
    for state in decide.path_to_deleting(vm, force=force):
        if state is VmState.FAILED:
            vm = await fail(context, vm, "It was deleted while it was being created.")
        elif state is VmState.STOPPING:
            vm = await context.move(vm, state, reason)
        else:
            vm = await settle_stopped(context, vm, await end_vmm(context, vm), reason)
    if vm.state is VmState.DELETED:
        return vm
    if vm.state is not VmState.DELETING:
        vm = await context.move(vm, VmState.DELETING, reason, once=once)
    vm, clean = await clean_up(context, vm)
    await context.jails.forget_console(vm_id)
    if not clean:
        raise FailedPrecondition(
            f"Not everything of VM {vm_id} could be removed yet; it is tried again by itself.",
            hint="Repeat the call later; the log says what is in the way.",
        )
    return await context.move(vm, VmState.DELETED, "Nothing is left of it.")
