from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ironworks.assetmanagerd.types import (
    Asset,
    AssetState,
    Lease,
    LeaseFilter,
    LeaseState,
    PrepareMethod,
    Who,
)
from ironworks.model.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from ironworks.model.pages import PageSpec
from ironworks.model.units import NS_PER_SECOND
from ironworks.testkit.assets import ACME, EVIL, METALD, AssetWorld, asset_world, squashfs

PAGE = PageSpec(size=100)
PLATFORMS_METALD = Who(actor="metald", is_service=True)


@pytest.fixture
async def world(tmp_path: Path, database_url: str) -> AsyncIterator[AssetWorld]:
    async with asset_world(tmp_path, database_url=database_url) as made:
        yield made


async def lease(world: AssetWorld, *assets: Asset, key: str = "", ttl_seconds: int = 0) -> Lease:
    taken, _ = await world.leasing.acquire(
        METALD,
        [asset.asset_id for asset in assets],
        holder="vm_1",
        purpose="test",
        ttl_seconds=ttl_seconds,
        key=key,
    )
    return taken


async def state(world: AssetWorld, asset: Asset) -> AssetState:
    return (await world.registry.get(ACME, asset.asset_id)).state


async def test_leases_hold_and_let_go(world: AssetWorld) -> None:
    one, two = await world.asset(squashfs(b"1")), await world.asset(squashfs(b"2"))
    first = await lease(world, one, two)
    second = await lease(world, one)
    assert (await world.registry.get(ACME, one.asset_id)).lease_count == 2
    ended = await world.leasing.release(METALD, first.lease_id)
    assert ended.state is LeaseState.RELEASED
    assert (await state(world, one), await state(world, two)) == (
        AssetState.IN_USE,
        AssetState.AVAILABLE,
    )
    assert await world.leasing.release(METALD, first.lease_id) == ended
    await world.leasing.release(METALD, second.lease_id)
    assert await state(world, one) is AssetState.AVAILABLE


async def test_all_or_none(world: AssetWorld) -> None:
    one, two = await world.asset(squashfs(b"1")), await world.asset(squashfs(b"2"))
    await world.registry.archive(ACME, two.asset_id, "", "")
    with pytest.raises(FailedPrecondition, match=r"archived.*Restore"):
        await lease(world, one, two)
    assert await state(world, one) is AssetState.AVAILABLE
    assert await world.leasing.leases(METALD, LeaseFilter(), PAGE) == []


async def test_a_repeated_request_is_the_same_lease(world: AssetWorld) -> None:
    asset = await world.asset()
    first = await lease(world, asset, key="k")
    assert await lease(world, asset, key="k") == first
    assert (await world.registry.get(ACME, asset.asset_id)).lease_count == 1


async def test_only_its_owner_has_a_lease(world: AssetWorld) -> None:
    asset = await world.asset()
    taken = await lease(world, asset)
    builderd = Who(actor="builderd", tenant_id="tnt_acme", is_service=True)
    other_tenant = Who(actor="metald", tenant_id="tnt_evil", is_service=True)
    for stranger in (builderd, other_tenant):
        with pytest.raises(NotFound):
            await world.leasing.release(stranger, taken.lease_id)
        kept, lost = await world.leasing.renew(stranger, [taken.lease_id], 60)
        assert (kept, lost) == ([], [taken.lease_id])
    assert await world.leasing.leases(builderd, LeaseFilter(), PAGE) == []
    kept, _ = await world.leasing.renew(PLATFORMS_METALD, [taken.lease_id], 60)
    assert [one.lease_id for one in kept] == [taken.lease_id]


async def test_assets_of_others_are_unknown(world: AssetWorld) -> None:
    theirs = await world.asset(who=EVIL)
    with pytest.raises(NotFound):
        await lease(world, theirs)


async def test_a_lease_expires_after_its_time_and_never_earlier(world: AssetWorld) -> None:
    asset = await world.asset()
    taken = await lease(world, asset, ttl_seconds=10)
    await world.clock.advance(9.999)
    assert await world.leasing.expire_leases() == 0
    _, lost = await world.leasing.renew(METALD, [taken.lease_id], 10)
    assert lost == []
    await world.clock.advance(9.999)
    assert await world.leasing.expire_leases() == 0
    await world.clock.advance(0.001)
    assert await world.leasing.expire_leases() == 1
    assert await state(world, asset) is AssetState.AVAILABLE
    _, lost = await world.leasing.renew(METALD, [taken.lease_id], 10)
    assert lost == [taken.lease_id]
    assert (await world.leasing.release(METALD, taken.lease_id)).state is LeaseState.EXPIRED


async def test_time_that_this_service_was_down_does_not_count(world: AssetWorld) -> None:
    asset = await world.asset()
    await lease(world, asset, ttl_seconds=10)
    await world.clock.advance(3600)
    assert await world.leasing.grace() == 1
    assert await world.leasing.expire_leases() == 0
    await world.clock.advance(60)
    assert await world.leasing.expire_leases() == 1


async def test_time_that_the_database_was_away_does_not_count(
    world: AssetWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Away:
        async def write(self, _: object) -> int:
            raise Unavailable("The database does not answer.")

    asset = await world.asset()
    taken = await lease(world, asset, ttl_seconds=10)
    with monkeypatch.context() as away:
        away.setattr(world.leasing, "_database", Away())
        await world.clock.advance(9)
        with pytest.raises(Unavailable):
            await world.leasing.expire_leases()
        await world.clock.advance(60)
    assert await world.leasing.expire_leases() == 0
    assert (await world.leasing.renew(METALD, [taken.lease_id], 10))[1] == []
    await world.clock.advance(10)
    assert await world.leasing.expire_leases() == 1


async def test_leases_are_listed_by_what_they_hold(world: AssetWorld) -> None:
    one, two = await world.asset(squashfs(b"1")), await world.asset(squashfs(b"2"))
    first = await lease(world, one)
    await world.clock.advance(1)
    second = await lease(world, two)
    await world.leasing.release(METALD, first.lease_id)

    async def ids(query: LeaseFilter) -> list[str]:
        found = await world.leasing.leases(METALD, query, PAGE)
        return [one.lease_id for one in found]

    assert await ids(LeaseFilter(asset_id=two.asset_id)) == [second.lease_id]
    assert await ids(LeaseFilter(state=LeaseState.RELEASED)) == [first.lease_id]
    assert await ids(LeaseFilter(holder="vm_1")) == [second.lease_id, first.lease_id]
    assert await ids(LeaseFilter(holder="vm_2")) == []


async def test_leased_bytes_are_placed(world: AssetWorld) -> None:
    asset = await world.asset()
    taken, jail = await lease(world, asset), world.jail()
    placed = await world.leasing.prepare(
        METALD, taken.lease_id, str(jail), [(asset.asset_id, "rootfs")]
    )
    assert [(one.file_name, one.method) for one in placed] == [("rootfs", PrepareMethod.HARD_LINK)]
    assert (jail / "rootfs").read_bytes() == squashfs()


async def test_what_is_not_placed(world: AssetWorld) -> None:
    asset, other = await world.asset(squashfs(b"1")), await world.asset(squashfs(b"2"))
    taken, jail = await lease(world, asset), world.jail()
    file = [(asset.asset_id, "rootfs")]

    async def prepare(lease_id: str, directory: object, files: list[tuple[str, str]]) -> None:
        await world.leasing.prepare(METALD, lease_id, str(directory), files)

    with pytest.raises(NotFound):
        await prepare("lse_x", jail, file)
    with pytest.raises(NotFound, match="does not hold"):
        await prepare(taken.lease_id, jail, [(other.asset_id, "rootfs")])
    with pytest.raises(PermissionDenied):
        await prepare(taken.lease_id, world.settings.data_dir, file)
    with pytest.raises(InvalidRequest):
        await prepare(taken.lease_id, jail, [(asset.asset_id, "../rootfs")])
    with pytest.raises(InvalidRequest):
        await prepare(taken.lease_id, jail, [])
    await world.files.kept.remove(asset.stored_as)
    with pytest.raises(DataLoss):
        await prepare(taken.lease_id, jail, file)
    await world.leasing.release(METALD, taken.lease_id)
    with pytest.raises(FailedPrecondition, match="released"):
        await prepare(taken.lease_id, jail, file)
    assert list(jail.iterdir()) == []


async def test_a_renewal_never_ends_a_lease_before_what_was_promised(world: AssetWorld) -> None:
    taken = await lease(world, await world.asset(), ttl_seconds=600)
    (kept,), _ = await world.leasing.renew(METALD, [taken.lease_id], 60)
    assert kept.expires_at_ns == taken.expires_at_ns
    await world.clock.advance(590)
    (kept,), _ = await world.leasing.renew(METALD, [taken.lease_id], 60)
    assert kept.expires_at_ns == world.clock.now_ns() + 60 * NS_PER_SECOND


async def test_a_clock_that_is_set_forward_ends_no_lease(world: AssetWorld) -> None:
    asset = await world.asset()
    taken = await lease(world, asset, ttl_seconds=60)
    world.clock.jump(3600)
    assert await world.leasing.expire_leases() == 0
    await world.clock.advance(59)
    assert await world.leasing.expire_leases() == 0
    await world.clock.advance(1)
    assert await world.leasing.expire_leases() == 1
    assert (await world.leasing.release(METALD, taken.lease_id)).state is LeaseState.EXPIRED


async def test_all_that_is_over_ends_however_much_it_is(world: AssetWorld) -> None:
    asset = await world.asset()
    for _ in range(501):
        await lease(world, asset, ttl_seconds=1)
    await world.clock.advance(2)
    assert await world.leasing.expire_leases() == 501
    after = await world.registry.get(ACME, asset.asset_id)
    assert (after.state, after.lease_count) == (AssetState.AVAILABLE, 0)


async def test_after_a_start_a_lease_lasts_its_own_time(world: AssetWorld) -> None:
    taken = await lease(world, await world.asset(), ttl_seconds=3600)
    await world.clock.advance(7200)
    assert await world.leasing.grace() == 1
    await world.clock.advance(3599)
    assert await world.leasing.expire_leases() == 0
    (kept,), _ = await world.leasing.renew(METALD, [taken.lease_id], 60)
    assert kept.state is LeaseState.ACTIVE
