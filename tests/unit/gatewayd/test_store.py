from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from ironworks.gatewayd import decide
from ironworks.gatewayd.store import deployments, hosts, jobs, tenants
from ironworks.gatewayd.types import (
    ApiKey,
    Deployment,
    DeploymentSpec,
    DeploymentState,
    EgressRule,
    Host,
    HostState,
    Job,
    JobFailure,
    JobKind,
    JobResult,
    JobState,
    Readiness,
    Replica,
    ReplicaState,
    Resources,
    RestartMode,
    StageKind,
    Tenant,
    TenantState,
)
from ironworks.model.errors import Aborted, NotFound
from ironworks.model.ids import derived_id
from ironworks.model.pages import PageSpec
from ironworks.model.units import GIB
from ironworks.storage.migrate import upgrade
from ironworks.storage.sql import Database, sqlite_url

ALL = list(DeploymentState)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database(sqlite_url(tmp_path / "gatewayd.db"))
    upgrade(opened.engine, "ironworks.gatewayd.migrations")
    for name in ("one", "two"):
        await opened.write(lambda c, name=name: tenants.add_tenant(c, tenant(name)))
    yield opened
    opened.close()


def tenant(name: str) -> Tenant:
    return Tenant(
        tenant_id=derived_id("tnt", name),
        name=name,
        display_name=name,
        state=TenantState.ACTIVE,
        reason="",
        labels={"a": "b"},
        created_at_ns=1,
        updated_at_ns=1,
    )


def key(name: str, owner: str | None = "one", **changes: int) -> ApiKey:
    made = ApiKey(
        api_key_id=derived_id("key", name),
        tenant_id=None if owner is None else derived_id("tnt", owner),
        name=name,
        roles=("admin", "viewer"),
        hint="iwk_abcdef",
        created_at_ns=1,
        expires_at_ns=0,
        revoked_at_ns=0,
        last_used_at_ns=0,
    )
    return replace(made, **changes)


def deployment(name: str, owner: str = "one", **changes: object) -> Deployment:
    made = Deployment(
        deployment_id=derived_id("dep", name, owner),
        tenant_id=derived_id("tnt", owner),
        name=name,
        spec=DeploymentSpec(
            image="web",
            replicas=2,
            env={"A": "1"},
            args=("x",),
            restart=RestartMode.NEVER,
            readiness=Readiness(http_path="/"),
            egress=(EgressRule(cidr="0.0.0.0/0", ports=(80,)),),
            zones=("a",),
            host_labels={"x": "y"},
        ),
        state=DeploymentState.RUNNING,
        reason="",
        host_label=f"{name}-x",
        image_digest="sha256:ab",
        build_id="",
        rootfs_asset_id="",
        build_ms=1,
        build_reused=True,
        argv=("/app", "x"),
        port=80,
        generation=1,
        job_id="",
        labels={"team": name},
        created_at_ns=5,
        updated_at_ns=5,
    )
    return replace(made, **changes)  # pyright: ignore[reportArgumentType]


def replica(of: Deployment, index: int, state: ReplicaState = ReplicaState.READY) -> Replica:
    return Replica(
        vm_id=decide.vm_id_of(of.deployment_id, 1, index),
        deployment_id=of.deployment_id,
        tenant_id=of.tenant_id,
        index=index,
        generation=1,
        host_id="hst_1",
        zone="a",
        state=state,
        reason="",
        address="198.18.0.1",
        resources=Resources(vcpus=2, memory_bytes=GIB, disk_bytes=3, vms=1),
        boot_ordered_at_ns=1,
        boot_ms=2,
    )


def job(name: str, owner: str = "one", **changes: object) -> Job:
    made = Job(
        job_id=derived_id("job", name),
        tenant_id=derived_id("tnt", owner),
        kind=JobKind.CREATE_DEPLOYMENT,
        resource_id="dep_1",
        state=JobState.QUEUED,
        stages=decide.stages_of(JobKind.CREATE_DEPLOYMENT),
        result=None,
        failure=None,
        request_id="req_1",
        grace_ms=0,
        created_at_ns=5,
        updated_at_ns=5,
        ended_at_ns=0,
        version=1,
    )
    return replace(made, **changes)  # pyright: ignore[reportArgumentType]


async def test_tenants_are_kept_listed_and_changed(database: Database) -> None:
    one = await database.read(lambda c: tenants.find_tenant(c, derived_id("tnt", "one")))
    assert one == tenant("one")
    suspended = replace(tenant("two"), state=TenantState.SUSPENDED, reason="unpaid")
    await database.write(lambda c: tenants.update_tenant(c, suspended))
    assert await database.read(lambda c: tenants.find_tenant_by_name(c, "two")) == suspended
    first = await database.read(
        lambda c: tenants.list_tenants(c, PageSpec(size=1), list(TenantState))
    )
    assert len(first) == 2
    after = PageSpec(size=1, after=(first[0].created_at_ns, first[0].tenant_id))
    second = await database.read(lambda c: tenants.list_tenants(c, after, list(TenantState)))
    assert second == first[1:]
    active = await database.read(
        lambda c: tenants.list_tenants(c, PageSpec(size=9), [TenantState.ACTIVE])
    )
    assert active == [tenant("one")]


async def test_keys_are_found_by_hash_and_end(database: Database) -> None:
    for name, owner in (("k1", "one"), ("k2", "one"), ("k3", None)):
        await database.write(
            lambda c, name=name, owner=owner: tenants.add_api_key(c, key(name, owner), f"h-{name}")
        )
    found = await database.read(lambda c: tenants.find_api_key_by_secret(c, "h-k1"))
    assert found == key("k1")
    assert await database.read(lambda c: tenants.find_api_key_by_secret(c, "h")) is None
    owner_id = derived_id("tnt", "one")
    await database.write(lambda c: tenants.revoke_api_key(c, key("k1").api_key_id, 7))
    await database.write(lambda c: tenants.revoke_api_key(c, key("k1").api_key_id, 9))
    await database.write(lambda c: tenants.note_api_key_used(c, key("k2").api_key_id, 8))
    revoked = await database.read(lambda c: tenants.find_api_key(c, key("k1").api_key_id))
    assert revoked == key("k1", revoked_at_ns=7)
    assert await database.read(lambda c: tenants.count_living_api_keys(c, owner_id, 9)) == 1
    assert await database.read(lambda c: tenants.count_living_api_keys(c, None, 9)) == 1
    living = await database.read(
        lambda c: tenants.list_api_keys(c, PageSpec(size=9), owner_id, ended_at_ns=9)
    )
    assert living == [key("k2", last_used_at_ns=8)]
    everything = await database.read(
        lambda c: tenants.list_api_keys(c, PageSpec(size=9), owner_id, ended_at_ns=None)
    )
    assert len(everything) == 2


async def test_deployments_are_seen_by_their_tenant(database: Database) -> None:
    web = deployment("web")
    await database.write(lambda c: deployments.add_deployment(c, web))
    await database.write(lambda c: deployments.add_deployment(c, deployment("web", "two")))
    for name in ("web", web.deployment_id):
        found = await database.read(
            lambda c, name=name: deployments.find_deployment(c, name, web.tenant_id)
        )
        assert found == web
    other = derived_id("tnt", "two")
    assert (
        await database.read(lambda c: deployments.find_deployment(c, web.deployment_id, other))
        is None
    )
    assert await database.read(lambda c: deployments.find_deployment(c, "web", None)) is None
    with pytest.raises(NotFound):
        await database.read(lambda c: deployments.get_deployment(c, "dep_0"))
    with pytest.raises(Aborted):
        await database.write(
            lambda c: deployments.add_deployment(c, replace(web, deployment_id="dep_2"))
        )


async def test_a_deleted_deployment_frees_its_name(database: Database) -> None:
    web = deployment("web")
    await database.write(lambda c: deployments.add_deployment(c, web))
    changed = await database.write(
        lambda c: deployments.change_deployment(
            c, web.deployment_id, 9, lambda old: replace(old, state=DeploymentState.DELETED)
        )
    )
    assert changed.updated_at_ns == 9
    same = await database.write(
        lambda c: deployments.change_deployment(c, web.deployment_id, 11, lambda old: old)
    )
    assert same.updated_at_ns == 9
    again = replace(web, deployment_id="dep_2")
    await database.write(lambda c: deployments.add_deployment(c, again))
    found = await database.read(lambda c: deployments.find_deployment(c, "web", web.tenant_id))
    assert found == again
    assert await database.read(lambda c: deployments.count_deployments(c, web.tenant_id)) == 1
    wanted = await database.read(lambda c: deployments.wanted_by(c, web.tenant_id))
    assert wanted.vms == 2


async def test_lists_filter_by_state_and_label_across_pages(database: Database) -> None:
    for number in range(5):
        one = deployment(f"d{number}", created_at_ns=number, labels={"even": str(number % 2)})
        await database.write(lambda c, one=one: deployments.add_deployment(c, one))
    page = PageSpec(size=2)
    found = await database.read(
        lambda c: deployments.list_deployments(
            c, page, tenant_id=derived_id("tnt", "one"), states=ALL, labels={"even": "0"}
        )
    )
    assert [one.name for one in found] == ["d4", "d2", "d0"]
    after = PageSpec(size=2, after=(2, found[1].deployment_id))
    rest = await database.read(
        lambda c: deployments.list_deployments(
            c, after, tenant_id=None, states=ALL, labels={"even": "0"}
        )
    )
    assert [one.name for one in rest] == ["d0"]


async def test_replicas_reserve_until_they_are_deleted(database: Database) -> None:
    web = deployment("web")
    await database.write(lambda c: deployments.add_deployment(c, web))
    for index in (1, 0):
        await database.write(lambda c, index=index: deployments.add_replica(c, replica(web, index)))
    kept = await database.read(lambda c: deployments.replicas_of(c, web.deployment_id))
    assert kept == [replica(web, 0), replica(web, 1)]
    placed = await database.read(deployments.placed_by_host)
    assert placed == {"hst_1": Resources(vcpus=4, memory_bytes=2 * GIB, disk_bytes=6, vms=2)}
    await database.write(
        lambda c: deployments.change_replica(
            c, kept[0].vm_id, lambda old: replace(old, state=ReplicaState.DELETED)
        )
    )
    assert await database.read(lambda c: deployments.replicas_of(c, web.deployment_id)) == kept[1:]
    assert (await database.read(deployments.placed_by_host))["hst_1"].vms == 1
    ready = await database.read(lambda c: deployments.replicas_in(c, [ReplicaState.READY]))
    assert ready == kept[1:]
    with pytest.raises(NotFound):
        await database.write(lambda c: deployments.change_replica(c, "vm_0", lambda old: old))


async def test_what_is_emptied_is_closed_unless_a_job_is_at_it(database: Database) -> None:
    web = deployment("web", state=DeploymentState.DELETING)
    await database.write(lambda c: deployments.add_deployment(c, web))
    await database.write(
        lambda c: deployments.add_replica(c, replica(web, 0, ReplicaState.DELETING))
    )
    assert await database.write(lambda c: deployments.close_emptied(c, 9)) == 0
    await database.write(
        lambda c: deployments.change_replica(
            c, replica(web, 0).vm_id, lambda old: replace(old, state=ReplicaState.DELETED)
        )
    )
    at_work = job("one", resource_id=web.deployment_id)
    await database.write(lambda c: jobs.add_job(c, at_work))
    assert await database.write(lambda c: deployments.close_emptied(c, 9)) == 0
    await database.write(
        lambda c: jobs.change_job(
            c, at_work.job_id, lambda old: decide.complete_job(old, JobResult(), 8)
        )
    )
    assert await database.write(lambda c: deployments.close_emptied(c, 9)) == 1
    closed = await database.read(lambda c: deployments.get_deployment(c, web.deployment_id))
    assert closed.state is DeploymentState.DELETED


async def test_jobs_are_kept_listed_and_forgotten(database: Database) -> None:
    failure = JobFailure(code="internal", message="x", stage=StageKind.BOOTING)
    failed = job("j1", state=JobState.FAILED, failure=failure, ended_at_ns=8, created_at_ns=1)
    done = job(
        "j2",
        state=JobState.COMPLETED,
        result=JobResult(endpoint="e", vm_ids=("vm_1",)),
        ended_at_ns=9,
        created_at_ns=2,
    )
    for one in (failed, done, job("j3", "two", created_at_ns=3)):
        await database.write(lambda c, one=one: jobs.add_job(c, one))
    owner = derived_id("tnt", "one")
    assert await database.read(lambda c: jobs.find_job(c, done.job_id, owner)) == done
    assert await database.read(lambda c: jobs.find_job(c, failed.job_id, None)) == failed
    assert (
        await database.read(lambda c: jobs.find_job(c, done.job_id, derived_id("tnt", "two")))
        is None
    )
    page = PageSpec(size=9)
    listed = await database.read(
        lambda c: jobs.list_jobs(c, page, tenant_id=owner, states=[], resource_id="dep_1")
    )
    assert listed == [done, failed]
    only = await database.read(
        lambda c: jobs.list_jobs(
            c,
            PageSpec(size=9, after=(2, done.job_id)),
            tenant_id=None,
            states=[JobState.FAILED],
            resource_id="",
        )
    )
    assert only == [failed]
    assert [one.job_id for one in await database.read(jobs.unfinished_jobs)] == [
        derived_id("job", "j3")
    ]
    assert await database.read(lambda c: jobs.unfinished_job_ids_of(c, "dep_1")) == [
        derived_id("job", "j3")
    ]
    assert await database.read(lambda c: jobs.count_unfinished(c, owner)) == 0
    assert await database.write(lambda c: jobs.forget_jobs(c, 9, 10)) == [failed.job_id]
    with pytest.raises(NotFound):
        await database.write(lambda c: jobs.change_job(c, failed.job_id, lambda old: old))


async def test_hosts_are_put_and_listed_by_name(database: Database) -> None:
    def host(name: str, zone: str) -> Host:
        return Host(
            host_id=derived_id("hst", name),
            name=name,
            metald_url="http://127.0.0.1:1",
            zone=zone,
            region="r",
            architecture="amd64",
            driver="fake",
            acceleration="none",
            capacity=Resources(vcpus=4),
            allocated=Resources(vcpus=1),
            labels={"a": "b"},
            state=HostState.READY,
            version="1",
            registered_at_ns=1,
            last_heartbeat_at_ns=2,
        )

    for name, zone in (("b", "z1"), ("a", "z2")):
        await database.write(lambda c, name=name, zone=zone: hosts.put_host(c, host(name, zone)))
    moved = replace(host("b", "z1"), last_heartbeat_at_ns=9, reported=HostState.CORDONED)
    await database.write(lambda c: hosts.put_host(c, moved))
    assert await database.read(lambda c: hosts.find_host(c, moved.host_id)) == moved
    assert await database.read(lambda c: hosts.find_host_by_name(c, "x")) is None
    assert [one.name for one in await database.read(hosts.all_hosts)] == ["a", "b"]
    page = PageSpec(size=5, after=("a",))
    assert await database.read(lambda c: hosts.list_hosts(c, page, "")) == [moved]
    only = await database.read(lambda c: hosts.list_hosts(c, PageSpec(size=5), "z2"))
    assert [one.name for one in only] == ["a"]
