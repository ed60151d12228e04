import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import pytest

from ironworks.metald import capacity_store, store
from ironworks.metald.app import boot, create, host, stop
from ironworks.metald.app.context import Once
from ironworks.metald.reconcilers import DrainReconciler, TombstoneReconciler
from ironworks.metald.types import (
    HostState,
    Limits,
    Reservation,
    Resources,
    RestartMode,
    RestartPolicy,
    Vm,
    VmState,
)
from ironworks.model.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    ResourceExhausted,
)
from ironworks.model.pages import PageSpec
from ironworks.model.units import GIB, MIB
from ironworks.testkit.clock import FakeClock
from ironworks.testkit.metald import OTHER_TENANT, TENANT, World, vm_spec, world

S = VmState
LIMITS = Limits(
    capacity=Resources(vcpus=4, memory_bytes=8 * GIB, disk_bytes=8 * GIB, vms=10),
    largest=Resources(vcpus=4, memory_bytes=4 * GIB, disk_bytes=8 * GIB, vms=1),
)


@pytest.fixture
async def w(tmp_path: Path) -> AsyncGenerator[World]:
    async with world(tmp_path, limits=LIMITS) as made:
        yield made


def once(key: str = "", method: str = "m", request: bytes = b"") -> Once:
    return Once(scope=f"/{method}", key=key, request=request)


async def created(
    w: World, *, tenant_id: str = TENANT, reservation_id: str = "", **spec: object
) -> Vm:
    return await create.create_vm(
        w.context,
        tenant_id=tenant_id,
        vm_id="",
        spec=vm_spec(**spec),
        idempotency_key="",
        reservation_id=reservation_id,
    )


async def booted(w: World, restart: RestartPolicy | None = None) -> Vm:
    vm = await created(w, restart=restart or RestartPolicy())
    return await boot.boot_vm(w.context, vm, timeout_seconds=0, detach=False)


async def reserve(
    w: World, name: str = "job", *, tenant_id: str = TENANT, ttl_seconds: float = 0, **amount: int
) -> Reservation:
    return await host.reserve(
        w.context,
        tenant_id=tenant_id,
        reservation_id=name,
        resources=Resources(**(amount or {"vcpus": 1, "memory_bytes": 64 * MIB})),
        ttl_seconds=ttl_seconds,
        once=once(),
    )


async def test_a_cordoned_host_takes_none_until_it_is_uncordoned(w: World) -> None:
    vm = await booted(w)
    cordoned = await host.cordon(w.context, "new disks", once=once())
    assert (cordoned.state, cordoned.reason) == (HostState.CORDONED, "new disks")
    with pytest.raises(FailedPrecondition, match="new disks"):
        await created(w)
    with pytest.raises(FailedPrecondition, match="new disks"):
        await reserve(w)
    assert (await w.context.read(vm.vm_id)).state is S.RUNNING
    assert (await host.uncordon(w.context, once=once())).state is HostState.ACTIVE
    await created(w)


async def test_a_cordon_outlives_metald(tmp_path: Path) -> None:
    async with world(tmp_path) as before:
        await host.drain(before.context, "why", 7, once=once())
        found = await before.context.db.read(store.read_host)
    assert found is not None
    assert (found.state, found.reason) == (HostState.DRAINED, "why")
    assert found.drain is not None
    assert found.drain.timeout_seconds == 7


async def test_a_key_is_good_for_one_order(w: World) -> None:
    await host.cordon(w.context, "a", once=once("k"))
    await host.uncordon(w.context, once=once("k", "Uncordon"))
    # The first order, late: it has been carried out, and is not once more.
    assert (await host.cordon(w.context, "a", once=once("k"))).state is HostState.ACTIVE
    with pytest.raises(AlreadyExists):
        await host.cordon(w.context, "b", once=once("k", request=b"other"))


async def test_a_drain_ends_every_vm_and_tells_how_far_it_is(w: World) -> None:
    policy = RestartPolicy(mode=RestartMode.ALWAYS)
    vms = [await booted(w, restart=policy), await created(w), await booted(w)]
    await stop.pause_vm(w.context, vms[2])
    drained = await host.drain(w.context, "kernel", 5, once=once())
    assert drained.state is HostState.DRAINING
    assert drained.drain is not None
    assert drained.drain.vms_at_start == 3
    report = await DrainReconciler(w.context).activate()
    assert report.counts == {"ended": 3, "left": 0}
    assert w.context.host.state is HostState.DRAINED
    for vm in vms:
        now = await w.context.read(vm.vm_id)
        assert now.state is S.STOPPED
    assert await w.left() == {}
    with pytest.raises(FailedPrecondition, match="drained"):
        await created(w)
    # What was ordered is done: a cordon changes nothing about it.
    assert (await host.cordon(w.context, "x", once=once())).state is HostState.DRAINED


async def test_an_uncordon_ends_a_drain(w: World) -> None:
    vm = await booted(w)
    await host.drain(w.context, "", 5, once=once())
    await host.uncordon(w.context, once=once())
    assert (await DrainReconciler(w.context).activate()).counts == {"ended": 0, "left": 0}
    assert (await w.context.read(vm.vm_id)).state is S.RUNNING
    assert w.context.host.drain is None


async def test_a_vm_that_cannot_be_ended_is_reported_and_tried_again(w: World) -> None:
    vm = await booted(w)
    await host.drain(w.context, "", 5, once=once())
    w.context.operations.begin(vm.vm_id, "boot")
    assert (await DrainReconciler(w.context).activate()).counts == {"ended": 0, "left": 1}
    w.context.operations.end(vm.vm_id)
    w.context.operations.begin(vm.vm_id, "pause")
    w.context.operations.end(vm.vm_id)
    assert (await DrainReconciler(w.context).activate()).counts == {"ended": 1, "left": 0}
    assert w.context.drain_problems == {}


@pytest.mark.parametrize("seconds", [0.05, 3601])
async def test_bounds_of_a_drain(w: World, seconds: float) -> None:
    with pytest.raises(InvalidRequest):
        await host.drain(w.context, "", seconds, once=once())
    with pytest.raises(InvalidRequest):
        await host.cordon(w.context, "x" * 256, once=once())


async def test_reserved_capacity_is_the_reservers_alone(w: World) -> None:
    await reserve(w, vcpus=3, memory_bytes=GIB)
    await created(w)
    with pytest.raises(ResourceExhausted, match="0 of its 4 vCPUs"):
        await created(w)
    vm = await created(w, reservation_id="job", vcpus=3)
    assert vm.state is S.CREATED
    now_ns = w.context.clock.now_ns()
    assert await w.context.db.read(lambda c: capacity_store.reserved(c, now_ns)) == Resources()
    with pytest.raises(FailedPrecondition, match="no reservation 'job'"):
        await created(w, reservation_id="job")


async def test_another_tenants_reservation_is_as_good_as_none(w: World) -> None:
    await reserve(w)
    with pytest.raises(FailedPrecondition, match="no reservation"):
        await created(w, tenant_id=OTHER_TENANT, reservation_id="job")
    with pytest.raises(NotFound):
        await host.release(w.context, tenant_id=OTHER_TENANT, reservation_id="job", once=once())
    await host.release(w.context, tenant_id=TENANT, reservation_id="job", once=once())
    await host.release(w.context, tenant_id=TENANT, reservation_id="job", once=once())
    await reserve(w, vcpus=4)


async def test_a_vm_that_is_refused_gives_its_reservation_back(w: World) -> None:
    await reserve(w)
    with pytest.raises(InvalidRequest):
        await created(w, reservation_id="job", vcpus=5)
    with pytest.raises(ResourceExhausted):
        await reserve(w, "second", vcpus=4)
    await created(w, reservation_id="job")


async def test_a_reservation_expires_and_can_be_asked_for_again(tmp_path: Path) -> None:
    clock = FakeClock()
    async with world(tmp_path, clock=clock, limits=LIMITS) as w:
        first = await reserve(w, vcpus=4)
        await clock.advance(30)
        longer = await reserve(w, vcpus=4)
        assert longer.expires_at_ns > first.expires_at_ns
        with pytest.raises(AlreadyExists):
            await reserve(w, vcpus=3)
        with pytest.raises(AlreadyExists):
            await reserve(w, vcpus=4, tenant_id=OTHER_TENANT)
        await clock.advance(60)
        await reserve(w, "other", vcpus=4, tenant_id=OTHER_TENANT)
        assert (await TombstoneReconciler(w.context).activate()).counts["expired"] == 1


@pytest.mark.parametrize("ttl_seconds", [0.5, 3601])
async def test_bounds_of_a_reservation(w: World, ttl_seconds: float) -> None:
    with pytest.raises(InvalidRequest, match="ttl_seconds"):
        await reserve(w, ttl_seconds=ttl_seconds)
    for name in ("", "x" * 65):
        with pytest.raises(InvalidRequest, match="reservation_id"):
            await reserve(w, name)


async def test_reservations_are_listed_in_pages(w: World) -> None:
    for number in range(4):
        await reserve(w, f"job-{number}", tenant_id=OTHER_TENANT if number == 3 else TENANT)
    now_ns = w.context.clock.now_ns()

    async def page(tenant_id: str | None, *after: str | int) -> list[str]:
        spec = PageSpec(size=2, after=after)
        found, rest = await w.context.db.read(
            lambda c: capacity_store.list_reservations(c, tenant_id, spec, now_ns)
        )
        names = [one.reservation_id for one in found]
        return names if rest is None else names + await page(tenant_id, *rest)

    assert await page(TENANT) == ["job-0", "job-1", "job-2"]
    assert await page(None) == ["job-0", "job-1", "job-2", "job-3"]


async def test_a_quota_holds_for_its_tenant_and_counts_reservations(w: World) -> None:
    limit = Resources(vms=2)
    quota = await host.set_quota(w.context, TENANT, limit, once=once())
    assert (quota.limit, quota.used) == (limit, Resources())
    await created(w)
    await reserve(w)
    with pytest.raises(ResourceExhausted, match="quota on this host is 2 VMs"):
        await created(w)
    with pytest.raises(ResourceExhausted, match="quota"):
        await reserve(w, "more")
    await created(w, tenant_id=OTHER_TENANT)
    # The reservation becomes the VM's: it does not count twice.
    await created(w, reservation_id="job")
    used = (await host.get_quota(w.context, TENANT)).used
    assert (used.vms, used.vcpus) == (2, 2)
    await host.set_quota(w.context, TENANT, Resources(vms=1), once=once())
    assert len(await w.context.db.read(lambda c: store.vms_in(c, [S.CREATED]))) == 3
    await host.set_quota(w.context, TENANT, Resources(), once=once())
    await created(w)


async def test_a_quota_of_nonsense_is_refused(w: World) -> None:
    with pytest.raises(InvalidRequest, match="vcpus"):
        await host.set_quota(w.context, TENANT, Resources(vcpus=-1), once=once())
    with pytest.raises(InvalidRequest, match="tenant_id"):
        await host.set_quota(w.context, "nobody", Resources(), once=once())


async def test_a_hundred_at_once_never_exceed_capacity_or_quota(w: World) -> None:
    w.context.limits = replace(
        LIMITS, capacity=replace(LIMITS.capacity, vcpus=40, vms=40, disk_bytes=100 * GIB)
    )
    await host.set_quota(w.context, OTHER_TENANT, Resources(vms=7), once=once())

    async def one(number: int) -> object:
        tenant_id = OTHER_TENANT if number % 2 else TENANT
        if number % 5 == 0:
            return await reserve(w, f"r{number}", tenant_id=tenant_id)
        return await created(w, tenant_id=tenant_id)

    results = await asyncio.gather(*(one(n) for n in range(100)), return_exceptions=True)
    refused = [each for each in results if isinstance(each, ResourceExhausted)]
    assert len(refused) == 60
    assert len(results) - len(refused) == 40
    now_ns = w.context.clock.now_ns()
    taken = await w.context.db.read(lambda c: capacity_store.taken(c, now_ns))
    assert (taken.vcpus, taken.vms) == (40, 40)
    assert (await host.get_quota(w.context, OTHER_TENANT)).used.vms == 7
