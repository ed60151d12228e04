"""Starts QEMUs and finds them again."""

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ironworks.metald.drivers.driver import (
    Accel,
    Capabilities,
    DriverError,
    DriverKind,
    Evidence,
    ExitReport,
    Probe,
    VmmSpec,
)
from ironworks.metald.drivers.kept import (
    NETNS_DIRECTORY,
    end_all,
    keeper_details,
    take_over,
    watch_keeper,
)
from ironworks.metald.drivers.processes import (
    VmmProcess,
    boot_id,
    is_alive,
    mark_reboot,
    tail,
)
from ironworks.metald.drivers.qemu.argv import (
    CONFIG,
    CONTROL_DESCRIPTOR,
    INITRD,
    KERNEL,
    QEMU,
    QMP_DESCRIPTOR,
    ROOTFS,
    SCRATCH,
    Machine,
    MachineSpec,
    qemu_argv,
)
from ironworks.metald.drivers.qemu.files import KVM, VmFiles
from ironworks.metald.drivers.qemu.handle import IMAGE_INIT, QemuHandle, open_control
from ironworks.metald.drivers.qemu.probe import PROBE_SECONDS, Finding, probe
from ironworks.metald.drivers.qemu.qmp import Monitor, MonitorError
from ironworks.metald.drivers.qemu.status import read_status_file, vmm_status
from ironworks.metald.drivers.report import collect, explain
from ironworks.metald.drivers.scratch import make_scratch
from ironworks.metald.drivers.sockets import listen
from ironworks.metald.guest.build import find
from ironworks.metald.guest.config import ConfigError
from ironworks.metald.jail.bubblewrap import BWRAP, SETPRIV, jail_argv
from ironworks.metald.jail.keeper import (
    TAP_DESCRIPTOR,
    Kept,
    build_keeper,
    keeper_argv,
    spawn_keeper,
)
from ironworks.metald.jail.seccomp import filter_file
from ironworks.metald.steps import Step, Steps
from ironworks.model.errors import FailedPrecondition, IronError
from ironworks.model.units import MIB
from ironworks.runtime.clock import Clock
from ironworks.runtime.process import start_ticks
from ironworks.runtime.tasks import Tasks

MAX_VCPUS = 32
MIN_MEMORY_BYTES = 96 * MIB
"""Debian's kernel with our initrd does not boot with 64 MiB, and does with 80."""

_STATUS_DESCRIPTOR = 13
_SECCOMP_DESCRIPTOR = 14
_OVERHEAD_BYTES: Mapping[Accel, int] = {Accel.TCG: 288 * MIB, Accel.KVM: 96 * MIB}
"""QEMU itself, and with TCG its cache of translated code."""
_MACHINE = "machine"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spawned:
    """A keeper that was just started."""

    process: VmmProcess
    machine: Machine


class QemuDriver:
    """See `driver.Driver`."""

    def __init__(
        self,
        clock: Clock,
        steps: Steps,
        *,
        guest_dir: Path,
        state_dir: Path,
        probe_seconds: float = PROBE_SECONDS,
    ) -> None:
        """Make the driver.

        Args:
            clock: For the guest's clock after a pause.
            steps: Told of every step.
            guest_dir: Where the built guests are, for the probe, and the keeper is kept.
            state_dir: Where the probe's finding is remembered.
            probe_seconds: Bound of each probe boot.
        """
        self._clock = clock
        self._steps = steps
        self._guest_dir = guest_dir
        self._state_dir = state_dir
        self._probe_seconds = probe_seconds
        self._finding: Finding | None = None
        self._finding_lock = asyncio.Lock()

    @property
    def kind(self) -> DriverKind:
        """See `Driver`."""
        return DriverKind.QEMU

    async def probe(self) -> Probe:
        """See `Driver`."""
        try:
            finding = await self._find_out()
            await build_keeper(self._guest_dir)
        except IronError as error:
            return self._unavailable(str(error))
        return Probe(
            kind=DriverKind.QEMU,
            available=True,
            accel=finding.accel,
            version=finding.version,
            sentence=finding.sentence,
            capabilities=_capabilities(finding.accel),
        )

    def _unavailable(self, sentence: str) -> Probe:
        return Probe(
            kind=DriverKind.QEMU,
            available=False,
            accel=Accel.NONE,
            version="",
            sentence=sentence,
            capabilities=_capabilities(Accel.TCG),
        )

    async def _find_out(self) -> Finding:
        """The probe's finding.

        Raises:
            FailedPrecondition: a program or the guest is missing.
        """
        async with self._finding_lock:
            if self._finding is None:
                self._finding = await _probe(self._guest_dir, self._state_dir, self._probe_seconds)
            return self._finding

    async def create(self, spec: VmmSpec) -> QemuHandle:
        """See `Driver`."""
        return await self._create(spec, lasting=frozenset())

    async def reboot(self, spec: VmmSpec, evidence: Evidence) -> QemuHandle:
        """See `Driver`."""
        files = VmFiles(spec.jail_dir)
        await end_all(files.console, evidence)
        await asyncio.to_thread(files.remove, but=files.lasting)
        await asyncio.to_thread(mark_reboot, files.console)
        return await self._create(spec, lasting=files.lasting)

    async def _create(self, spec: VmmSpec, *, lasting: frozenset[Path]) -> QemuHandle:
        files = VmFiles(spec.jail_dir)
        spawned: _Spawned | None = None
        monitor: Monitor | None = None
        step = Step.JAIL_PREPARE
        try:
            await self._steps.reach(step, spec.vm_id)
            finding = await self._find_out()
            keeper = await build_keeper(self._guest_dir)
            if finding.accel is Accel.KVM:
                files.make_kvm_node(spec.uid)
            if spec.scratch_bytes:
                await make_scratch(files.scratch, spec.scratch_bytes, spec.uid, spec.gid)
            step = Step.VMM_CONFIGURE
            await self._steps.reach(step, spec.vm_id)
            files.write_config(spec)
            step = Step.VMM_SPAWN
            await self._steps.reach(step, spec.vm_id)
            spawned = _spawn(spec, files, keeper, finding)
            step = Step.VMM_CONNECT
            await self._steps.reach(step, spec.vm_id)
            monitor = await _open_monitor(files, spawned.process)
            evidence = _evidence(spec, files, spawned)
            return await self._handle(evidence, spawned.process, monitor)
        except BaseException as error:
            raised = _as_driver_error(step, error, files)
            await _undo(files, spawned, monitor, lasting)
            if raised is error:
                raise
            raise raised from error

    async def _handle(self, evidence: Evidence, keeper: VmmProcess, monitor: Monitor) -> QemuHandle:
        control = await open_control(VmFiles(evidence.jail_dir).control)
        return QemuHandle(
            evidence=evidence,
            keeper=keeper,
            monitor=monitor,
            control=control,
            clock=self._clock,
            steps=self._steps,
        )

    async def adopt(self, evidence: Evidence) -> QemuHandle | None:
        """See `Driver`."""
        keeper = await take_over(evidence)
        if keeper is None:
            return None
        try:
            monitor = await _open_monitor(VmFiles(evidence.jail_dir), keeper)
            try:
                return await self._handle(evidence, keeper, monitor)
            except BaseException:
                await monitor.close()
                raise
        except (MonitorError, OSError) as error:
            ended = keeper.ended or not is_alive(evidence)
            keeper.close()
            if ended:
                return None
            raise DriverError(
                Step.VMM_CONNECT,
                "QEMU runs, but its monitor does not answer.",
                detail=str(error),
                console_tail=tail(VmFiles(evidence.jail_dir).console),
            ) from error

    async def post_mortem(self, evidence: Evidence) -> ExitReport:
        """See `Driver`."""
        files = VmFiles(evidence.jail_dir)
        _, code = read_status_file(files.status)
        remains = collect(
            vmm="QEMU",
            status=vmm_status(code),
            killed=False,
            last_word=None,
            console_path=files.console,
            errors_path=files.errors,
        )
        return explain(remains)

    async def destroy(self, jail_dir: Path, evidence: Evidence | None) -> None:
        """See `Driver`."""
        files = VmFiles(jail_dir)
        await end_all(files.console, evidence)
        await asyncio.to_thread(files.remove)


def _capabilities(accel: Accel) -> Capabilities:
    return Capabilities(
        pause=True,
        graceful_shutdown=True,
        block_counters=True,
        boots_bzimage=True,
        max_vcpus=MAX_VCPUS,
        min_memory_bytes=MIN_MEMORY_BYTES,
        memory_overhead_bytes=_OVERHEAD_BYTES[accel],
        rate_limits=True,
        scratch_disk=True,
        image_init=True,
    )


async def _probe(guest_dir: Path, state_dir: Path, probe_seconds: float) -> Finding:
    for program, package in (
        (QEMU, "qemu-system-x86"),
        (BWRAP, "bubblewrap"),
        (SETPRIV, "util-linux"),
    ):
        if shutil.which(program) is None:
            raise FailedPrecondition(
                f"{program} is not installed, so VMs cannot be run.",
                hint=f"Run `apt-get install {package}`.",
            )
    guest = await asyncio.to_thread(find, guest_dir)
    if guest is None:
        raise FailedPrecondition(
            f"The guest's kernel and initrd are not in {guest_dir}.",
            hint="Run `python -m ironworks.metald.guest build`.",
        )
    return await probe(guest, state_dir, timeout_seconds=probe_seconds)


def _spawn(spec: VmmSpec, files: VmFiles, keeper: Path, finding: Finding) -> _Spawned:
    machine = MachineSpec(
        name=spec.vm_id,
        machine=finding.machine,
        accel=finding.accel,
        vcpus=spec.vcpus,
        memory_bytes=spec.memory_bytes,
        mac=spec.mac,
        tap_descriptor=TAP_DESCRIPTOR,
        kernel_args=spec.kernel_args,
        scratch=bool(spec.scratch_bytes),
        limits=spec.rate_limits,
    )
    shown = {KERNEL: spec.kernel_path, ROOTFS: spec.rootfs_path, CONFIG: files.config}
    if spec.initrd_path is not None:
        shown[INITRD] = spec.initrd_path
    program = jail_argv(
        qemu_argv(machine),
        uid=spec.uid,
        gid=spec.gid,
        files=shown,
        devices=_writable(spec, files, finding),
        status_descriptor=_STATUS_DESCRIPTOR,
        seccomp_descriptor=_SECCOMP_DESCRIPTOR,
    )
    kept = Kept(
        cgroup_join_paths=spec.cgroup_join_paths,
        netns_path=NETNS_DIRECTORY / spec.netns,
        tap=spec.tap,
        uid=spec.uid,
        gid=spec.gid,
        console_path=files.console,
        console_max_bytes=spec.console_max_bytes,
        errors_path=files.errors,
    )
    with (
        listen(files.qmp) as qmp,
        listen(files.control) as control,
        files.status.open("wb") as status,
        filter_file() as seccomp,
    ):
        pid = spawn_keeper(
            keeper_argv(keeper, kept, program),
            errors_path=files.errors,
            descriptors={
                QMP_DESCRIPTOR: qmp.fileno(),
                CONTROL_DESCRIPTOR: control.fileno(),
                _STATUS_DESCRIPTOR: status.fileno(),
                _SECCOMP_DESCRIPTOR: seccomp.fileno(),
            },
        )
    return _Spawned(process=watch_keeper(pid), machine=finding.machine)


def _writable(spec: VmmSpec, files: VmFiles, finding: Finding) -> dict[str, Path]:
    """What QEMU may open for writing."""
    found: dict[str, Path] = {}
    if finding.accel is Accel.KVM:
        found[str(KVM)] = files.kvm
    if spec.scratch_bytes:
        found[SCRATCH] = files.scratch
    return found


async def _open_monitor(files: VmFiles, keeper: VmmProcess) -> Monitor:
    """Connect to QEMU's monitor, or find out that QEMU ended instead.

    Raises:
        MonitorError: it ended, or does not answer.
    """

    async def attempt() -> Monitor | MonitorError:
        try:
            return await Monitor.open(files.qmp)
        except MonitorError as error:
            return error

    async with Tasks() as tasks:
        opened = tasks.start(attempt(), name="qmp connect")
        ended = tasks.start(keeper.wait(), name="vmm end")
        await asyncio.wait({opened, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not opened.done():
            raise MonitorError("QEMU ended before it answered")
        result = await opened
    if isinstance(result, MonitorError):
        raise result
    return result


def _evidence(spec: VmmSpec, files: VmFiles, spawned: _Spawned) -> Evidence:
    pid, _ = read_status_file(files.status)
    ticks = None if pid is None else start_ticks(pid)
    if pid is None or ticks is None:
        raise MonitorError("bubblewrap did not say which process QEMU is")
    return Evidence(
        kind=DriverKind.QEMU,
        vm_id=spec.vm_id,
        pid=pid,
        pid_start_ticks=ticks,
        boot_id=boot_id(),
        jail_dir=spec.jail_dir,
        details={
            **keeper_details(spawned.process),
            _MACHINE: spawned.machine.value,
            IMAGE_INIT: "1" if spec.guest.image_init else "",
        },
    )


def _as_driver_error(step: Step, error: BaseException, files: VmFiles) -> BaseException:
    """The error as the interface promises it; others, such as a cancellation, as they are."""
    complaints = tail(files.errors)
    if isinstance(error, ConfigError):
        return DriverError(step, str(error))
    if isinstance(error, IronError):
        return DriverError(step, error.message, detail=error.hint)
    if isinstance(error, MonitorError | OSError):
        why = f": {complaints[-1]}" if complaints else "."
        return DriverError(
            step,
            f"QEMU could not be started{why}",
            detail="\n".join([repr(error), *complaints]),
            console_tail=tail(files.console),
        )
    return error


async def _undo(
    files: VmFiles, spawned: _Spawned | None, monitor: Monitor | None, lasting: frozenset[Path]
) -> None:
    """Take back all that a failed `create` made, even while it is being cancelled."""
    if spawned is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(spawned.process.pid, signal.SIGKILL)
        await spawned.process.wait()
        spawned.process.close()
    if monitor is not None:
        await monitor.close()
    await asyncio.to_thread(files.remove, but=lasting)
