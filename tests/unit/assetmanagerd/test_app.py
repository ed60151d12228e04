from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Connection

from ironworks.assetmanagerd import store
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
async def world(tmp_path: Path, database_url: str) -> AsyncIterator[AssetWorld]:
    async with asset_world(tmp_path, database_url=database_url) as made:
        yield made


async def hold(world: AssetWorld, asset: Asset) -> str:
    lease, _ = await world.leasing.acquire(
        METALD, [asset.asset_id], holder="vm", purpose="", ttl_seconds=3600, key=""
    )
    return lease.lease_id


async def test_a_tenants_history_of_a_platforms_asset_has_no_use(world: AssetWorld) -> None:
    kernel = await world.asset(who=PLATFORM, platform=True)
    await world.leasing.acquire(
        METALD, [kernel.asset_id], holder="vm_of_others", purpose="", ttl_seconds=0, key=""
    )
    person, page = Who(actor="key_1", tenant_id="tnt_evil"), PageSpec(size=100)
    for who, states in (
        (person, ["registered", "available"]),
        (METALD, ["registered", "available", "in_use"]),
    ):
        events = await world.registry.events(who, kernel.asset_id, page)
        assert [event.to_state.value for event in events] == states


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
    assert (await world.registry.collect(dry_run=False)).collected_count == 0
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
    assert {one.asset_id: one.collected for one in told.verdicts} == {
        old.asset_id: True,
        kernel.asset_id: False,
        young.asset_id: False,
    }
    assert all(one.reason for one in told.verdicts)
    assert world.has(old.sha256)
    done = await world.registry.collect(dry_run=False)
    assert [one.asset_id for one in done.collected] == [old.asset_id]
    assert (done.collected_count, done.kept_count, done.freed_bytes) == (1, 2, old.size_bytes)
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
    path = world.kept_file(asset.stored_as)
    path.chmod(0o600)
    path.write_bytes(bytes(asset.size_bytes))
    damaged, problem = await world.registry.verify(ACME, asset.asset_id)
    assert problem == damaged.damage != ""
    with pytest.raises(FailedPrecondition, match="damaged"):
        await hold(world, asset)
    with pytest.raises(NotFound):
        await world.registry.query(ACME, AssetFilter())


async def test_a_pass_looks_at_all_there_is(world: AssetWorld) -> None:
    """Those that cannot go must not hide those that can, however many they are."""
    held = await world.asset(squashfs(b"held"))
    await hold(world, held)

    def fill(connection: Connection) -> None:
        for number in range(1200):
            state = AssetState.ARCHIVED if number < 1100 else AssetState.AVAILABLE
            one = replace(
                held,
                asset_id=f"ast_{number:04}",
                state=state,
                sha256=f"{number:064x}",
                object_name="",
                lease_count=0,
            )
            store.insert_asset(connection, one, "test")

    await world.database.write(fill)
    await world.clock.advance(30 * DAY)
    told = await world.registry.collect(dry_run=True)
    assert (told.collected_count, told.kept_count) == (100, 1101)
    assert len(told.verdicts) == 1000
    assert "It is archived; only a person deletes it." in {one.reason for one in told.kept}
    done = await world.registry.collect(dry_run=False)
    assert (done.collected_count, done.freed_bytes) == (100, 100 * held.size_bytes)
    assert await world.registry.remove_doomed() == 0


async def test_the_sweep_forgets_what_is_old(world: AssetWorld) -> None:
    asset = await world.asset()
    await world.leasing.release(METALD, await hold(world, asset))
    await world.clock.advance(2 * DAY)
    assert await world.registry.sweep() == {"leases": 1, "keys": 0, "events": 0, "tombstones": 0}
    await world.registry.archive(ACME, asset.asset_id, "", "key")
    await world.registry.delete(ACME, asset.asset_id, "", "")
    await world.clock.advance(31 * DAY)
    assert await world.registry.sweep() == {"leases": 0, "keys": 1, "events": 2, "tombstones": 1}
    with pytest.raises(NotFound):
        await world.registry.get(ACME, asset.asset_id)


@pytest.mark.parametrize("asset_id", ["", "ast_", "nul\0", "ast_1\0", "../x", "ast_" + "1" * 99])
async def test_what_cannot_be_an_id_is_as_unknown_as_any_other(
    world: AssetWorld, asset_id: str
) -> None:
    with pytest.raises(NotFound, match="not known here"):
        await world.registry.get(ACME, asset_id)
    with pytest.raises(NotFound, match="not known here"):
        await world.registry.archive(ACME, asset_id, "", "")
    with pytest.raises(NotFound, match="not known here"):
        await world.leasing.acquire(
            METALD, [asset_id], holder="vm", purpose="", ttl_seconds=0, key=""
        )


@pytest.mark.parametrize(
    "query",
    [
        AssetFilter(labels={"a\0": "b"}),
        AssetFilter(labels={"": "b"}),
        AssetFilter(source_digest="x" * 300),
        AssetFilter(architecture="\0"),
        AssetFilter(sha256="short"),
    ],
)
async def test_a_filter_that_nothing_satisfies_is_refused(
    world: AssetWorld, query: AssetFilter
) -> None:
    with pytest.raises(InvalidRequest):
        await world.registry.page(ACME, query, PageSpec(size=3))
    with pytest.raises(InvalidRequest):
        await world.registry.query(ACME, query)
