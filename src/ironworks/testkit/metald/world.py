"""A whole metald, on a machine in memory or on the real one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from ironworks.metald import store
from ironworks.metald.app.context import Context
from ironworks.metald.app.timing import TimedSteps
from ironworks.metald.cgroup.groups import HostGroups
from ironworks.metald.drivers.driver import (
    Driver,
    DriverKind,
)
from ironworks.metald.drivers.fake import FakeDriver
from ironworks.metald.jail_directories import JailDirectories
from ironworks.metald.network.slots import HostNetwork
from ironworks.metald.settings import MetaldSettings
from ironworks.metald.types import Host, HostState, Limits
from ironworks.model.ids import derived_id
from ironworks.runtime.cgroup_layout import read_layout
from ironworks.runtime.clock import Clock, SystemClock, SystemEntropy
from ironworks.runtime.settings import tag_of
from ironworks.runtime.tasks import Tasks
from ironworks.storage.migrate import upgrade
from ironworks.storage.sql import Database, sqlite_url
from ironworks.testkit.metald.around import (
    FailAt,
    MemoryGroups,
    MemoryLessor,
    MemoryNetwork,
    MemorySampler,
)
from ironworks.testkit.metald.values import INITRD, KERNEL, LIMITS
from ironworks.testkit.metald.vmm import MemoryDriver


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

    async def on_machine(self) -> dict[str, object]:
        """Everything of any VM that is on the machine; empty values left out."""
        context = self.context
        everything: dict[str, object] = {
            "networks": await context.network.present(),
            "cgroups": await context.groups.present(),
            "jails": [path.name for path in context.settings.jails_dir.glob("*")],
        }
        if isinstance(context.driver, MemoryDriver):
            everything["vmms"] = context.driver.alive
        return {name: what for name, what in everything.items() if what}

    async def left(self) -> dict[str, object]:
        """What is on the machine, leased, sampled, held or reserved; empty values left out."""
        held: dict[str, object] = {
            "leases": dict(self.lessor.held),
            "sampled": list(self.sampler.attached),
            "handles": list(self.context.handles),
            "slots": await self.context.db.read(store.taken_slots),
        }
        return await self.on_machine() | {name: what for name, what in held.items() if what}


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
    host = await _host(database, data_dir)
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
            network=_network(host.tag, before, real=real),
            groups=_groups(host.tag, clock, before, real=real),
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
    await _let_go(context)


async def _let_go(context: Context) -> None:
    for handle in context.handles.values():
        await handle.close()
    if isinstance(context.network, HostNetwork):
        context.network.close()
    await asyncio.to_thread(context.db.close)


async def _host(database: Database, data_dir: Path) -> Host:
    """Make the tables and the host's row."""
    await asyncio.to_thread(upgrade, database.engine, "ironworks.metald.migrations")
    host = Host(
        host_id=derived_id("hst", str(data_dir)),
        tag=tag_of(data_dir),
        state=HostState.ACTIVE,
        reason="",
        generation=1,
        default_kernel_asset_id=KERNEL,
        default_initrd_asset_id=INITRD,
    )
    await database.write(lambda connection: store.write_host(connection, host))
    return host


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
