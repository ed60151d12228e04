"""What the use cases of metald work with, and the few things that all of them do."""

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field, replace

import structlog
from sqlalchemy import Connection

from ironworks.metald import decide, store
from ironworks.metald.app.changes import Changes
from ironworks.metald.app.operations import Operations
from ironworks.metald.app.timing import TimedSteps
from ironworks.metald.assets.lessor import Lessor
from ironworks.metald.cgroup.groups import Groups
from ironworks.metald.drivers.driver import (
    Driver,
    DriverError,
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
from ironworks.metald.tables import IDEMPOTENCY
from ironworks.metald.types import Host, Limits, Resources, Transition, Vm, VmState
from ironworks.model.errors import Internal, IronError
from ironworks.runtime.clock import Clock, Entropy
from ironworks.runtime.log import private
from ironworks.runtime.tasks import Tasks
from ironworks.storage import idempotency
from ironworks.storage.sql import Database

log = structlog.stdlib.get_logger()
EXPECTED = (IronError, DriverError, OSError)
"""What a machine, a VMM or another service may do to us; all else is a fault of ours."""


def warn(event: str, error: Exception, **fields: object) -> None:
    """A line of the log about an expected error, with what it has for the log only."""
    hidden = dict[str, object]()
    if isinstance(error, IronError):
        hidden = private(error)
    elif isinstance(error, DriverError) and error.detail:
        hidden = {"detail": error.detail}
    log.warning(event, error=str(error), **fields, **hidden)


async def tried(event: str, work: Awaitable[bool], **fields: object) -> bool:
    """What `work` answers; False, and a line of the log, if it fails as can be expected."""
    try:
        return await work
    except EXPECTED as error:
        warn(event, error, **fields)
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Once:
    """A request that carries an idempotency key: it is kept with the change that it makes."""

    scope: str
    """Tenant and method."""
    key: str
    request: bytes
    """The request without its key."""


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
    changes: Changes = field(init=False)
    handles: dict[str, Handle] = field(default_factory=dict[str, Handle])
    monitors: dict[str, object] = field(default_factory=dict[str, object])
    """The task that watches a VM's readiness, by VM, as the token that only it knows."""
    drain_problems: dict[str, str] = field(default_factory=dict[str, str])
    """Why a VM of a draining host could not be ended, by VM."""
    reaping_slots: set[int] = field(default_factory=set[int])
    """Slots that are being removed as leftovers: not to be given to a VM meanwhile."""

    def __post_init__(self) -> None:
        """Make what hangs on the rest."""
        self.operations = Operations(self.tasks)
        self.changes = Changes(self.clock)

    @property
    def driver(self) -> Driver:
        """The driver of new VMs."""
        return self.drivers[self.chosen]

    @property
    def probe(self) -> Probe:
        """What the driver of new VMs can do."""
        return self.probes[self.chosen]

    @property
    def share(self) -> Resources:
        """What a VM's VMM itself needs beside what the VM has been given."""
        return Resources(
            memory_bytes=self.probe.capabilities.memory_overhead_bytes,
            disk_bytes=self.settings.vmm_disk_bytes,
        )

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

    async def move(self, vm: Vm, after: VmState, reason: str, *, once: Once | None = None) -> Vm:
        """Write a transition, durable when this returns."""
        moved, line = decide.transition(vm, after, reason, now_ns=self.clock.now_ns())
        return await self.commit(vm, moved, line, once=once)

    async def amend(self, vm: Vm) -> Vm:
        """Write a change that is no transition; `vm` carries the generation it was decided on."""
        return await self.commit(vm, replace(vm, generation=vm.generation + 1))

    async def commit(
        self,
        before: Vm,
        after: Vm,
        line: Transition | None = None,
        *,
        once: Once | None = None,
    ) -> Vm:
        """Write what was decided on `before`, with the history's next line, and tell watchers."""
        timings = self.steps.take(after.vm_id) if line is not None else ()

        def write(connection: Connection) -> None:
            if once is not None:
                self.claim(connection, once, after.vm_id)
            store.update_vm(connection, after, decided_on=before.generation, line=line)
            if timings:
                store.write_timings(connection, after.vm_id, timings)

        await self.db.write(write)
        self.changes.tell(after, None if after.state is before.state else before.state)
        if line is not None:
            log.info("vm_state", vm_id=after.vm_id, state=after.state.value, reason=line.reason)
        return after

    def claim(self, connection: Connection, once: Once, resource_id: str) -> None:
        """Keep a request's key, in the transaction of the change that it makes."""
        idempotency.claim(
            connection,
            IDEMPOTENCY,
            scope=once.scope,
            key=once.key,
            request=once.request,
            resource_id=resource_id,
            now_ns=self.clock.now_ns(),
        )

    async def is_repeated(self, once: Once) -> bool:
        """Whether a request with this key has made its change already.

        Raises:
            AlreadyExists: the key was used for another request.
        """
        if not once.key:
            return False
        found = await self.db.read(
            lambda connection: idempotency.find(
                connection, IDEMPOTENCY, scope=once.scope, key=once.key, request=once.request
            )
        )
        return found is not None

    async def write_host(self, host: Host, *, once: Once | None = None) -> None:
        """Write the host, decided on the present one; its generation grows."""
        host = replace(host, generation=self.host.generation + 1)

        def write(connection: Connection) -> None:
            if once is not None:
                self.claim(connection, once, host.host_id)
            store.write_host(connection, host)

        await self.db.write(write)
        self.host = host
        self.changes.touch_host()

    def explain_end(self, vm: Vm, report: ExitReport) -> ExitReport:
        """The report, with what the cgroup knows: a VMM killed for lack of memory."""
        return decide.explain_end(report, oom_kills=self.groups.oom_kills(vm.vm_id))
