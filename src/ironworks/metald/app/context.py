"""What the use cases of metald work with, and the few things that all of them do."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import structlog
from sqlalchemy import Connection

from ironworks.metald import decide, store
from ironworks.metald.app.operations import Operations
from ironworks.metald.app.timing import TimedSteps
from ironworks.metald.assets.lessor import Lessor
from ironworks.metald.cgroup.groups import Groups
from ironworks.metald.drivers.driver import (
    Driver,
    DriverKind,
    Evidence,
    ExitReport,
    Handle,
    Probe,
)
from ironworks.metald.jail_directories import Jails
from ironworks.metald.network.slots import Network
from ironworks.metald.sampling import Sampler
from ironworks.metald.settings import MetaldSettings
from ironworks.metald.types import Host, Limits, Vm, VmState
from ironworks.model.errors import Internal
from ironworks.runtime.clock import Clock, Entropy
from ironworks.runtime.tasks import Tasks
from ironworks.storage.sql import Database

log = structlog.stdlib.get_logger()


@dataclass(slots=True, kw_only=True)
class Context:
    """Everything that a use case needs, made once by `service`."""

    db: Database
    clock: Clock
    entropy: Entropy
    tasks: Tasks
    settings: MetaldSettings
    limits: Limits
    steps: TimedSteps
    drivers: Mapping[DriverKind, Driver]
    probes: Mapping[DriverKind, Probe]
    chosen: DriverKind
    network: Network
    groups: Groups
    jails: Jails
    lessor: Lessor
    sampler: Sampler
    host: Host
    started_at_ns: int
    operations: Operations = field(init=False)
    handles: dict[str, Handle] = field(default_factory=dict[str, Handle])
    reaping_slots: set[int] = field(default_factory=set[int])
    """Slots that are being removed as leftovers: not to be given to a VM meanwhile."""

    def __post_init__(self) -> None:
        """Make what hangs on the rest."""
        self.operations = Operations(self.tasks)

    @property
    def driver(self) -> Driver:
        """The driver of new VMs."""
        return self.drivers[self.chosen]

    @property
    def probe(self) -> Probe:
        """What the driver of new VMs can do."""
        return self.probes[self.chosen]

    def driver_of(self, evidence: Evidence) -> Driver:
        """The driver that started a VMM."""
        driver = self.drivers.get(evidence.kind)
        if driver is None:
            raise Internal(f"There is no driver {evidence.kind} here any more.")
        return driver

    def uid_of(self, slot: int) -> int:
        """Uid and gid of the VMM in a slot."""
        return self.settings.vm_uid_first + slot

    async def read(self, vm_id: str) -> Vm:
        """A VM as it is now."""
        return await self.db.read(lambda connection: store.read_vm(connection, vm_id))

    async def move(self, vm: Vm, after: VmState, reason: str) -> Vm:
        """Write a transition, durable when this returns."""
        moved, line = decide.transition(vm, after, reason, now_ns=self.clock.now_ns())
        timings = self.steps.take(vm.vm_id)

        def write(connection: Connection) -> None:
            store.update_vm(connection, moved, decided_on=vm.generation, line=line)
            store.write_timings(connection, vm.vm_id, timings)

        await self.db.write(write)
        log.info("vm_state", vm_id=vm.vm_id, state=after.value, reason=reason)
        return moved

    async def amend(self, vm: Vm) -> Vm:
        """Write a change that is no transition; `vm` carries the generation it was decided on."""
        changed = replace(vm, generation=vm.generation + 1)
        await self.db.write(
            lambda connection: store.update_vm(connection, changed, decided_on=vm.generation)
        )
        return changed

    def explain_end(self, vm: Vm, report: ExitReport) -> ExitReport:
        """The report, with what the cgroup knows: a VMM killed for lack of memory."""
        return decide.explain_end(report, oom_kills=self.groups.oom_kills(vm.vm_id))
