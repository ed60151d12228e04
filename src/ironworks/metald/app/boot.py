"""BootVm: let the guest run, wait until it is ready and metered, then say so."""

import asyncio
import contextlib
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from ironworks.metald import decide
from ironworks.metald.app.cleanup import fail
from ironworks.metald.app.context import Context
from ironworks.metald.app.operations import Operation, outcome_of
from ironworks.metald.drivers.driver import (
    Accel,
    DriverError,
    ExitReport,
    GuestEndedError,
    Handle,
)
from ironworks.metald.drivers.processes import tail
from ironworks.metald.jail_directories import ROOTFS_NAME
from ironworks.metald.network import naming
from ironworks.metald.sampling import BlockCounters, CgroupFiles, VmSource
from ironworks.metald.steps import Step
from ironworks.metald.types import Readiness, Vm, VmState
from ironworks.model.errors import (
    Aborted,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidRequest,
    IronError,
)
from ironworks.runtime.tasks import Tasks

MAX_BOOT_SECONDS = 600.0
FIRST_WAIT_SECONDS = 0.01


class _InterruptedError(Exception):
    """A shutdown wants the VM."""


class _TimedOutError(Exception):
    """The boot's time is over."""


async def boot_vm(context: Context, vm: Vm, *, timeout_seconds: float, detach: bool) -> Vm:
    """Boot a CREATED VM up to RUNNING; see VmService.BootVm for the errors."""
    timeout_seconds = timeout_seconds or _default_timeout(context, vm)
    if not 1 <= timeout_seconds <= MAX_BOOT_SECONDS:
        raise InvalidRequest(f"timeout_seconds must be 1 to {MAX_BOOT_SECONDS:g}.")
    if vm.state is VmState.BOOTING:
        if detach:
            return vm
        await context.operations.settled(vm.vm_id)
        vm = await context.read(vm.vm_id)
    if vm.state is VmState.RUNNING:
        return vm
    decide.check_transition(vm, VmState.BOOTING)
    handle = context.handles.get(vm.vm_id)
    if handle is None:
        raise FailedPrecondition(
            f"The VMM of VM {vm.vm_id} cannot be controlled.", hint="Delete the VM."
        )
    operation = await context.operations.begin_after_ours(vm.vm_id, "boot")
    try:
        vm = await context.read(vm.vm_id)
        booting = await context.move(vm, VmState.BOOTING, "The guest is being started.")
    except BaseException:
        context.operations.end(vm.vm_id)
        raise
    work = context.operations.run(
        vm.vm_id, _boot(context, booting, handle, operation, timeout_seconds), "boot"
    )
    if detach:
        context.tasks.start(_quietly(work), name=f"detached boot {vm.vm_id}")
        return booting
    return await work


def _default_timeout(context: Context, vm: Vm) -> float:
    settings = context.settings
    emulated = vm.accel == Accel.TCG
    return settings.boot_timeout_emulated_seconds if emulated else settings.boot_timeout_seconds


async def _quietly(work: Coroutine[Any, Any, Vm]) -> None:
    # Nobody waits for the answer; the VM's state and reason carry it.
    with contextlib.suppress(IronError):
        await work


async def _boot(
    context: Context, vm: Vm, handle: Handle, operation: Operation, timeout_seconds: float
) -> Vm:
    try:
        await handle.boot()
        await _first(_until_ready(context, vm, handle), handle, operation, timeout_seconds)
        return await context.move(vm, VmState.RUNNING, "The workload runs.")
    except _InterruptedError:
        raise Aborted(f"VM {vm.vm_id} was shut down while it was booting.") from None
    except _TimedOutError:
        reason = f"The guest was not ready within {timeout_seconds:g} seconds."
        shown = tail(handle.console_path, 1)
        hint = f"Its console ends with: {shown[0]}" if shown else "Its console is empty."
        await fail(context, vm, reason)
        raise DeadlineExceeded(f"VM {vm.vm_id} did not boot: {reason}", hint=hint) from None
    except GuestEndedError as error:
        report = context.explain_end(vm, error.report)
        await fail(context, vm, report.sentence, report=report)
        raise _not_booted(vm, report) from error
    except DriverError as error:
        await fail(context, vm, error.sentence)
        raise FailedPrecondition(
            f"VM {vm.vm_id} did not boot: {error.sentence}",
            context={"step": error.step.value, "detail": error.detail},
        ) from error
    except IronError as error:
        await fail(context, vm, error.message)
        raise
    except Exception as error:
        await fail(context, vm, "A fault of metald; its log has it.")
        raise Internal(f"VM {vm.vm_id} did not boot.", context={"fault": repr(error)}) from error


def _not_booted(vm: Vm, report: ExitReport) -> IronError:
    last = report.console_tail[-1] if report.console_tail else ""
    hint = f"Its console ends with: {last}" if last else "Its console is empty."
    return FailedPrecondition(f"VM {vm.vm_id} did not boot: {report.sentence}", hint=hint)


async def _first(
    work: Coroutine[Any, Any, None], handle: Handle, operation: Operation, timeout_seconds: float
) -> None:
    """Do `work` unless the VMM ends, a shutdown comes, or the time is over first."""
    async with Tasks() as tasks:
        ready = tasks.start(outcome_of(work), name="until ready")
        ended = tasks.start(handle.wait(), name="vmm end")
        wanted = tasks.start(operation.interrupt.wait(), name="interrupt")
        done, _ = await asyncio.wait(
            {ready, ended, wanted},
            timeout=timeout_seconds,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if wanted in done:
            raise _InterruptedError
        if ended in done:
            raise GuestEndedError(ended.result())
        if ready in done:
            ready.result().unwrap()
            return
        raise _TimedOutError


async def _until_ready(context: Context, vm: Vm, handle: Handle) -> None:
    await handle.wait_ready()
    await context.steps.reach(Step.METERING_ATTACH, vm.vm_id)
    await attach_metering(context, vm, handle)
    if vm.spec.readiness is not None:
        await context.steps.reach(Step.READINESS_PORT, vm.vm_id)
        await _port_open(context, vm, vm.spec.readiness)


async def attach_metering(context: Context, vm: Vm, handle: Handle) -> None:
    """Have the VM sampled; returns when its first sample was taken."""
    if vm.slot is None:
        raise Internal(f"VM {vm.vm_id} has no network slot.")
    group = context.groups.group(vm.vm_id)

    async def read_blocks() -> BlockCounters:
        counters = await handle.block_counters()
        return BlockCounters(read_bytes=counters.read_bytes, write_bytes=counters.written_bytes)

    capabilities = context.probes[handle.evidence.kind].capabilities
    await context.sampler.attach(
        VmSource(
            vm_id=vm.vm_id,
            tenant_id=vm.tenant_id,
            deployment_id=vm.spec.deployment_id,
            boot_epoch=vm.boot_epoch,
            vcpus=vm.spec.vcpus,
            memory_bytes=vm.spec.memory_bytes,
            disk_bytes=await asyncio.to_thread(_disk_bytes, handle.evidence.jail_dir),
            cgroup=CgroupFiles(cpu=str(group.cpu_file), memory=str(group.memory_file)),
            netns=context.network.names(vm.slot).netns,
            tap=naming.TAP,
            read_blocks=read_blocks if capabilities.block_counters else None,
        )
    )


def _disk_bytes(jail_dir: Path) -> int:
    """Size of the VM's disks; the root is the only one yet."""
    try:
        return (jail_dir / ROOTFS_NAME).stat().st_size
    except OSError:
        return 0


async def _port_open(context: Context, vm: Vm, readiness: Readiness) -> None:
    if vm.slot is None:
        raise Internal(f"VM {vm.vm_id} has no network slot.")
    address = str(context.network.names(vm.slot).address)
    # Most servers listen within milliseconds of their start: asked often at first.
    wait_seconds = min(FIRST_WAIT_SECONDS, readiness.period_seconds)
    while True:
        try:
            async with asyncio.timeout(readiness.timeout_seconds):
                _, writer = await asyncio.open_connection(address, readiness.tcp_port)
        except (OSError, TimeoutError):
            await context.clock.sleep(wait_seconds)
            wait_seconds = min(2 * wait_seconds, readiness.period_seconds)
            continue
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return
