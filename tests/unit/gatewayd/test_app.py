"""Use cases on a real store; the engine of workflows and the other services stand still."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ironworks.gatewayd.app.changes import Changes
from ironworks.gatewayd.app.deployments import DeploymentApp
from ironworks.gatewayd.app.hosts import HostApp
from ironworks.gatewayd.app.jobs import JobApp
from ironworks.gatewayd.app.limits import LimitApp
from ironworks.gatewayd.app.patience import accepts_connections, at_most, errors_of, patiently
from ironworks.gatewayd.app.tenants import TenantApp
from ironworks.gatewayd.issuer import Issuer
from ironworks.gatewayd.settings import GatewaydSettings
from ironworks.gatewayd.store import deployments as deployment_store
from ironworks.gatewayd.types import (
    DeploymentSpec,
    DeploymentState,
    Host,
    HostState,
    Job,
    JobResult,
    JobState,
    Resources,
    StageKind,
    StageState,
    TenantState,
)
from ironworks.model.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    Internal,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from ironworks.model.ids import derived_id
from ironworks.model.pages import PageSpec
from ironworks.runtime.clock import SystemClock, SystemEntropy
from ironworks.runtime.identity import Caller
from ironworks.runtime.identity.caller import caller_var
from ironworks.runtime.tasks import Tasks
from ironworks.runtime.workflows import Json, Workflows
from ironworks.storage.migrate import upgrade
from ironworks.storage.sql import Database
from ironworks.testkit.clock import FakeClock

OPERATOR = Caller(kind="user", subject="op", roles=frozenset({"operator"}))
PAGE = PageSpec(size=100)
SPEC = DeploymentSpec(image="registry.example/web:1")


class StillWorkflows(Workflows):
    """Remembers what was submitted and runs nothing."""

    def __init__(self) -> None:
        super().__init__(name="still", database_url="sqlite://", queues=[])
        self.submitted: list[tuple[str, str, str]] = []

    async def submit(
        self, name: str, workflow_id: str, argument: Json, *, queue: str, partition: str
    ) -> None:
        del name, argument
        self.submitted.append((workflow_id, queue, partition))


@dataclass(frozen=True, kw_only=True)
class Room:
    settings: GatewaydSettings
    database: Database
    workflows: StillWorkflows
    tenants: TenantApp
    jobs: JobApp
    deployments: DeploymentApp
    hosts: HostApp
    limits: LimitApp
    clock: FakeClock


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    settings = GatewaydSettings(data_dir=tmp_path, tenant_deployments=2, tenant_api_keys=3)
    settings.directory.mkdir()
    database = Database(settings.database_url)
    upgrade(database.engine, "ironworks.gatewayd.migrations")
    clock, entropy = FakeClock(SystemClock().now_ns()), SystemEntropy()
    workflows = StillWorkflows()
    jobs = JobApp(database=database, workflows=workflows, changes=Changes(), clock=clock)
    issuer = Issuer.open(tmp_path, settings.trust_domain, clock, entropy)
    yield Room(
        settings=settings,
        database=database,
        workflows=workflows,
        tenants=TenantApp(
            database=database, issuer=issuer, clock=clock, entropy=entropy, settings=settings
        ),
        jobs=jobs,
        deployments=DeploymentApp(
            database=database, jobs=jobs, clock=clock, entropy=entropy, settings=settings
        ),
        hosts=HostApp(database=database, clock=clock),
        limits=LimitApp(database=database, clock=clock, settings=settings),
        clock=clock,
    )
    database.close()


async def member(room: Room, name: str, *roles: str) -> Caller:
    tenant = await room.tenants.create_tenant(
        name=name, display_name="", labels={}, idempotency_key=name
    )
    caller = Caller(
        kind="user", subject="key", tenant_id=tenant.tenant_id, roles=frozenset(roles or {"owner"})
    )
    caller_var.set(caller)
    return caller


# --- tenants and keys ---------------------------------------------------------------------------


async def test_a_tenant_is_opened_once(room: Room) -> None:
    one = await room.tenants.create_tenant(
        name="acme", display_name="", labels={}, idempotency_key="k"
    )
    again = await room.tenants.create_tenant(
        name="acme", display_name="", labels={}, idempotency_key="k"
    )
    assert again == one
    assert one.display_name == "acme"
    with pytest.raises(AlreadyExists):
        await room.tenants.create_tenant(
            name="acme", display_name="", labels={}, idempotency_key=""
        )
    with pytest.raises(InvalidRequest):
        await room.tenants.create_tenant(
            name="Acme!", display_name="", labels={}, idempotency_key=""
        )
    assert await room.tenants.list_tenants(PAGE, []) == [one]


async def test_a_tenant_is_changed_by_its_own(room: Room) -> None:
    owner = await member(room, "acme")
    changed = await room.tenants.update_tenant(
        owner, tenant_id="", display_name="Acme", labels={"a": "b"}
    )
    assert (changed.display_name, changed.labels) == ("Acme", {"a": "b"})
    changed = await room.tenants.update_tenant(
        owner, tenant_id="", display_name=None, labels={"a": "", "c": "d"}
    )
    assert (changed.display_name, changed.labels) == ("Acme", {"c": "d"})
    other = await member(room, "other")
    assert owner.tenant_id is not None
    with pytest.raises(NotFound):
        await room.tenants.update_tenant(
            other, tenant_id=owner.tenant_id, display_name="x", labels={}
        )
    with pytest.raises(NotFound):
        await room.tenants.get_tenant(other, owner.tenant_id)
    assert (await room.tenants.get_tenant(OPERATOR, owner.tenant_id)).display_name == "Acme"


async def test_keys_are_exchanged_until_they_end(room: Room) -> None:
    owner = await member(room, "acme")
    key, secret = await room.tenants.create_api_key(
        owner, name="ci", roles=["developer"], tenant_id="", expires_at_ns=0, idempotency_key="k"
    )
    again, nothing = await room.tenants.create_api_key(
        owner, name="ci", roles=["developer"], tenant_id="", expires_at_ns=0, idempotency_key="k"
    )
    assert (again, nothing) == (key, "")
    token = await room.tenants.exchange(secret)
    assert token.key.tenant_id == owner.tenant_id
    used = await room.tenants.get_api_key(owner, key.api_key_id)
    assert used.last_used_at_ns == room.clock.now_ns()
    other = await member(room, "other")
    for work in (room.tenants.get_api_key, room.tenants.revoke_api_key):
        with pytest.raises(NotFound):
            await work(other, key.api_key_id)
    admin = replace(owner, roles=frozenset({"admin"}))
    assert (await room.tenants.revoke_api_key(admin, key.api_key_id)).revoked_at_ns > 0
    with pytest.raises(Unauthenticated):
        await room.tenants.exchange(secret)
    with pytest.raises(Unauthenticated):
        await room.tenants.exchange("")


async def test_an_admin_cannot_end_an_owners_key(room: Room) -> None:
    owner = await member(room, "acme")
    key, _ = await room.tenants.create_api_key(
        owner, name="boss", roles=["owner"], tenant_id="", expires_at_ns=0, idempotency_key=""
    )
    admin = replace(owner, roles=frozenset({"admin"}))
    with pytest.raises(PermissionDenied):
        await room.tenants.revoke_api_key(admin, key.api_key_id)


async def test_keys_are_bounded_and_listed(room: Room) -> None:
    owner = await member(room, "acme")

    async def make() -> None:
        await room.tenants.create_api_key(
            owner, name="x", roles=["viewer"], tenant_id="", expires_at_ns=0, idempotency_key=""
        )

    for _ in range(3):
        await make()
    with pytest.raises(ResourceExhausted):
        await make()
    listed = await room.tenants.list_api_keys(owner, PAGE, "", include_ended=False)
    assert len(listed) == 3
    with pytest.raises(NotFound):
        await room.tenants.list_api_keys(owner, PAGE, "tnt_other", include_ended=False)
    with pytest.raises(InvalidRequest):
        await room.tenants.create_api_key(
            owner, name="x", roles=["viewer"], tenant_id="", expires_at_ns=1, idempotency_key=""
        )


async def test_the_first_start_makes_the_operators_key_once(room: Room) -> None:
    path = await room.tenants.ensure_operator_key()
    secret = path.read_text().strip()
    assert path.stat().st_mode & 0o777 == 0o600
    assert (await room.tenants.exchange(secret)).key.roles == ("operator",)
    await room.tenants.ensure_operator_key()
    assert path.read_text().strip() == secret
    # Died between file and store: the file names a key that nobody knows.
    path.write_text("iwk_lost\n")
    await room.tenants.ensure_operator_key()
    assert (await room.tenants.exchange(path.read_text().strip())).key.tenant_id is None
    # An operator put the file away: the key lives, another is not made.
    path.unlink()
    await room.tenants.ensure_operator_key()
    assert not path.exists()


async def test_a_suspended_tenant_gets_no_token_and_starts_nothing(room: Room) -> None:
    owner = await member(room, "acme")
    assert owner.tenant_id is not None
    _, secret = await room.tenants.create_api_key(
        owner, name="x", roles=["owner"], tenant_id="", expires_at_ns=0, idempotency_key=""
    )
    suspended = await room.tenants.set_suspended(owner.tenant_id, suspended=True, reason="unpaid")
    assert suspended.state is TenantState.SUSPENDED
    with pytest.raises(PermissionDenied, match="unpaid"):
        await room.tenants.exchange(secret)
    with pytest.raises(PermissionDenied):
        await room.deployments.create(name="web", spec=SPEC, labels={}, idempotency_key="")
    await room.tenants.set_suspended(owner.tenant_id, suspended=False, reason="")
    assert (await room.tenants.exchange(secret)).key.tenant_id == owner.tenant_id


# --- deployments and jobs -----------------------------------------------------------------------


async def test_a_failed_deployment_of_which_nothing_is_left_gives_way(room: Room) -> None:
    owner = await member(room, "acme")
    old = await room.deployments.create(name="web", spec=SPEC, labels={}, idempotency_key="")
    await room.database.write(
        lambda c: deployment_store.change_deployment(
            c,
            old.deployment.deployment_id,
            1,
            lambda one: replace(one, state=DeploymentState.FAILED, reason="It was so."),
        )
    )
    with pytest.raises(AlreadyExists, match="failed"):  # its job is still undoing
        await room.deployments.create(name="web", spec=SPEC, labels={}, idempotency_key="")
    await room.jobs.fail(old.deployment.job_id, Unavailable("It was so."), None)
    new = await room.deployments.create(name="web", spec=SPEC, labels={}, idempotency_key="")
    assert new.deployment.deployment_id != old.deployment.deployment_id
    assert (await room.deployments.get(owner, "web")).deployment == new.deployment
    kept = (await room.deployments.get(owner, old.deployment.deployment_id)).deployment
    assert (kept.state, kept.reason) == (DeploymentState.DELETED, "It was so.")


async def test_a_deployment_is_accepted_once_with_its_job(room: Room) -> None:
    owner = await member(room, "acme")
    seen = await room.deployments.create(name="web", spec=SPEC, labels={}, idempotency_key="k")
    again = await room.deployments.create(name="web", spec=SPEC, labels={}, idempotency_key="k")
    assert again == seen
    job_id = seen.deployment.job_id
    assert room.workflows.submitted == [(job_id, "deployments", owner.tenant_id)]
    job = await room.jobs.get(owner, job_id)
    assert (job.state, job.resource_id) == (JobState.QUEUED, seen.deployment.deployment_id)
    with pytest.raises(AlreadyExists, match="deploying"):
        await room.deployments.create(name="web", spec=SPEC, labels={}, idempotency_key="")
    with pytest.raises(AlreadyExists, match="idempotency_key"):
        await room.deployments.create(
            name="web", spec=replace(SPEC, port=1), labels={}, idempotency_key="k"
        )
    unnamed = await room.deployments.create(name="", spec=SPEC, labels={}, idempotency_key="")
    assert unnamed.deployment.name.startswith("web-")
    with pytest.raises(ResourceExhausted):
        await room.deployments.create(name="third", spec=SPEC, labels={}, idempotency_key="")
    listed = await room.deployments.list(owner, PAGE, [], {})
    assert {one.deployment.name for one in listed} == {"web", unnamed.deployment.name}
    used, limits = await room.limits.consumption(owner, "")
    assert (used.deployments, used.vms, used.concurrent_jobs) == (2, 2, 2)
    assert limits.deployments == 2
    assert (await room.limits.limits(owner, ""))[0] == owner.tenant_id


async def test_another_tenant_finds_nothing(room: Room) -> None:
    await member(room, "acme")
    seen = await room.deployments.create(name="web", spec=SPEC, labels={}, idempotency_key="")
    other = await member(room, "other")
    for id_or_name in ("web", seen.deployment.deployment_id):
        with pytest.raises(NotFound):
            await room.deployments.get(other, id_or_name)
        with pytest.raises(NotFound):
            await room.deployments.delete(other, id_or_name, 0)
    with pytest.raises(NotFound):
        await room.jobs.get(other, seen.deployment.job_id)
    assert await room.jobs.list(other, PAGE, [], "") == []
    assert await room.jobs.list(OPERATOR, PAGE, [], "") != []
    with pytest.raises(NotFound):
        await room.limits.limits(other, seen.deployment.tenant_id)


async def test_a_deletion_is_accepted_once_and_cancels_what_is_at_work(room: Room) -> None:
    owner = await member(room, "acme")
    seen = await room.deployments.create(name="web", spec=SPEC, labels={}, idempotency_key="")
    job_id = await room.deployments.delete(owner, "web", 5)
    assert await room.deployments.delete(owner, "web", 5) == job_id
    assert [entry[0] for entry in room.workflows.submitted] == [seen.deployment.job_id, job_id]
    assert (await room.jobs.get(owner, seen.deployment.job_id)).state is JobState.CANCELLING
    with pytest.raises(Aborted):
        await room.jobs.check_wanted(seen.deployment.job_id)
    with pytest.raises(FailedPrecondition):
        await room.jobs.cancel(owner, job_id)
    with pytest.raises(InvalidRequest):
        await room.deployments.delete(owner, "web", -1)
    state = (await room.deployments.get(owner, "web")).deployment.state
    assert state is DeploymentState.DEPLOYING


async def test_every_unfinished_job_is_submitted_again(room: Room) -> None:
    await member(room, "acme")
    seen = await room.deployments.create(name="web", spec=SPEC, labels={}, idempotency_key="")
    room.workflows.submitted.clear()
    jobs = await room.jobs.submit_unfinished()
    assert [job.job_id for job in jobs] == [seen.deployment.job_id]
    assert len(room.workflows.submitted) == 1
    await room.jobs.complete(seen.deployment.job_id, JobResult())
    assert await room.jobs.submit_unfinished() == []


async def test_watchers_see_every_change_that_matters_and_the_end(room: Room) -> None:
    owner = await member(room, "acme")
    seen = await room.deployments.create(name="web", spec=SPEC, labels={}, idempotency_key="")
    job_id = seen.deployment.job_id

    async def watch() -> list[Job]:
        return [job async for job in room.jobs.watch(owner, job_id)]

    async with Tasks() as tasks:
        watching = tasks.start(watch(), name="watch")
        await room.jobs.begin(job_id)
        await room.jobs.stage(job_id, StageKind.RESOLVING, StageState.RUNNING, detail="web")
        await room.jobs.fail(job_id, Internal("Broken."), StageKind.RESOLVING)
        async with asyncio.timeout(10):
            states = await watching
    versions = [job.version for job in states]
    assert versions == sorted(set(versions))
    assert states[-1].state is JobState.FAILED


# --- hosts --------------------------------------------------------------------------------------


def host(name: str = "one") -> Host:
    return Host(
        host_id=derived_id("hst", name),
        name=name,
        metald_url="http://127.0.0.1:1",
        zone="a",
        region="",
        architecture="amd64",
        driver="fake",
        acceleration="none",
        capacity=Resources(vcpus=4),
        allocated=Resources(),
        labels={},
        state=HostState.READY,
        version="",
        registered_at_ns=0,
        last_heartbeat_at_ns=0,
    )


async def test_a_host_is_announced_reports_falls_silent_and_returns(room: Room) -> None:
    made = await room.hosts.register(host())
    assert made.state is HostState.READY
    await room.clock.advance(16)
    assert (await room.hosts.get(made.host_id)).state is HostState.DOWN
    await room.hosts.heartbeat(made.host_id, Resources(vcpus=1))
    back = await room.hosts.get(made.host_id)
    assert (back.state, back.allocated) == (HostState.READY, Resources(vcpus=1))
    await room.hosts.heartbeat(made.host_id, Resources(), HostState.DRAINING)
    assert (await room.hosts.get(made.host_id)).state is HostState.DRAINING
    await room.hosts.set_cordoned(made.host_id, cordoned=True)
    assert (await room.hosts.get(made.host_id)).state is HostState.CORDONED
    again = await room.hosts.register(host())
    assert (again.state, again.registered_at_ns) == (HostState.CORDONED, made.registered_at_ns)
    assert (await room.hosts.set_cordoned(made.host_id, cordoned=False)).state is HostState.READY
    assert len(await room.hosts.list(PAGE, "a")) == 1
    assert await room.hosts.list(PAGE, "b") == []


async def test_hosts_that_cannot_be_are_refused(room: Room) -> None:
    await room.hosts.register(host())
    with pytest.raises(AlreadyExists):
        await room.hosts.register(replace(host("two"), name="one"))
    for wrong in (
        replace(host(), host_id="vm_1"),
        replace(host(), name="No Name"),
        replace(host(), metald_url="ftp://x"),
    ):
        with pytest.raises(InvalidRequest):
            await room.hosts.register(wrong)
    with pytest.raises(NotFound):
        await room.hosts.heartbeat(derived_id("hst", "two"), Resources())
    with pytest.raises(NotFound):
        await room.hosts.get(derived_id("hst", "two"))


# --- patience and changes -----------------------------------------------------------------------


async def test_patience_repeats_what_may_pass_and_nothing_else() -> None:
    clock = SystemClock()
    errors: list[Exception] = [Unavailable("Down."), Unavailable("Down.")]

    async def attempt() -> str:
        if errors:
            raise errors.pop(0)
        return "done"

    assert await patiently(clock, attempt, 5) == "done"
    errors.append(NotFound("Gone."))
    with pytest.raises(NotFound):
        await patiently(clock, attempt, 5)
    errors.extend([Unavailable("Down."), Unavailable("Still down.")])
    with pytest.raises(Unavailable):
        await patiently(clock, attempt, 0)


async def test_at_most_so_many_work_at_once_and_errors_are_told_apart() -> None:
    at_work, peak = 0, 0

    async def piece() -> int:
        nonlocal at_work, peak
        at_work += 1
        peak = max(peak, at_work)
        await asyncio.sleep(0)
        at_work -= 1
        return 1

    async def broken() -> int:
        raise NotFound("Gone.")

    results = await at_most(2, [piece, piece, broken, piece])
    assert peak == 2
    assert [one for one in results if isinstance(one, int)] == [1, 1, 1]
    assert [str(error) for error in errors_of(results)] == ["Gone."]
    with pytest.raises(KeyError):
        errors_of([KeyError("x")])


async def test_a_port_accepts_or_does_not() -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    assert await accepts_connections("127.0.0.1", port, 2)
    server.close()
    await server.wait_closed()
    assert not await accepts_connections("127.0.0.1", port, 2)


async def test_a_change_between_two_waits_is_not_lost() -> None:
    changes = Changes()
    with changes.listen("job") as listener, changes.listen("job") as other:
        changes.notify("job")
        changes.notify("nobody")
        async with asyncio.timeout(0.2):
            await listener.wait()
            await other.wait()
    changes.notify("job")
