from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ironworks.assetmanagerd.decide import Event
from ironworks.assetmanagerd.types import Asset, AssetFilter, AssetKind, AssetState, Who
from ironworks.model.errors import FailedPrecondition, InvalidRequest, NotFound, PermissionDenied
from ironworks.model.pages import PageSpec
from ironworks.testkit.assets import (
    ACME,
    EVIL,
    METALD,
    PLATFORM,
    AssetWorld,
    asset_world,
    squashfs,
)

DAY = 86_400


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[AssetWorld]:
    async with asset_world(tmp_path) as made:
        yield made


async def hold(world: AssetWorld, asset: Asset) -> str:
    lease, _ = await world.leasing.acquire(
        METALD, [asset.asset_id], holder="vm", purpose="", ttl_seconds=3600, key=""
    )
    return lease.lease_id


async def test_the_way_of_an_asset_by_hand_is_kept(world: AssetWorld) -> None:
    asset = await world.asset()
    with pytest.raises(FailedPrecondition, match="Archive it first"):
        await world.registry.delete(ACME, asset.asset_id, "", "")
    await world.registry.archive(ACME, asset.asset_id, "not now", "a")
    again = await world.registry.archive(ACME, asset.asset_id, "not now", "a")
    assert again.state is AssetState.ARCHIVED
    await world.registry.restore(ACME, asset.asset_id, "")
    await world.registry.archive(ACME, asset.asset_id, "", "")
    deleted = await world.registry.delete(ACME, asset.asset_id, "old", "")
    assert deleted.state is AssetState.DELETED
    assert await world.registry.delete(ACME, asset.asset_id, "old", "") == deleted
    assert not world.has(asset.sha256)
    events = await world.registry.events(ACME, asset.asset_id, PageSpec(size=100))
    assert [(event.to_state.value, event.reason) for event in events] == [
        ("registered", "Registered."),
        ("available", "The bytes are what was claimed."),
        ("archived", "not now"),
        ("available", "Restored."),
        ("archived", "Archived."),
        ("deleted", "old"),
    ]


async def test_what_is_leased_cannot_go(world: AssetWorld) -> None:
    asset = await world.asset()
    lease_id = await hold(world, asset)
    for refused in (world.registry.archive, world.registry.delete):
        with pytest.raises(FailedPrecondition, match="in_use"):
            await refused(ACME, asset.asset_id, "", "")
    await world.clock.advance(30 * DAY)
    assert not any(one.collected for one in await world.registry.collect(dry_run=False))
    assert world.has(asset.sha256)
    await world.leasing.release(METALD, lease_id)
    await world.registry.archive(ACME, asset.asset_id, "", "")


async def test_others_assets_cannot_be_changed(world: AssetWorld) -> None:
    mine = await world.asset(squashfs(b"1"))
    platforms = await world.asset(squashfs(b"2"), PLATFORM, platform=True)
    with pytest.raises(NotFound):
        await world.registry.archive(EVIL, mine.asset_id, "", "")
    with pytest.raises(PermissionDenied):
        await world.registry.archive(EVIL, platforms.asset_id, "", "")
    with pytest.raises(InvalidRequest):
        await world.registry.archive(ACME, mine.asset_id, "x" * 300, "")


async def test_identical_bytes_stay_until_the_last_owner_has_gone(world: AssetWorld) -> None:
    mine, theirs = await world.asset(), await world.asset(who=EVIL)
    for who, asset, there in ((ACME, mine, True), (EVIL, theirs, False)):
        await world.registry.archive(who, asset.asset_id, "", "")
        await world.registry.delete(who, asset.asset_id, "", "")
        assert world.has(asset.sha256) is there
    assert (await world.asset()).state is AssetState.AVAILABLE


async def test_garbage_collection(world: AssetWorld) -> None:
    old = await world.asset(squashfs(b"old"))
    kernel = await world.asset(squashfs(b"platform"), PLATFORM, platform=True)
    await world.clock.advance(6 * DAY)
    young = await world.asset(squashfs(b"young"))
    await world.clock.advance(1 * DAY)
    told = await world.registry.collect(dry_run=True)
    assert {one.asset_id: one.collected for one in told} == {
        old.asset_id: True,
        kernel.asset_id: False,
        young.asset_id: False,
    }
    assert all(one.reason for one in told)
    assert world.has(old.sha256)
    done = await world.registry.collect(dry_run=False)
    assert [one.asset_id for one in done if one.collected] == [old.asset_id]
    assert done[0].freed_bytes == old.size_bytes
    assert not world.has(old.sha256)
    tombstone = await world.registry.get(ACME, old.asset_id)
    assert tombstone.state is AssetState.DELETED
    assert world.has(young.sha256)
    with pytest.raises(InvalidRequest):
        await world.registry.collect(dry_run=True, unused_seconds=1)


async def test_bytes_that_were_listed_for_removal_are_kept_if_wanted_again(
    world: AssetWorld,
) -> None:
    asset = await world.asset()
    await world.registry.archive(ACME, asset.asset_id, "", "")
    # The record is deleted, and the process dies before the bytes are removed.
    by_hand = world.registry._by_hand  # pyright: ignore[reportPrivateUsage]
    await by_hand(ACME, asset.asset_id, Event.DELETED, "crash", "")
    again = await world.asset()
    assert again.asset_id != asset.asset_id
    await world.registry.remove_doomed()
    assert world.has(again.sha256)


async def test_lists_and_pages(world: AssetWorld) -> None:
    made: list[Asset] = []
    for number in range(5):
        await world.clock.advance(1)
        made.append(await world.asset(squashfs(bytes([number]))))
    await world.asset(squashfs(b"theirs"), EVIL)
    first = await world.registry.page(ACME, AssetFilter(), PageSpec(size=3))
    assert [one.asset_id for one in first] == [one.asset_id for one in made[:0:-1]]
    rest = await world.registry.page(
        ACME, AssetFilter(), PageSpec(size=3, after=(first[2].asset_id,))
    )
    assert [one.asset_id for one in rest] == [one.asset_id for one in made[1::-1]]
    none = AssetFilter(kind=AssetKind.KERNEL)
    assert await world.registry.page(ACME, none, PageSpec(size=3)) == []
    everything = await world.registry.page(
        Who(actor="op", sees_all=True), AssetFilter(), PageSpec(size=100)
    )
    assert len(everything) == 6


async def test_the_newest_own_asset_is_chosen_else_the_platforms(world: AssetWorld) -> None:
    query = AssetFilter(kind=AssetKind.ROOTFS)
    with pytest.raises(NotFound):
        await world.registry.query(ACME, query)
    platforms = await world.asset(squashfs(b"p"), PLATFORM, platform=True)
    assert (await world.registry.query(ACME, query))[0] == platforms
    await world.clock.advance(1)
    own = await world.asset(squashfs(b"own"))
    await world.clock.advance(1)
    newest = await world.asset(squashfs(b"newest"))
    chosen, because, count = await world.registry.query(ACME, query)
    assert (chosen.asset_id, count) == (newest.asset_id, 3)
    assert "Newest of the tenant's own" in because
    await world.registry.archive(ACME, newest.asset_id, "", "")
    assert (await world.registry.query(ACME, query))[0].asset_id == own.asset_id


async def test_verify_reads_the_bytes(world: AssetWorld) -> None:
    asset = await world.asset()
    assert (await world.registry.verify(ACME, asset.asset_id))[1] == ""
    path = world.kept_file(asset.sha256)
    path.chmod(0o600)
    path.write_bytes(bytes(asset.size_bytes))
    damaged, problem = await world.registry.verify(ACME, asset.asset_id)
    assert problem == damaged.damage != ""
    with pytest.raises(FailedPrecondition, match="damaged"):
        await hold(world, asset)
    with pytest.raises(NotFound):
        await world.registry.query(ACME, AssetFilter())


async def test_the_sweep_removes_what_nobody_will_take(world: AssetWorld) -> None:
    world.stage(b"abandoned", "abandoned")
    world.stage(b"fresh", "fresh")
    old_ns = world.clock.now_ns() - 2 * DAY * 10**9
    os.utime(world.files.staging.path / "abandoned", ns=(old_ns, old_ns))
    swept = await world.registry.sweep()
    assert swept["staged"] == 1
    assert list(world.files.staging.names()) == ["fresh"]
    asset = await world.asset()
    await world.leasing.release(METALD, await hold(world, asset))
    await world.clock.advance(2 * DAY)
    assert (await world.registry.sweep())["leases"] == 1
