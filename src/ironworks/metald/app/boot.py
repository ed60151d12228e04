"""BootVm: let the guest run, wait until it is ready and metered, then say so."""

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from ironworks.metald import decide
from ironworks.metald.app import health
from ironworks.metald.app.cleanup import fail, reason_of
from ironworks.metald.app.context import Context, Once, warn
from ironworks.metald.app.operations import Operation, outcome_of
from ironworks.metald.drivers.driver import (
    Accel,
    DriverError,
    ExitKind,
    ExitReport,
    GuestEndedError,
    Handle,
)
from ironworks.metald.drivers.processes import tail
from ironworks.metald.jail_directories import ROOTFS_NAME
from ironworks.metald.network import naming
from ironworks.metald.sampling import BlockCounters, CgroupFiles, VmSource
from ironworks.metald.steps import Step
from ironworks.metald.types import Vm, VmmSize, VmState
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


class _InterruptedError(Exception):
    """A shutdown wants the VM."""


class _TimedOutError(Exception):
    """The boot's time is over."""


class NotBootedError(Exception):
    """A guest did not become ready.

    Attributes:
        report: For the VM's record.
        public: For the caller.
    """

    def __init__(self, report: ExitReport, public: IronError) -> None:
        """Wrap both."""
        super().__init__(report.sentence)
        self.report = report
        self.public = public


async def boot_vm(
    context: Context,
    vm: Vm,
    *,
    timeout_seconds: float,
    detach: bool,
    once: Once | None = None,
) -> Vm:
    """Boot a CREATED VM up to RUNNING; see VmService.BootVm for the errors."""
    timeout_seconds = timeout_seconds or default_timeout(context, vm)
    if not 1 <= timeout_seconds <= MAX_BOOT_SECONDS:
        raise InvalidRequest(f"timeout_seconds must be 1 to {MAX_BOOT_SECONDS:g}.")
    if vm.state is VmState.BOOTING:
        if detach:
            return vm
        await context.operations.settled(vm.vm_id)
        vm = await context.read(vm.vm_id)
    if vm.state is VmState.RUNNING:
        return vm
    if vm.state is VmState.FAILED and once is not None and await context.is_repeated(once):
        # Its first call was not waited for to the end: this one is told how that went.
        raise FailedPrecondition(f"VM {vm.vm_id} did not boot: {vm.reason}")
    decide.check_transition(vm, VmState.BOOTING)
    handle = context.handles.get(vm.vm_id)
    if handle is None:
        raise FailedPrecondition(
            f"The VMM of VM {vm.vm_id} cannot be controlled.", hint="Delete the VM."
        )
    operation = await context.operations.begin_after_ours(vm.vm_id, "boot")
    try:
        vm = await context.read(vm.vm_id)
        booting = await context.move(vm, VmState.BOOTING, "The guest is being started.", once=once)
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


def default_timeout(context: Context, vm: Vm) -> float:
    """How long a boot of this VM may take unless its caller says otherwise."""
    settings = context.settings
    emulated = vm.accel == Accel.TCG
    return settings.boot_timeout_emulated_seconds if emulated else settings.boot_timeout_seconds


async def _quietly(work: Coroutine[Any, Any, Vm]) -> None:
    # Nobody waits for the answer; the VM's state and reason carry it.
    with contextlib.suppress(IronError):
        await work


async def _boot(
    context: Context,
    vm: Vm,
    handle: Handle,
    operation: Operation,
    timeout_seconds: float,
) -> Vm:
    try:
        await run_guest(context, vm, handle, operation, timeout_seconds)
        running = await context.move(vm, VmState.RUNNING, "The workload runs.")
    except NotBootedError as error:
        await fail(context, vm, error.report.sentence, report=error.report)
        raise error.public from error
    health.start(context, running)
    return running


async def boot_on(context: Context, vm: Vm, handle: Handle, operation: Operation) -> None:
    """Go on with a boot that an earlier metald began; its caller asks again, or has gone."""
    try:
        await _boot(context, vm, handle, operation, default_timeout(context, vm))
    except IronError as error:
        warn("boot_failed", error, vm_id=vm.vm_id)


async def run_guest(
    context: Context, vm: Vm, handle: Handle, operation: Operation, timeout_seconds: float
) -> None:
    """Let the guest run; returns when it is ready and metered.

    Raises:
        NotBootedError: it did not come so far.
        Aborted: a shutdown wants the VM.
    """
    try:
        await handle.boot()
        await _first(_until_ready(context, vm, handle), handle, operation, timeout_seconds)
    except _InterruptedError:
        raise Aborted(f"VM {vm.vm_id} was shut down while it was booting.") from None
    except Exception as error:
        raise _explained(context, vm, handle, error, timeout_seconds) from error


def _explained(
    context: Context, vm: Vm, handle: Handle, error: Exception, timeout_seconds: float
) -> NotBootedError:
    """What to tell of a boot that failed, and whom."""
    shown = tail(handle.console_path)
    last = f"Its console ends with: {shown[-1]}" if shown else "Its console is empty."
    failed = f"VM {vm.vm_id} did not boot"
    if isinstance(error, GuestEndedError):
        report = context.explain_end(vm, error.report)
        last = report.console_tail[-1] if report.console_tail else ""
        hint = f"Its console ends with: {last}" if last else "Its console is empty."
        return NotBootedError(report, FailedPrecondition(f"{failed}: {report.sentence}", hint=hint))
    report = ExitReport(kind=ExitKind.KILLED, sentence=reason_of(error), console_tail=shown)
    if isinstance(error, _TimedOutError):
        sentence = f"The guest was not ready within {timeout_seconds:g} seconds."
        report = replace(report, sentence=sentence)
        return NotBootedError(report, DeadlineExceeded(f"{failed}: {sentence}", hint=last))
    if isinstance(error, IronError):
        return NotBootedError(report, error)
    if isinstance(error, DriverError):
        private = {"step": error.step.value, "detail": error.detail}
        public = FailedPrecondition(f"{failed}: {error.sentence}", context=private)
        return NotBootedError(report, public)
    return NotBootedError(report, Internal(f"{failed}.", context={"fault": repr(error)}))


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
    await health.until_ready(context, vm)


async def attach_metering(context: Context, vm: Vm, handle: Handle) -> None:
    """Have the VM sampled, or tell that it was paused or runs on; returns after a sample of it."""
    if vm.slot is None:
        raise Internal(f"VM {vm.vm_id} has no network slot.")
    group = context.groups.group(vm.vm_id)
    # What the VMM was started with: the spec may have been changed since.
    size = vm.vmm or VmmSize(vcpus=vm.spec.vcpus, memory_bytes=vm.spec.memory_bytes)

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
            vcpus=size.vcpus,
            memory_bytes=size.memory_bytes,
            disk_bytes=vm.spec.disk_bytes
            + await asyncio.to_thread(_rootfs_bytes, handle.evidence.jail_dir),
            cgroup=CgroupFiles(cpu=str(group.cpu_file), memory=str(group.memory_file)),
            netns=context.network.names(vm.slot).netns,
            tap=naming.TAP,
            read_blocks=read_blocks if capabilities.block_counters else None,
            paused=vm.state is VmState.PAUSED,
        )
    )


def _rootfs_bytes(jail_dir: Path) -> int:
    try:
        return (jail_dir / ROOTFS_NAME).stat().st_size
    except OSError:
        return 0
