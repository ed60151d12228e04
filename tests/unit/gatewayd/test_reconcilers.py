"""Reconcilers on a real store, with metald, Envoy and the engine standing still."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from ironworks.gatewayd.app.changes import Changes
from ironworks.gatewayd.app.edge import EdgeApp
from ironworks.gatewayd.app.jobs import JobApp
from ironworks.gatewayd.app.removal import Removal
from ironworks.gatewayd.issuer import Issuer
from ironworks.gatewayd.reconcilers import Reconcilers
from ironworks.gatewayd.remote.vms import VmPhase, Vms, VmView
from ironworks.gatewayd.settings import GatewaydSettings
from ironworks.gatewayd.store import deployments as store
from ironworks.gatewayd.store import hosts as host_store
from ironworks.gatewayd.store import jobs as job_store
from ironworks.gatewayd.store import tenants as tenant_store
from ironworks.gatewayd.types import (
    Deployment,
    DeploymentSpec,
    DeploymentState,
    Host,
    HostState,
    Job,
    JobKind,
    JobState,
    Replica,
    ReplicaState,
    Resources,
    Tenant,
    TenantState,
)
from ironworks.model.errors import IronError, NotFound, Unavailable
from ironworks.model.ids import derived_id
from ironworks.model.units import NS_PER_DAY
from ironworks.runtime.clock import SystemClock, SystemEntropy
from ironworks.runtime.identity import ensure_service_keys
from ironworks.runtime.service import make_chassis
from ironworks.runtime.workflows import Json, Outcome, Workflows, WorkflowState
from ironworks.storage.migrate import upgrade
from ironworks.storage.sql import Database
from ironworks.testkit.clock import FakeClock

TENANT_ID = derived_id("tnt", "one")
DEPLOYMENT_ID = derived_id("dep", "one")
JOB_ID = derived_id("job", "one")
HOST_ID = derived_id("hst", "one")
VM_ID = derived_id("vm", "one")


class StillWorkflows(Workflows):
    def __init__(self) -> None:
        super().__init__(name="still", database_url="sqlite://", queues=[])
        self.state = WorkflowState.RUNNING
        self.forgotten: list[str] = []

    async def submit(
        self, name: str, workflow_id: str, argument: Json, *, queue: str, partition: str
    ) -> None:
        del name, workflow_id, argument, queue, partition

    async def outcome(self, workflow_id: str) -> Outcome:
        return Outcome(workflow_id=workflow_id, name="x", state=self.state)

    async def forget(self, workflow_ids: object) -> None:
        assert isinstance(workflow_ids, list)
        self.forgotten += workflow_ids


@dataclass
class Machine:
    views: dict[str, VmView] = field(default_factory=dict[str, VmView])
    error: IronError | None = None
    deleted: list[str] = field(default_factory=list[str])


class StillVms(Vms):
    def __init__(self, machine: Machine, settings: GatewaydSettings) -> None:
        super().__init__(make_chassis("gatewayd", settings).clients)
        self._machine = machine

    async def list_all(self, url: str) -> dict[str, VmView]:
        del url
        if self._machine.error is not None:
            raise self._machine.error
        return self._machine.views

    async def delete(self, url: str, tenant_id: str, vm_id: str) -> None:
        del url, tenant_id
        if self._machine.error is not None:
            raise self._machine.error
        self._machine.deleted.append(vm_id)


@dataclass(frozen=True, kw_only=True)
class Room:
    database: Database
    reconcilers: Reconcilers
    machine: Machine
    workflows: StillWorkflows
    given_up: list[str]
    edge: EdgeApp
    clock: FakeClock

    async def deployment(self) -> Deployment:
        return await self.database.read(lambda c: store.get_deployment(c, DEPLOYMENT_ID))

    async def replicas(self) -> list[Replica]:
        return await self.database.read(lambda c: store.replicas_of(c, DEPLOYMENT_ID))


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    settings = GatewaydSettings(data_dir=tmp_path)
    ensure_service_keys(tmp_path)
    settings.directory.mkdir(exist_ok=True)
    database = Database(settings.database_url)
    upgrade(database.engine, "ironworks.gatewayd.migrations")
    clock = FakeClock(SystemClock().now_ns())
    workflows, machine = StillWorkflows(), Machine()
    issuer = Issuer.open(tmp_path, settings.trust_domain, clock, SystemEntropy())
    jobs = JobApp(database=database, workflows=workflows, changes=Changes(), clock=clock)
    edge = EdgeApp(database=database, issuer=issuer, clock=clock, settings=settings)
    vms = StillVms(machine, settings)
    given_up: list[str] = []

    async def give_up(job_id: str, error: IronError) -> None:
        assert error.message
        given_up.append(job_id)

    yield Room(
        database=database,
        reconcilers=Reconcilers(
            database=database,
            workflows=workflows,
            jobs=jobs,
            edge=edge,
            vms=vms,
            removal=Removal(database=database, vms=vms, clock=SystemClock()),
            give_up={JobKind.CREATE_DEPLOYMENT: give_up},
            clock=clock,
        ),
        machine=machine,
        workflows=workflows,
        given_up=given_up,
        edge=edge,
        clock=clock,
    )
    database.close()


TENANT = Tenant(
    tenant_id=TENANT_ID,
    name="acme",
    display_name="",
    state=TenantState.ACTIVE,
    reason="",
    labels={},
    created_at_ns=1,
    updated_at_ns=1,
)
DEPLOYMENT = Deployment(
    deployment_id=DEPLOYMENT_ID,
    tenant_id=TENANT_ID,
    name="web",
    spec=DeploymentSpec(image="web"),
    state=DeploymentState.RUNNING,
    reason="",
    host_label="web-x",
    image_digest="",
    build_id="",
    rootfs_asset_id="",
    build_ms=0,
    build_reused=False,
    argv=(),
    port=80,
    generation=1,
    job_id=JOB_ID,
    labels={},
    created_at_ns=1,
    updated_at_ns=1,
)
HOST = Host(
    host_id=HOST_ID,
    name="one",
    metald_url="http://127.0.0.1:1",
    zone="",
    region="",
    architecture="amd64",
    driver="fake",
    acceleration="none",
    capacity=Resources(),
    allocated=Resources(),
    labels={},
    state=HostState.READY,
    version="",
    registered_at_ns=1,
    last_heartbeat_at_ns=1,
)
REPLICA = Replica(
    vm_id=VM_ID,
    deployment_id=DEPLOYMENT_ID,
    tenant_id=TENANT_ID,
    index=0,
    generation=1,
    host_id=HOST_ID,
    zone="",
    state=ReplicaState.READY,
    reason="",
    address="198.18.0.1",
    resources=Resources(vms=1),
    boot_ordered_at_ns=1,
    boot_ms=1,
)


async def fill(
    room: Room,
    state: DeploymentState = DeploymentState.RUNNING,
    replica_state: ReplicaState = ReplicaState.READY,
) -> None:
    deployment = replace(DEPLOYMENT, state=state)
    replica = replace(REPLICA, state=replica_state)
    await room.database.write(lambda c: tenant_store.add_tenant(c, TENANT))
    await room.database.write(lambda c: store.add_deployment(c, deployment))
    await room.database.write(lambda c: host_store.put_host(c, HOST))
    await room.database.write(lambda c: store.add_replica(c, replica))


async def add_job(room: Room, state: JobState, ended_at_ns: int = 0) -> None:
    job = Job(
        job_id=JOB_ID,
        tenant_id=TENANT_ID,
        kind=JobKind.CREATE_DEPLOYMENT,
        resource_id=DEPLOYMENT_ID,
        state=state,
        stages=(),
        result=None,
        failure=None,
        request_id="",
        grace_ms=0,
        created_at_ns=1,
        updated_at_ns=1,
        ended_at_ns=ended_at_ns,
        version=1,
    )
    await room.database.write(lambda c: job_store.add_job(c, job))


def view(*, ready: bool) -> VmView:
    return VmView(
        vm_id=VM_ID, phase=VmPhase.RUNNING, ready=ready, address="", reason="Does not answer."
    )


async def test_a_replica_that_stops_answering_leaves_the_route_and_returns(room: Room) -> None:
    await fill(room)
    room.machine.views = {VM_ID: view(ready=True)}
    await room.edge.publish()
    assert (await room.reconcilers.replicas()).counts["changed"] == 0
    before = room.edge.plane.written
    room.machine.views = {VM_ID: view(ready=False)}
    assert (await room.reconcilers.replicas()).counts["changed"] == 1
    assert (await room.replicas())[0].state is ReplicaState.UNREADY
    deployment = await room.deployment()
    assert deployment.state is DeploymentState.DEGRADED
    assert "Does not answer." in deployment.reason
    assert room.edge.plane.written != before
    room.machine.views = {}
    assert (await room.reconcilers.replicas()).counts["changed"] == 0
    room.machine.views = {VM_ID: view(ready=True)}
    await room.reconcilers.replicas()
    assert (await room.deployment()).state is DeploymentState.RUNNING
    assert (await room.deployment()).reason == ""


async def test_a_silent_host_changes_nothing(room: Room) -> None:
    await fill(room)
    room.machine.error = Unavailable("Down.")
    assert (await room.reconcilers.replicas()).counts["silent_hosts"] == 1
    assert (await room.replicas())[0].state is ReplicaState.READY


async def test_leftovers_go_once_nobody_works_on_them(room: Room) -> None:
    await fill(room, DeploymentState.DELETING, ReplicaState.DELETING)
    await add_job(room, JobState.RUNNING)
    assert (await room.reconcilers.leftovers()).counts["removed"] == 0
    await room.database.write(
        lambda c: job_store.change_job(
            c, JOB_ID, lambda old: replace(old, state=JobState.FAILED, ended_at_ns=2)
        )
    )
    room.machine.error = Unavailable("Down.")
    assert (await room.reconcilers.leftovers()).counts["waiting"] == 1
    assert (await room.replicas())[0].state is ReplicaState.DELETING
    room.machine.error = None
    counts = (await room.reconcilers.leftovers()).counts
    assert (counts["removed"], counts["closed"]) == (1, 1)
    assert room.machine.deleted == [VM_ID]
    assert (await room.deployment()).state is DeploymentState.DELETED


async def test_a_vm_that_never_was_counts_as_removed(room: Room) -> None:
    await fill(room, DeploymentState.DELETING, ReplicaState.DELETING)
    room.machine.error = NotFound("There is no such VM.")
    assert (await room.reconcilers.leftovers()).counts["closed"] == 1


async def test_a_job_whose_work_ended_without_it_is_given_up(room: Room) -> None:
    await fill(room)
    await add_job(room, JobState.RUNNING)
    assert (await room.reconcilers.jobs()).counts == {"unfinished": 1, "given_up": 0}
    room.workflows.state = WorkflowState.GIVEN_UP
    assert (await room.reconcilers.jobs()).counts["given_up"] == 1
    assert room.given_up == [JOB_ID]


async def test_the_edge_is_published_when_it_differs(room: Room) -> None:
    await fill(room)
    assert (await room.reconcilers.edge()).counts == {"published": 1}
    assert (await room.reconcilers.edge()).counts == {"published": 0}
    assert room.edge.endpoint_count == 1
    assert room.edge.url_of("web-x") == "https://web-x.ironworks.localhost:8443/"


async def test_old_jobs_are_forgotten_with_their_workflows(room: Room) -> None:
    await fill(room)
    await add_job(room, JobState.COMPLETED, room.clock.now_ns())
    assert (await room.reconcilers.housekeeping()).counts["jobs"] == 0
    room.clock.jump(31 * NS_PER_DAY / 1e9)
    assert (await room.reconcilers.housekeeping()).counts["jobs"] == 1
    assert room.workflows.forgotten == [JOB_ID]


def test_loops_have_names_of_their_own(room: Room) -> None:
    names = [one.name for one in room.reconcilers.all()]
    assert sorted(set(names)) == sorted(names)
