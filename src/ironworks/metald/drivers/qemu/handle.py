"""One QEMU that runs."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

from ironworks.metald.drivers.driver import (
    BlockCounters,
    DriverError,
    Evidence,
    ExitReport,
    GuestEndedError,
    GuestMemory,
)
from ironworks.metald.drivers.processes import VmmProcess, boot_id, tail
from ironworks.metald.drivers.qemu.files import VmFiles
from ironworks.metald.drivers.qemu.qmp import Monitor, MonitorError
from ironworks.metald.drivers.qemu.report import (
    collect,
    explain,
    read_status_file,
    vmm_status,
)
from ironworks.metald.guest.control import ControlChannel
from ironworks.metald.steps import Step, Steps
from ironworks.runtime.clock import Clock
from ironworks.runtime.tasks import Tasks

MEMORY_SECONDS = 5.0
END_SECONDS = 5.0
"""A keeper ends with its VMM; one that does not within this time is killed too."""


class QemuHandle:
    """See `driver.Handle`."""

    def __init__(
        self,
        *,
        evidence: Evidence,
        keeper: VmmProcess,
        monitor: Monitor,
        control: ControlChannel,
        clock: Clock,
        steps: Steps,
    ) -> None:
        """Steer the QEMU that `keeper` keeps."""
        self._evidence = evidence
        self._files = VmFiles(evidence.jail_dir)
        self._keeper = keeper
        self._monitor = monitor
        self._control = control
        self._clock = clock
        self._steps = steps
        self._killed = False

    @property
    def evidence(self) -> Evidence:
        """See `Handle`."""
        return self._evidence

    @property
    def console_path(self) -> Path:
        """See `Handle`."""
        return self._files.console

    async def boot(self) -> None:
        """See `Handle`."""
        await self._steps.reach(Step.GUEST_START, self._evidence.vm_id)
        await self._command(Step.GUEST_START, "cont", "The guest could not be started.")

    async def wait_ready(self) -> None:
        """See `Handle`."""
        await self._steps.reach(Step.GUEST_READY, self._evidence.vm_id)
        async with Tasks() as tasks:
            ready = tasks.start(self._control.ready.wait(), name="guest ready")
            ended = tasks.start(self._ended(), name="vmm end")
            await asyncio.wait({ready, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                raise GuestEndedError(self._report())

    async def pause(self) -> None:
        """See `Handle`."""
        await self._steps.reach(Step.GUEST_PAUSE, self._evidence.vm_id)
        await self._command(Step.GUEST_PAUSE, "stop", "The guest could not be paused.")

    async def resume(self) -> None:
        """See `Handle`."""
        await self._steps.reach(Step.GUEST_RESUME, self._evidence.vm_id)
        await self._command(Step.GUEST_RESUME, "cont", "The guest could not be resumed.")
        self._control.send(f"clock {self._clock.now_ns()}")

    async def shutdown(self) -> None:
        """See `Handle`."""
        await self._steps.reach(Step.GUEST_SHUTDOWN, self._evidence.vm_id)
        if self._keeper.ended:
            return
        if not self._control.connected:
            raise DriverError(
                Step.GUEST_SHUTDOWN,
                "The guest cannot be asked to stop: its control channel is closed.",
            )
        self._control.send("stop")

    async def kill(self) -> None:
        """See `Handle`."""
        await self._steps.reach(Step.VMM_KILL, self._evidence.vm_id)
        self._killed = self._killed or not self._keeper.ended
        await end_vmm(self._evidence, self._keeper)

    async def wait(self) -> ExitReport:
        """See `Handle`."""
        await self._ended()
        return self._report()

    async def block_counters(self) -> BlockCounters:
        """See `Handle`."""
        try:
            return await self._monitor.block_counters()
        except MonitorError as error:
            raise DriverError(
                Step.METERING_ATTACH, "QEMU does not tell its disks' counters.", detail=str(error)
            ) from error

    async def guest_memory(self) -> GuestMemory:
        """See `Handle`."""
        return await ask_memory(self._control)

    async def close(self) -> None:
        """See `Handle`."""
        self._control.close()
        self._keeper.close()
        await self._monitor.close()
        await self._control.wait_closed()

    async def _ended(self) -> None:
        """Wait until nothing of the VM runs: one that lost its keeper is ended here."""
        await self._keeper.wait()
        await end_vmm(self._evidence, None)

    async def _command(self, step: Step, command: str, sentence: str) -> None:
        try:
            await self._monitor.execute(command)
        except MonitorError as error:
            raise DriverError(
                step, sentence, detail=str(error), console_tail=tail(self._files.console)
            ) from error

    def _report(self) -> ExitReport:
        status = self._keeper.status
        if status is None:
            status = read_status_file(self._files.status)[1]
        return explain(
            collect(
                status=vmm_status(status),
                killed=self._killed,
                last_word=self._control.last_word,
                console_path=self._files.console,
                errors_path=self._files.errors,
            )
        )


async def ask_memory(control: ControlChannel) -> GuestMemory:
    """See `Handle.guest_memory`."""
    try:
        async with asyncio.timeout(MEMORY_SECONDS):
            memory = await control.memory()
    except (TimeoutError, ConnectionError) as error:
        raise DriverError(
            Step.METERING_ATTACH, "The guest does not tell its memory.", detail=repr(error)
        ) from error
    return GuestMemory(total_bytes=memory.total_bytes, available_bytes=memory.available_bytes)


async def end_vmm(evidence: Evidence, keeper: VmmProcess | None) -> None:
    """Kill QEMU, let its keeper read the last of its output, and wait until both are gone."""
    vmm = None
    if evidence.boot_id == boot_id():
        vmm = VmmProcess.adopt(evidence.pid, evidence.pid_start_ticks)
    if vmm is not None:
        try:
            await vmm.kill()
        finally:
            vmm.close()
    if keeper is None:
        return
    try:
        async with asyncio.timeout(END_SECONDS):
            await keeper.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(keeper.pid, signal.SIGKILL)
        await keeper.wait()
