"""One Firecracker that runs."""

import asyncio
import os
import signal
from dataclasses import dataclass
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
from ironworks.metald.drivers.firecracker.api import Api, ApiError, Json, parse_version
from ironworks.metald.drivers.firecracker.channel import ControlListener
from ironworks.metald.drivers.firecracker.fifo import DrainedFifo
from ironworks.metald.drivers.firecracker.files import VmFiles
from ironworks.metald.drivers.firecracker.log import BoundedLog
from ironworks.metald.drivers.firecracker.machine import pauses_by_signal
from ironworks.metald.drivers.firecracker.metrics import Counters, CountersFile, MetricsReader
from ironworks.metald.drivers.firecracker.status import tale, vmm_status
from ironworks.metald.drivers.kept import ask_memory, end_vmm
from ironworks.metald.drivers.processes import VmmProcess, is_alive, is_stopped, tail
from ironworks.metald.drivers.report import collect, explain
from ironworks.metald.steps import Step, Steps
from ironworks.runtime.clock import Clock
from ironworks.runtime.tasks import Tasks

ATTACH_SECONDS = 3.0
"""How long a guest may take to connect again to a metald that has just adopted it."""
STOP_SECONDS = 5.0
"""A signal is obeyed within microseconds; a host under load may take longer."""
_STOP_PERIOD_SECONDS = 0.001
VERSION, IMAGE_INIT = "version", "image_init"
"""In `Evidence.details`."""
_FRESH = "Not started"
_NO_START = "The guest could not be started."
_NOT_STARTED = "microVM"


class Drains:
    """Reads the log and the metrics of one Firecracker for as long as it is open."""

    def __init__(self, files: VmFiles) -> None:
        """Open both FIFOs.

        Raises:
            OSError: one is gone.
        """
        self._file = CountersFile(files.counters)
        self._reader = MetricsReader(self._file.read())
        self._log = BoundedLog(files.errors)
        self._fifos: list[DrainedFifo] = []
        try:
            self._fifos.append(DrainedFifo(files.metrics, self._take_metrics))
            self._fifos.append(DrainedFifo(files.log, self._log.write))
        except BaseException:
            self.close()
            raise

    def _take_metrics(self, data: bytes) -> None:
        before = self._reader.lines
        self._reader.feed(data)
        if self._reader.lines != before:
            self._file.write(self._reader.counters)

    @property
    def counters(self) -> Counters:
        """What has been counted since the VMM started."""
        return self._reader.counters

    @property
    def lines(self) -> int:
        """Lines of metrics that were read."""
        return self._reader.lines

    @property
    def torn(self) -> int:
        """Lines of metrics of which something was lost."""
        return self._reader.torn

    def drain(self) -> None:
        """Take what is there now."""
        for fifo in self._fifos:
            fifo.drain()

    def close(self) -> None:
        """Let go of all files."""
        for fifo in self._fifos:
            fifo.close()
        self._log.close()
        self._file.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """What a metald holds of a Firecracker besides its process."""

    api: Api
    drains: Drains
    control: ControlListener

    async def close(self) -> None:
        """Let go of all of it."""
        self.drains.close()
        await self.control.close()
        await self.api.close()


class FirecrackerHandle:
    """See `driver.Handle`."""

    def __init__(
        self,
        *,
        evidence: Evidence,
        files: VmFiles,
        keeper: VmmProcess,
        links: Links,
        clock: Clock,
        steps: Steps,
    ) -> None:
        """Steer the Firecracker that `keeper` keeps."""
        self._evidence = evidence
        self._files = files
        self._keeper = keeper
        self._links = links
        self._clock = clock
        self._steps = steps
        self._killed = False
        self._flushable = False

    @property
    def evidence(self) -> Evidence:
        """See `Handle`."""
        return self._evidence

    @property
    def console_path(self) -> Path:
        """See `Handle`."""
        return self._files.console

    @property
    def counters(self) -> Counters:
        """Disks' and network's counters as they were last flushed."""
        return self._links.drains.counters

    @property
    def torn_lines(self) -> int:
        """Lines of metrics of which something was lost since this handle was made."""
        return self._links.drains.torn

    async def boot(self) -> None:
        """See `Handle`."""
        await self._steps.reach(Step.GUEST_START, self._evidence.vm_id)
        try:
            started = (await self._links.api.get("/")).get("state") != _FRESH
        except ApiError as error:
            raise self._error(Step.GUEST_START, _NO_START, error) from error
        if not started:
            await self._do(Step.GUEST_START, "InstanceStart", sentence=_NO_START)

    async def wait_ready(self) -> None:
        """See `Handle`."""
        await self._steps.reach(Step.GUEST_READY, self._evidence.vm_id)
        async with Tasks() as tasks:
            ready = tasks.start(self._links.control.channel.ready.wait(), name="guest ready")
            ended = tasks.start(self._ended(), name="vmm end")
            await asyncio.wait({ready, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                raise GuestEndedError(self._report())

    async def pause(self) -> None:
        """See `Handle`."""
        await self._steps.reach(Step.GUEST_PAUSE, self._evidence.vm_id)
        if self._by_signal:
            # All its threads stand still then, those of the vCPUs too; its API does not answer.
            await self._stand_still()
            return
        await self._set_state(Step.GUEST_PAUSE, "Paused", "The guest could not be paused.")

    async def resume(self) -> None:
        """See `Handle`."""
        await self._steps.reach(Step.GUEST_RESUME, self._evidence.vm_id)
        if self._by_signal:
            self._signal(Step.GUEST_RESUME, signal.SIGCONT, "The guest could not be resumed.")
        else:
            await self._set_state(Step.GUEST_RESUME, "Resumed", "The guest could not be resumed.")
        self._links.control.channel.send(f"clock {self._clock.now_ns()}")

    async def stands_still(self) -> bool:
        """See `Handle`."""
        if is_stopped(self._evidence.pid):
            return True
        try:
            return (await self._links.api.get("/")).get("state") == "Paused"
        except ApiError as error:
            raise DriverError(Step.GUEST_PAUSE, DEAF, detail=str(error)) from error

    async def shutdown(self) -> None:
        """See `Handle`."""
        await self._steps.reach(Step.GUEST_SHUTDOWN, self._evidence.vm_id)
        if self._keeper.ended:
            return
        if not self._image_init and await self._attached():
            self._links.control.channel.send("stop")
            return
        # An image's own init, or a guest that was cut off for flooding us: the keyboard is left.
        try:
            await self._do(
                Step.GUEST_SHUTDOWN, "SendCtrlAltDel", sentence="The guest cannot be asked to stop."
            )
        except DriverError:
            # One that ended meanwhile has no need to be asked.
            if is_alive(self._evidence):
                raise

    @property
    def _by_signal(self) -> bool:
        version = parse_version(self._evidence.details.get(VERSION, "0.0.0"))
        return pauses_by_signal(version)

    async def _stand_still(self) -> None:
        sentence = "The guest could not be paused."
        self._signal(Step.GUEST_PAUSE, signal.SIGSTOP, sentence)
        deadline_ns = self._clock.monotonic_ns() + int(STOP_SECONDS * 1e9)
        while not is_stopped(self._evidence.pid):
            if self._keeper.ended or self._clock.monotonic_ns() > deadline_ns:
                raise DriverError(Step.GUEST_PAUSE, sentence, detail="it does not stop")
            await self._clock.sleep(_STOP_PERIOD_SECONDS)

    def _signal(self, step: Step, number: signal.Signals, sentence: str) -> None:
        if not is_alive(self._evidence):
            raise DriverError(step, sentence, detail="it has ended")
        os.kill(self._evidence.pid, number)

    @property
    def _image_init(self) -> bool:
        return self._evidence.details.get(IMAGE_INIT) == "1"

    async def _attached(self) -> bool:
        """Whether init is connected; one that has been adopted is given time to come back."""
        control = self._links.control
        if not control.attached.is_set():
            try:
                async with asyncio.timeout(ATTACH_SECONDS):
                    await control.attached.wait()
            except TimeoutError:
                return False
        return control.channel.connected

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
        if self._by_signal and is_stopped(self._evidence.pid):
            # Nothing changes meanwhile, and there is nobody who would answer.
            return self._links.drains.counters.block
        try:
            await self._links.api.put("/actions", {"action_type": "FlushMetrics"})
        except ApiError as error:
            # Before the boot it refuses, and everything is zero: nothing has been read yet.
            if _NOT_STARTED not in str(error) or self._links.drains.lines:
                raise DriverError(
                    Step.METERING_ATTACH,
                    "Firecracker does not tell its disks' counters.",
                    detail=str(error),
                ) from error
        # It has written its line by the time it answers.
        self._links.drains.drain()
        return self._links.drains.counters.block

    async def guest_memory(self) -> GuestMemory:
        """See `Handle`."""
        return await ask_memory(self._links.control.channel)

    async def close(self) -> None:
        """See `Handle`."""
        self._keeper.close()
        await self._links.close()

    async def _ended(self) -> None:
        """Wait until nothing of the VM runs: one that lost its keeper is ended here."""
        await self._keeper.wait()
        await end_vmm(self._evidence, None)

    async def _do(self, step: Step, action: str, *, sentence: str) -> None:
        try:
            await self._links.api.put("/actions", {"action_type": action})
        except ApiError as error:
            raise self._error(step, sentence, error) from error

    async def _set_state(self, step: Step, state: str, sentence: str) -> None:
        body: Json = {"state": state}
        try:
            await self._links.api.patch("/vm", body)
        except ApiError as error:
            raise self._error(step, sentence, error) from error

    def _error(self, step: Step, sentence: str, error: ApiError) -> DriverError:
        return DriverError(
            step, sentence, detail=str(error), console_tail=tail(self._files.console)
        )

    def _report(self) -> ExitReport:
        self._links.drains.drain()
        return explain(
            collect(
                vmm="Firecracker",
                status=vmm_status(self._keeper.status),
                killed=self._killed,
                last_word=self._links.control.channel.last_word,
                console_path=self._files.console,
                errors_path=self._files.errors,
                tale=tale,
            )
        )
