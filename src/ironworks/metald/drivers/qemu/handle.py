"""One QEMU that runs."""

import asyncio
from pathlib import Path

from ironworks.metald.drivers.driver import (
    DEAF,
    BlockCounters,
    DriverError,
    Evidence,
    ExitReport,
    GuestEndedError,
    GuestMemory,
)
from ironworks.metald.drivers.kept import ask_memory, end_vmm
from ironworks.metald.drivers.processes import VmmProcess, tail
from ironworks.metald.drivers.qemu.files import VmFiles
from ironworks.metald.drivers.qemu.qmp import Monitor, MonitorError
from ironworks.metald.drivers.qemu.status import read_status_file, vmm_status
from ironworks.metald.drivers.report import collect, explain
from ironworks.metald.drivers.sockets import connect
from ironworks.metald.guest.control import ControlChannel
from ironworks.metald.steps import Step, Steps
from ironworks.runtime.clock import Clock
from ironworks.runtime.tasks import Tasks

IMAGE_INIT = "image_init"
"""In `Evidence.details`: whether the image's own init is process 1."""


async def open_control(path: Path) -> ControlChannel:
    """Connect to a guest's init.

    Raises:
        OSError: QEMU is gone.
    """
    loop = asyncio.get_running_loop()
    _, channel = await loop.create_unix_connection(ControlChannel, sock=connect(path))
    return channel


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

    async def stands_still(self) -> bool:
        """See `Handle`."""
        try:
            return await self._monitor.stands_still()
        except MonitorError as error:
            raise DriverError(Step.GUEST_PAUSE, DEAF, detail=str(error)) from error

    async def shutdown(self) -> None:
        """See `Handle`."""
        await self._steps.reach(Step.GUEST_SHUTDOWN, self._evidence.vm_id)
        if self._keeper.ended:
            return
        if self._evidence.details.get(IMAGE_INIT):
            # It has no channel to the host: the power button.
            await self._command(
                Step.GUEST_SHUTDOWN, "system_powerdown", "The guest cannot be asked to stop."
            )
            return
        if not self._control.connected:
            # A guest that was cut off for flooding us may still hear.
            await self._control.wait_closed()
            last_word = self._control.last_word
            try:
                self._control = await open_control(self._files.control)
                self._control.last_word = last_word
            except OSError as error:
                raise self._error(
                    Step.GUEST_SHUTDOWN, "The guest cannot be asked to stop.", error
                ) from error
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
            raise self._error(step, sentence, error) from error

    def _error(self, step: Step, sentence: str, error: Exception) -> DriverError:
        return DriverError(
            step, sentence, detail=str(error), console_tail=tail(self._files.console)
        )

    def _report(self) -> ExitReport:
        status = self._keeper.status
        if status is None:
            status = read_status_file(self._files.status)[1]
        return explain(
            collect(
                vmm="QEMU",
                status=vmm_status(status),
                killed=self._killed,
                last_word=self._control.last_word,
                console_path=self._files.console,
                errors_path=self._files.errors,
            )
        )
