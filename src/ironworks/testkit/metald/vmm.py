"""A driver of VMMs that are not there."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from ironworks.metald.app.timing import TimedSteps
from ironworks.metald.drivers.driver import (
    Accel,
    BlockCounters,
    Capabilities,
    DriverError,
    DriverKind,
    Evidence,
    ExitKind,
    ExitReport,
    GuestEndedError,
    GuestMemory,
    Probe,
    VmmSpec,
)
from ironworks.metald.steps import Step
from ironworks.model.units import MIB
from ironworks.runtime.clock import Clock
from ironworks.runtime.tasks import Tasks


@dataclass(slots=True, kw_only=True)
class MemoryVmm:
    """A VMM that is not there: what a test does to it and sees of it."""

    spec: VmmSpec
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    report: ExitReport | None = None
    obeys_shutdown: bool = True
    paused: bool = False

    def end(self, report: ExitReport) -> None:
        """Let it end."""
        if self.report is None:
            self.report = report
        self.ended.set()


class MemoryHandle:
    """A `Handle` on a `MemoryVmm`."""

    def __init__(self, driver: MemoryDriver, vmm: MemoryVmm, evidence: Evidence) -> None:
        self._driver = driver
        self._vmm = vmm
        self._evidence = evidence

    @property
    def evidence(self) -> Evidence:
        """See `Handle`."""
        return self._evidence

    @property
    def console_path(self) -> Path:
        """See `Handle`."""
        return self._evidence.jail_dir / "console.log"

    async def boot(self) -> None:
        """See `Handle`."""
        await self._driver.reach(Step.GUEST_START, self._vmm.spec.vm_id)
        with self.console_path.open("a", encoding="utf-8") as console:
            console.write("booting\n")
        if self._driver.ready_at_once:
            self._vmm.ready.set()

    async def wait_ready(self) -> None:
        """See `Handle`."""
        await self._driver.reach(Step.GUEST_READY, self._vmm.spec.vm_id)
        async with Tasks() as tasks:
            ready = tasks.start(self._vmm.ready.wait(), name="ready")
            ended = tasks.start(self._vmm.ended.wait(), name="ended")
            await asyncio.wait({ready, ended}, return_when=asyncio.FIRST_COMPLETED)
        if self._vmm.report is not None:
            raise GuestEndedError(self._vmm.report)

    async def pause(self) -> None:
        """See `Handle`."""
        await self._driver.reach(Step.GUEST_PAUSE, self._vmm.spec.vm_id)
        self._vmm.paused = True

    async def resume(self) -> None:
        """See `Handle`."""
        await self._driver.reach(Step.GUEST_RESUME, self._vmm.spec.vm_id)
        self._vmm.paused = False

    async def stands_still(self) -> bool:
        """See `Handle`."""
        return self._vmm.paused

    async def shutdown(self) -> None:
        """See `Handle`."""
        await self._driver.reach(Step.GUEST_SHUTDOWN, self._vmm.spec.vm_id)
        if self._vmm.obeys_shutdown and not self._vmm.paused:
            self._vmm.end(
                ExitReport(
                    kind=ExitKind.WORKLOAD,
                    sentence="The workload ended with status 0.",
                    workload_status=0,
                )
            )

    async def kill(self) -> None:
        """See `Handle`."""
        self._vmm.end(ExitReport(kind=ExitKind.KILLED, sentence="The VMM was ended by force."))

    async def wait(self) -> ExitReport:
        """See `Handle`."""
        await self._vmm.ended.wait()
        return self._vmm.report or ExitReport(kind=ExitKind.LOST, sentence="Lost.")

    async def block_counters(self) -> BlockCounters:
        """See `Handle`."""
        return BlockCounters(read_bytes=1, written_bytes=2, read_operations=3, write_operations=4)

    async def guest_memory(self) -> GuestMemory:
        """See `Handle`."""
        size_bytes = self._vmm.spec.memory_bytes
        return GuestMemory(total_bytes=size_bytes, available_bytes=size_bytes)

    async def close(self) -> None:
        """See `Handle`."""


class MemoryDriver:
    """A `Driver` of VMMs that are not there; `vmms` outlives metald, as processes do."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.steps: TimedSteps | None = None
        self.vmms: dict[str, MemoryVmm] = {}
        self.ready_at_once = True
        self.needs_kernel = True
        self.deaf = False
        self._pids = 100

    @property
    def kind(self) -> DriverKind:
        """See `Driver`."""
        return DriverKind.FAKE

    async def reach(self, step: Step, vm_id: str) -> None:
        """Tell the steps."""
        if self.steps is not None:
            await self.steps.reach(step, vm_id)

    async def probe(self) -> Probe:
        """See `Driver`."""
        return Probe(
            kind=DriverKind.FAKE,
            available=True,
            accel=Accel.NONE,
            version="1",
            sentence="In memory.",
            capabilities=Capabilities(
                pause=True,
                graceful_shutdown=True,
                block_counters=True,
                boots_bzimage=True,
                max_vcpus=32,
                memory_overhead_bytes=16 * MIB,
                needs_kernel=self.needs_kernel,
            ),
        )

    async def create(self, spec: VmmSpec) -> MemoryHandle:
        """See `Driver`."""
        for step in (Step.JAIL_PREPARE, Step.VMM_CONFIGURE, Step.VMM_SPAWN, Step.VMM_CONNECT):
            await self.reach(step, spec.vm_id)
        vmm = MemoryVmm(spec=spec)
        self.vmms[spec.vm_id] = vmm
        self._pids += 1
        evidence = Evidence(
            kind=self.kind,
            vm_id=spec.vm_id,
            pid=self._pids,
            pid_start_ticks=1,
            boot_id="boot",
            jail_dir=spec.jail_dir,
        )
        return MemoryHandle(self, vmm, evidence)

    async def adopt(self, evidence: Evidence) -> MemoryHandle | None:
        """See `Driver`."""
        vmm = self.vmms.get(evidence.vm_id)
        if vmm is None or vmm.ended.is_set():
            return None
        if self.deaf:
            raise DriverError(Step.VMM_CONNECT, "Its socket is gone.")
        return MemoryHandle(self, vmm, evidence)

    async def post_mortem(self, evidence: Evidence) -> ExitReport:
        """See `Driver`."""
        vmm = self.vmms.get(evidence.vm_id)
        if vmm is not None and vmm.report is not None:
            return vmm.report
        return ExitReport(kind=ExitKind.LOST, sentence="How it ended is not known.")

    async def reboot(self, spec: VmmSpec, evidence: Evidence) -> MemoryHandle:
        """See `Driver`."""
        await self.destroy(spec.jail_dir, evidence)
        return await self.create(spec)

    async def destroy(self, jail_dir: Path, evidence: Evidence | None) -> None:
        """See `Driver`."""
        del evidence
        vmm = self.vmms.get(jail_dir.name)
        if vmm is not None:
            vmm.end(ExitReport(kind=ExitKind.KILLED, sentence="The VMM was ended by force."))

    @property
    def alive(self) -> frozenset[str]:
        """VMs whose VMM lives."""
        return frozenset(vm_id for vm_id, vmm in self.vmms.items() if not vmm.ended.is_set())
