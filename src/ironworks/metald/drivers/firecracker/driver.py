"""Starts Firecrackers and finds them again."""

import asyncio
import contextlib
import os
import shutil
import signal
from dataclasses import dataclass, replace
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
from ironworks.metald.drivers.firecracker.api import Api, ApiError
from ironworks.metald.drivers.firecracker.channel import ControlListener
from ironworks.metald.drivers.firecracker.files import VmFiles
from ironworks.metald.drivers.firecracker.handle import (
    IMAGE_INIT,
    VERSION,
    Drains,
    FirecrackerHandle,
    Links,
)
from ironworks.metald.drivers.firecracker.jailer import (
    UNSHARE,
    cgroup_arguments,
    jailer_argv,
    sealed_firecracker,
)
from ironworks.metald.drivers.firecracker.machine import configuration
from ironworks.metald.drivers.firecracker.probe import (
    PROBE_SECONDS,
    Binaries,
    Finding,
    find_binaries,
    probe,
)
from ironworks.metald.drivers.firecracker.status import tale
from ironworks.metald.drivers.kept import (
    end_all,
    keeper_details,
    take_over,
    watch_keeper,
)
from ironworks.metald.drivers.processes import (
    VmmProcess,
    boot_id,
    is_alive,
    is_stopped,
    mark_reboot,
    tail,
)
from ironworks.metald.drivers.report import collect, explain
from ironworks.metald.drivers.scratch import make_scratch
from ironworks.metald.guest.build import find
from ironworks.metald.guest.config import ConfigError
from ironworks.metald.guest.vmlinux import KernelError, unpacked
from ironworks.metald.jail.keeper import Kept, build_keeper, keeper_argv, spawn_keeper
from ironworks.metald.steps import Step, Steps
from ironworks.model.errors import FailedPrecondition, IronError
from ironworks.model.units import MIB
from ironworks.runtime.clock import Clock
from ironworks.runtime.process import start_ticks

MAX_VCPUS = 32
MIN_MEMORY_BYTES = 96 * MIB
"""As with QEMU: Debian's kernel with our initrd does not boot with 64 MiB."""
OVERHEAD_BYTES = 32 * MIB
"""Firecracker promises 5 MiB; keeper, page tables and KVM's own memory count too."""
CONNECT_SECONDS = 20.0
"""Firecracker answers within milliseconds; a host under load may take longer."""
_CONNECT_PERIOD_SECONDS = 0.005
_PROGRAM = "program"


@dataclass(slots=True, kw_only=True)
class _Made:
    """What a `create` has made so far, so that all of it can be undone."""

    keeper: VmmProcess | None = None
    drains: Drains | None = None
    control: ControlListener | None = None
    api: Api | None = None

    async def close(self) -> None:
        if self.drains is not None:
            self.drains.close()
        if self.control is not None:
            await self.control.close()
        if self.api is not None:
            await self.api.close()


class FirecrackerDriver:
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
            guest_dir: Where the built guests, the keeper and unpacked kernels are kept.
            state_dir: Where the probe's finding is remembered.
            probe_seconds: Bound of the probe boot.
        """
        self._clock = clock
        self._steps = steps
        self._guest_dir = guest_dir
        self._elf_dir = guest_dir / "elf"
        self._state_dir = state_dir
        self._probe_seconds = probe_seconds
        self._finding: Finding | None = None
        self._finding_lock = asyncio.Lock()

    @property
    def kind(self) -> DriverKind:
        """See `Driver`."""
        return DriverKind.FIRECRACKER

    async def probe(self) -> Probe:
        """See `Driver`."""
        try:
            finding = await self._find_out()
            await build_keeper(self._guest_dir)
            await sealed_firecracker(self._guest_dir)
        except IronError as error:
            finding = Finding(works=False, sentence=f"{error.message} {error.hint}", version="")
        return Probe(
            kind=DriverKind.FIRECRACKER,
            available=finding.works,
            accel=Accel.KVM if finding.works else Accel.NONE,
            version=finding.version,
            sentence=finding.sentence.strip(),
            capabilities=_CAPABILITIES,
        )

    async def _find_out(self) -> Finding:
        """The probe's finding.

        Raises:
            FailedPrecondition: a program or the guest is missing.
        """
        async with self._finding_lock:
            if self._finding is None:
                binaries = find_binaries()
                if shutil.which(UNSHARE) is None:
                    raise FailedPrecondition(
                        f"{UNSHARE} is not installed.", hint="Run `apt-get install util-linux`."
                    )
                guest = await asyncio.to_thread(find, self._guest_dir)
                if guest is None:
                    raise FailedPrecondition(
                        f"The guest's kernel and initrd are not in {self._guest_dir}.",
                        hint="Run `python -m ironworks.metald.guest build`.",
                    )
                self._finding = await probe(
                    binaries,
                    guest,
                    state_dir=self._state_dir,
                    elf_dir=self._elf_dir,
                    timeout_seconds=self._probe_seconds,
                )
            return self._finding

    async def create(self, spec: VmmSpec) -> FirecrackerHandle:
        """See `Driver`."""
        return await self._create(spec, lasting=False)

    async def reboot(self, spec: VmmSpec, evidence: Evidence) -> FirecrackerHandle:
        """See `Driver`."""
        files = _files_of(evidence)
        await end_all(files.console, evidence)
        await asyncio.to_thread(files.remove, but=files.lasting)
        await asyncio.to_thread(mark_reboot, files.console)
        return await self._create(spec, lasting=True)

    async def _create(self, spec: VmmSpec, *, lasting: bool) -> FirecrackerHandle:
        files = VmFiles(spec.jail_dir, spec.vm_id, "firecracker")
        made = _Made()
        step = Step.JAIL_PREPARE
        try:
            await self._steps.reach(step, spec.vm_id)
            binaries = find_binaries()
            keeper = await build_keeper(self._guest_dir)
            seal = await sealed_firecracker(self._guest_dir)
            files = VmFiles(spec.jail_dir, spec.vm_id, seal.name)
            await self._lay_out(spec, files, binaries.firecracker)
            step = Step.VMM_CONFIGURE
            await self._steps.reach(step, spec.vm_id)
            files.write_config(spec)
            step = Step.VMM_SPAWN
            await self._steps.reach(step, spec.vm_id)
            made.drains = Drains(files)
            made.control = ControlListener()
            await made.control.open(files.control, spec.uid, spec.gid)
            made.keeper = _spawn(spec, files, keeper, replace(binaries, firecracker=seal))
            step = Step.VMM_CONNECT
            await self._steps.reach(step, spec.vm_id)
            made.api = await self._connect(files, made.keeper)
            version = await _configure(made.api, spec)
            evidence = _evidence(spec, files, made.keeper, version)
            links = Links(api=made.api, drains=made.drains, control=made.control)
            return self._handle(evidence, files, made.keeper, links)
        except BaseException as error:
            if made.drains is not None:
                made.drains.drain()
            raised = _as_driver_error(step, error, files)
            await _undo(files, made, lasting=lasting)
            if raised is error:
                raise
            raise raised from error

    async def _lay_out(self, spec: VmmSpec, files: VmFiles, firecracker: Path) -> None:
        kernel = await asyncio.to_thread(unpacked, spec.kernel_path, self._elf_dir)
        if spec.scratch_bytes:
            await make_scratch(files.scratch, spec.scratch_bytes, spec.uid, spec.gid)
        await asyncio.to_thread(files.lay_out, spec, kernel, firecracker)

    async def _connect(self, files: VmFiles, keeper: VmmProcess) -> Api:
        """Connect to the API, or find out that Firecracker ended instead.

        Raises:
            ApiError: it ended, or does not answer.
        """
        deadline_ns = self._clock.monotonic_ns() + int(CONNECT_SECONDS * 1e9)
        while not keeper.ended:
            # The jailer writes down who Firecracker is after it has started it.
            if _pid_in(files) is not None:
                with contextlib.suppress(OSError):
                    return await Api.open(files.api)
            if self._clock.monotonic_ns() > deadline_ns:
                raise ApiError("its API did not come up")
            await self._clock.sleep(_CONNECT_PERIOD_SECONDS)
        raise ApiError("it ended before it answered")

    def _handle(
        self, evidence: Evidence, files: VmFiles, keeper: VmmProcess, links: Links
    ) -> FirecrackerHandle:
        return FirecrackerHandle(
            evidence=evidence,
            files=files,
            keeper=keeper,
            links=links,
            clock=self._clock,
            steps=self._steps,
        )

    async def adopt(self, evidence: Evidence) -> FirecrackerHandle | None:
        """See `Driver`."""
        keeper = await take_over(evidence)
        if keeper is None:
            return None
        files = _files_of(evidence)
        made = _Made()
        try:
            made.drains = Drains(files)
            made.control = ControlListener()
            await made.control.open(files.control, *_owner(files))
            made.api = await Api.open(files.api)
            # One that was paused by a signal does not answer, and need not.
            if not is_stopped(evidence.pid):
                await made.api.version()
        except (ApiError, OSError) as error:
            await made.close()
            ended = keeper.ended or not is_alive(evidence)
            keeper.close()
            if ended:
                return None
            raise DriverError(
                Step.VMM_CONNECT,
                "Firecracker runs, but its API does not answer.",
                detail=str(error),
                console_tail=tail(files.console),
            ) from error
        links = Links(api=made.api, drains=made.drains, control=made.control)
        return self._handle(evidence, files, keeper, links)

    async def post_mortem(self, evidence: Evidence) -> ExitReport:
        """See `Driver`."""
        files = _files_of(evidence)
        return explain(
            collect(
                vmm="Firecracker",
                status=None,
                killed=False,
                last_word=None,
                console_path=files.console,
                errors_path=files.errors,
                tale=tale,
            )
        )

    async def destroy(self, jail_dir: Path, evidence: Evidence | None) -> None:
        """See `Driver`."""
        vm_id = "" if evidence is None else evidence.vm_id
        files = VmFiles(jail_dir, vm_id, "firecracker")
        await end_all(files.console, evidence)
        await asyncio.to_thread(files.remove)


_CAPABILITIES = Capabilities(
    pause=True,
    graceful_shutdown=True,
    block_counters=True,
    # Versions before 1.17 do not; the driver unpacks it for them.
    boots_bzimage=True,
    max_vcpus=MAX_VCPUS,
    min_memory_bytes=MIN_MEMORY_BYTES,
    memory_overhead_bytes=OVERHEAD_BYTES,
    rate_limits=True,
    scratch_disk=True,
    image_init=True,
)


def _files_of(evidence: Evidence) -> VmFiles:
    program = evidence.details.get(_PROGRAM, "firecracker")
    return VmFiles(evidence.jail_dir, evidence.vm_id, program)


def _owner(files: VmFiles) -> tuple[int, int]:
    """Whose the VM's chroot is: the jailer gave it to the VM's user."""
    status = files.root.stat()
    return status.st_uid, status.st_gid


def _spawn(spec: VmmSpec, files: VmFiles, keeper: Path, binaries: Binaries) -> VmmProcess:
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8")
    cgroup = cgroup_arguments(spec.cgroup_join_paths, mounts)
    kept = Kept(
        cgroup_join_paths=spec.cgroup_join_paths,
        # The jailer joins it.
        netns_path=None,
        tap=None,
        uid=spec.uid,
        gid=spec.gid,
        console_path=files.console,
        console_max_bytes=spec.console_max_bytes,
        errors_path=files.errors,
        orphans=True,
    )
    program = jailer_argv(spec, files, binaries, cgroup=cgroup)
    argv = keeper_argv(keeper, kept, program)
    return watch_keeper(spawn_keeper(argv, errors_path=files.errors, descriptors={}))


async def _configure(api: Api, spec: VmmSpec) -> str:
    """Tell Firecracker of its VM; answers its version.

    Raises:
        ApiError: it refused something; says what.
    """
    version = await api.version()
    for path, body in configuration(spec, version):
        await api.put(path, body)
    return ".".join(map(str, version))


def _pid_in(files: VmFiles) -> int | None:
    """What the jailer wrote down; None if it has not yet."""
    try:
        return int(files.pid.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _evidence(spec: VmmSpec, files: VmFiles, keeper: VmmProcess, version: str) -> Evidence:
    """Who Firecracker is.

    Raises:
        ApiError: it ended meanwhile.
    """
    pid = _pid_in(files)
    ticks = None if pid is None else start_ticks(pid)
    if pid is None or ticks is None:
        raise ApiError("it ended while it was being configured")
    details = {_PROGRAM: files.program, VERSION: version}
    if spec.guest.image_init:
        details[IMAGE_INIT] = "1"
    return Evidence(
        kind=DriverKind.FIRECRACKER,
        vm_id=spec.vm_id,
        pid=pid,
        pid_start_ticks=ticks,
        boot_id=boot_id(),
        jail_dir=spec.jail_dir,
        details={**keeper_details(keeper), **details},
    )


def _as_driver_error(step: Step, error: BaseException, files: VmFiles) -> BaseException:
    """The error as the interface promises it; others, such as a cancellation, as they are."""
    complaints = tail(files.errors)
    if isinstance(error, ConfigError | KernelError):
        return DriverError(step, str(error))
    if isinstance(error, IronError):
        return DriverError(step, error.message, detail=error.hint)
    if isinstance(error, ApiError | OSError):
        why = f": {complaints[-1]}" if complaints else f": {error}."
        return DriverError(
            step,
            f"Firecracker could not be started{why}",
            detail="\n".join([repr(error), *complaints]),
            console_tail=tail(files.console),
        )
    return error


async def _undo(files: VmFiles, made: _Made, *, lasting: bool) -> None:
    """Take back all that a failed `create` made, even while it is being cancelled."""
    if made.keeper is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(made.keeper.pid, signal.SIGKILL)
        await made.keeper.wait()
        made.keeper.close()
        # The keeper may end before what it kept does.
        await end_all(files.console, None)
    await made.close()
    await asyncio.to_thread(files.remove, but=files.lasting if lasting else frozenset())
