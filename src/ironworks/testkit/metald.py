"""metald in a test: its use cases on a real store, with a machine in memory or the real one."""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ironworks.metald import store
from ironworks.metald.app.context import Context
from ironworks.metald.app.timing import TimedSteps
from ironworks.metald.assets.lessor import Leased, LeasedAsset
from ironworks.metald.cgroup.groups import Group, GroupLimits, HostGroups, read_layout
from ironworks.metald.decide import ImageDefaults
from ironworks.metald.drivers.driver import (
    Accel,
    BlockCounters,
    Capabilities,
    Driver,
    DriverError,
    DriverKind,
    Evidence,
    ExitKind,
    ExitReport,
    GuestEndedError,
    Probe,
    VmmSpec,
)
from ironworks.metald.drivers.fake import FakeDriver
from ironworks.metald.jail_directories import JailDirectories
from ironworks.metald.network.naming import SlotNames, names_of
from ironworks.metald.network.slots import HostNetwork, SlotTakenError
from ironworks.metald.sampling import VmSource
from ironworks.metald.settings import MetaldSettings
from ironworks.metald.steps import Step
from ironworks.metald.types import Host, HostState, Limits, Resources, VmSpec, Workload
from ironworks.model.errors import NotFound
from ironworks.model.ids import derived_id
from ironworks.model.units import GIB, MIB
from ironworks.runtime.clock import Clock, SystemClock, SystemEntropy
from ironworks.runtime.settings import tag_of
from ironworks.runtime.tasks import Tasks
from ironworks.storage.migrate import upgrade
from ironworks.storage.sql import Database, sqlite_url

TENANT = derived_id("tnt", "one")
OTHER_TENANT = derived_id("tnt", "two")
ROOTFS = derived_id("ast", "rootfs")
KERNEL = derived_id("ast", "kernel")
INITRD = derived_id("ast", "initrd")
LIMITS = Limits(
    capacity=Resources(vcpus=16, memory_bytes=8 * GIB, vms=100),
    largest=Resources(vcpus=4, memory_bytes=4 * GIB, vms=1),
)


def vm_spec(**changes: Any) -> VmSpec:
    """A small specification that every driver takes."""
    spec = VmSpec(
        name="web",
        vcpus=1,
        memory_bytes=64 * MIB,
        rootfs_asset_id=ROOTFS,
        workload=Workload(argv=("/bin/server",)),
        cpu_weight=100,
    )
    return replace(spec, **changes)


class MemoryLessor:
    """A `Lessor` whose assets are in memory; `held` is VM id → lease id."""

    def __init__(self) -> None:
        image = ImageDefaults(entrypoint=("/entry",), env=("A=1",))
        self.assets = {
            ROOTFS: LeasedAsset(
                asset_id=ROOTFS,
                kind="rootfs",
                format="squashfs",
                architecture="amd64",
                size_bytes=4,
                image=image,
            ),
            KERNEL: LeasedAsset(
                asset_id=KERNEL, kind="kernel", format="elf", architecture="", size_bytes=4
            ),
            INITRD: LeasedAsset(
                asset_id=INITRD, kind="initrd", format="", architecture="", size_bytes=4
            ),
        }
        self.held: dict[str, str] = {}
        self.lost: set[str] = set()
        self.down: Exception | None = None
        self._count = 0

    def _check(self) -> None:
        if self.down is not None:
            raise self.down

    async def acquire(self, tenant_id: str, vm_id: str, asset_ids: Sequence[str]) -> Leased:
        """See `Lessor`."""
        del tenant_id
        self._check()
        for asset_id in asset_ids:
            if asset_id not in self.assets:
                raise NotFound(f"Asset {asset_id} is not known here.")
        self._count += 1
        self.held[vm_id] = derived_id("lse", vm_id, str(self._count))
        return Leased(
            lease_id=self.held[vm_id],
            assets=tuple(self.assets[asset_id] for asset_id in asset_ids),
        )

    async def prepare(
        self, tenant_id: str, lease_id: str, directory: Path, names: Mapping[str, str]
    ) -> None:
        """See `Lessor`."""
        del tenant_id
        self._check()
        if lease_id not in self.held.values():
            raise NotFound(f"Lease {lease_id} is not known here.")
        for name in names.values():
            (directory / name).write_bytes(b"file")

    async def renew(self, lease_ids: Sequence[str]) -> frozenset[str]:
        """See `Lessor`."""
        self._check()
        return frozenset(self.lost.intersection(lease_ids))

    async def release(self, tenant_id: str, vm_id: str) -> None:
        """See `Lessor`."""
        del tenant_id
        self._check()
        self.held.pop(vm_id, None)

    async def register_platform(self, path: Path, kind: str, sha256: str) -> str:
        """See `Lessor`."""
        del path
        self._check()
        return derived_id("ast", kind, sha256)


class MemorySampler:
    """A `Sampler` that remembers; `events` tells in which order."""

    def __init__(self) -> None:
        self.attached: dict[str, VmSource] = {}
        self.events: list[tuple[str, str]] = []

    async def attach(self, vm: VmSource) -> None:
        """See `Sampler`."""
        self.attached[vm.vm_id] = vm
        self.events.append(("attach", vm.vm_id))

    async def detach(self, vm_id: str) -> None:
        """See `Sampler`."""
        if self.attached.pop(vm_id, None) is not None:
            self.events.append(("detach", vm_id))


class MemoryNetwork:
    """A `Network` of names; slots in `foreign` belong to another platform."""

    def __init__(self, tag: str) -> None:
        self._tag = tag
        self.made: set[int] = set()
        self.foreign: set[int] = set()

    def names(self, slot: int) -> SlotNames:
        """See `Network`."""
        return names_of(self._tag, slot)

    async def create(self, slot: int, owner_uid: int) -> SlotNames:
        """See `Network`."""
        del owner_uid
        if slot in self.foreign or slot in self.made:
            raise SlotTakenError(str(slot))
        self.made.add(slot)
        return self.names(slot)

    async def remove(self, slot: int) -> None:
        """See `Network`."""
        self.made.discard(slot)

    async def present(self) -> frozenset[int]:
        """See `Network`."""
        return frozenset(self.made)

    async def drift(self, slot: int) -> tuple[str, ...]:
        """See `Network`."""
        return () if slot in self.made else ("Its network is gone.",)


class MemoryGroups:
    """A `Groups` of names."""

    def __init__(self) -> None:
        self.made: dict[str, GroupLimits] = {}
        self.kills: defaultdict[str, int] = defaultdict(int)

    def group(self, vm_id: str) -> Group:
        """See `Groups`."""
        directory = Path("/nowhere") / vm_id
        return Group(
            directories=(directory,),
            cpu_file=directory / "cpu",
            memory_file=directory / "memory",
            oom_file=directory / "oom",
        )

    async def create(self, vm_id: str, limits: GroupLimits) -> Group:
        """See `Groups`."""
        self.made[vm_id] = limits
        return self.group(vm_id)

    async def remove(self, vm_id: str) -> None:
        """See `Groups`."""
        self.made.pop(vm_id, None)

    async def present(self) -> frozenset[str]:
        """See `Groups`."""
        return frozenset(self.made)

    def missing(self, vm_id: str) -> tuple[str, ...]:
        """See `Groups`."""
        return () if vm_id in self.made else ("Its cgroup is gone.",)

    def oom_kills(self, vm_id: str) -> int:
        """See `Groups`."""
        return self.kills[vm_id]


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


class FailAt:
    """`Steps` that raise at one step, once or always."""

    def __init__(self) -> None:
        self.step: Step | None = None
        self.error: Exception = DriverError(Step.VMM_SPAWN, "It was made to fail.")
        self.seen: list[Step] = []

    async def reach(self, step: Step, vm_id: str) -> None:
        """See `Steps`."""
        del vm_id
        self.seen.append(step)
        if step is self.step:
            raise self.error


@dataclass(slots=True, kw_only=True)
class World:
    """A metald and what is around it."""

    context: Context
    lessor: MemoryLessor
    sampler: MemorySampler
    faults: FailAt
    data_dir: Path

    @property
    def network(self) -> MemoryNetwork:
        """The network, where it is in memory."""
        assert isinstance(self.context.network, MemoryNetwork)  # noqa: S101 - a test's own claim
        return self.context.network

    @property
    def groups(self) -> MemoryGroups:
        """The cgroups, where they are in memory."""
        assert isinstance(self.context.groups, MemoryGroups)  # noqa: S101 - a test's own claim
        return self.context.groups

    @property
    def driver(self) -> MemoryDriver:
        """The driver, where it is in memory."""
        driver = self.context.driver
        assert isinstance(driver, MemoryDriver)  # noqa: S101 - a test's own claim
        return driver

    async def left(self) -> dict[str, object]:
        """Everything of any VM that is on the machine or leased; empty values left out."""
        context = self.context
        everything: dict[str, object] = {
            "networks": await context.network.present(),
            "cgroups": await context.groups.present(),
            "jails": [path.name for path in context.settings.jails_dir.glob("*")],
            "leases": dict(self.lessor.held),
            "sampled": list(self.sampler.attached),
            "handles": list(context.handles),
            "slots": await context.db.read(store.taken_slots),
        }
        if isinstance(context.driver, MemoryDriver):
            everything["vmms"] = context.driver.alive
        return {name: what for name, what in everything.items() if what}


@asynccontextmanager
async def world(
    data_dir: Path,
    *,
    clock: Clock | None = None,
    real: bool = False,
    before: World | None = None,
    limits: Limits = LIMITS,
) -> AsyncGenerator[World]:
    """A metald on `data_dir`; leaving it ends metald and nothing else.

    Args:
        data_dir: Of the test.
        clock: The system's if None.
        real: Use the real network, cgroups and the fake driver (needs root).
        before: An earlier metald on the same directory, whose machine is taken over.
        limits: Capacity of the host.
    """
    clock = clock or SystemClock()
    settings = MetaldSettings(data_dir=data_dir, vm_uid_first=1_200_000)
    database = Database(sqlite_url(settings.own_dir / "metald.db"))
    await asyncio.to_thread(upgrade, database.engine, "ironworks.metald.migrations")
    tag = tag_of(data_dir)
    host = Host(
        host_id=derived_id("hst", str(data_dir)),
        tag=tag,
        state=HostState.ACTIVE,
        reason="",
        generation=1,
        default_kernel_asset_id=KERNEL,
        default_initrd_asset_id=INITRD,
    )
    await database.write(lambda connection: store.write_host(connection, host))
    faults = FailAt()
    steps = TimedSteps(faults, clock)
    lessor = before.lessor if before else MemoryLessor()
    sampler = MemorySampler()
    driver: Driver
    if real:
        driver = FakeDriver(clock, steps)
    else:
        driver = before.driver if before else MemoryDriver(clock)
        driver.steps = steps
    async with Tasks() as tasks:
        context = Context(
            db=database,
            clock=clock,
            entropy=SystemEntropy(),
            tasks=tasks,
            settings=settings,
            limits=limits,
            steps=steps,
            drivers={DriverKind.FAKE: driver},
            probes={DriverKind.FAKE: await driver.probe()},
            chosen=DriverKind.FAKE,
            network=_network(tag, before, real=real),
            groups=_groups(tag, clock, before, real=real),
            jails=(_RealJails if real else _UserJails)(
                settings.jails_dir, settings.consoles_dir, settings.console_max_bytes
            ),
            lessor=lessor,
            sampler=sampler,
            host=host,
            started_at_ns=clock.now_ns(),
        )
        yield World(
            context=context, lessor=lessor, sampler=sampler, faults=faults, data_dir=data_dir
        )
    for handle in context.handles.values():
        await handle.close()
    await asyncio.to_thread(database.close)


_RealJails = JailDirectories


class _UserJails(JailDirectories):
    """Jails of whoever runs the test: not root's, not another group's."""

    async def create(self, vm_id: str, gid: int) -> Path:
        """See `Jails`."""
        return await super().create(vm_id, os.getgid() if os.geteuid() else gid)


def _network(tag: str, before: World | None, *, real: bool) -> HostNetwork | MemoryNetwork:
    if real:
        return HostNetwork(tag)
    return before.network if before else MemoryNetwork(tag)


def _groups(
    tag: str, clock: Clock, before: World | None, *, real: bool
) -> HostGroups | MemoryGroups:
    if real:
        return HostGroups(read_layout(), tag, clock)
    return before.groups if before else MemoryGroups()
