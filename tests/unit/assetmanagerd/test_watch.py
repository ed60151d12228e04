"""Who watches is told of all changes, in order, once, and of no one else's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from ironworks.assetmanagerd import garbage_store, watch
from ironworks.assetmanagerd.types import AssetFilter, AssetKind, AssetState, Who
from ironworks.assetmanagerd.watch import Change
from ironworks.model.errors import (
    FailedPrecondition,
    InvalidRequest,
    ResourceExhausted,
    Unavailable,
)
from ironworks.model.pages import PageSpec
from ironworks.runtime.tasks import Tasks
from ironworks.testkit.assets import ACME, EVIL, METALD, PLATFORM, AssetWorld, asset_world, squashfs

ALL = AssetFilter()
PERSON = Who(actor="key_1", tenant_id="tnt_acme")
OPERATOR = Who(actor="op", sees_all=True)


@pytest.fixture
async def world(tmp_path: Path, database_url: str) -> AsyncIterator[AssetWorld]:
    async with asset_world(tmp_path, database_url=database_url) as made:
        yield made


async def said(changes: AsyncGenerator[Change], world: AssetWorld, count: int) -> list[str]:
    """The next changes, as `to_state`."""
    told: list[str] = []
    async with Tasks() as tasks:

        async def read() -> None:
            while len(told) < count:
                change = await anext(changes)
                if change.event is not None:
                    assert change.sequence == change.event.sequence
                    told.append(change.event.to_state.value)

        reading = tasks.start(read(), name="read")
        while not reading.done():
            await world.watches.activate()
            await asyncio.sleep(0.01)
        await reading
    return told


async def begun(
    world: AssetWorld, who: Who = ACME, query: AssetFilter = ALL, after: int | None = None
) -> AsyncGenerator[Change]:
    changes = world.watches.changes(who, query, after)
    first = await anext(changes)
    assert first.event is None
    await world.watches.activate()
    return changes


async def test_changes_come_in_order_to_all_who_may_know(world: AssetWorld) -> None:
    mine, also_mine, theirs = [await begun(world, who) for who in (ACME, ACME, EVIL)]
    everything = await begun(world, OPERATOR)
    asset = await world.asset()
    platforms = await world.asset(squashfs(b"p"), PLATFORM, platform=True)
    lease, _ = await world.leasing.acquire(
        METALD, [asset.asset_id], holder="vm", purpose="", ttl_seconds=0, key=""
    )
    await world.leasing.release(METALD, lease.lease_id)
    own = ["registered", "available"]
    for changes in (mine, also_mine, everything):
        assert await said(changes, world, 6) == [*own, *own, "in_use", "available"]
    assert await said(theirs, world, 2) == own
    await world.asset(squashfs(b"evil"), EVIL)
    change = await next_change(theirs, world)
    assert change.asset is not None
    assert change.asset.tenant_id == EVIL.tenant_id
    assert platforms.asset_id != change.asset.asset_id
    for changes in (mine, also_mine, theirs, everything):
        await changes.aclose()
    assert world.watches.count == 0


async def anext_of(changes: AsyncGenerator[Change]) -> Change:
    return await anext(changes)


async def next_change(changes: AsyncGenerator[Change], world: AssetWorld) -> Change:
    async with Tasks() as tasks:
        waiting = tasks.start(anext_of(changes), name="next")
        while not waiting.done():
            await world.watches.activate()
            await asyncio.sleep(0.01)
        return await waiting


async def test_a_watch_is_resumed_where_it_was_left(world: AssetWorld) -> None:
    first = await begun(world)
    asset = await world.asset()
    assert await said(first, world, 1) == ["registered"]
    await first.aclose()
    await world.registry.archive(ACME, asset.asset_id, "", "")
    events = await world.registry.events(ACME, asset.asset_id, PageSpec(size=100))
    again = await begun(world, after=events[0].sequence)
    assert await said(again, world, 2) == ["available", "archived"]
    await again.aclose()


async def test_filters_apply_to_the_state_after_the_change(world: AssetWorld) -> None:
    kernels = await begun(world, query=AssetFilter(kind=AssetKind.KERNEL))
    archived = await begun(world, query=AssetFilter(states=(AssetState.ARCHIVED,)))
    asset = await world.asset()
    await world.registry.archive(ACME, asset.asset_id, "", "")
    assert await said(archived, world, 1) == ["archived"]
    await world.watches.activate()

    async with Tasks() as tasks:
        waiting = tasks.start(anext_of(kernels), name="kernels")
        await asyncio.sleep(0.05)
        assert not waiting.done()
        world.watches.close()
        with pytest.raises(Unavailable):
            await waiting


async def test_who_is_far_behind_gets_everything_once(
    world: AssetWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_PAGE", 3)
    monkeypatch.setattr(watch, "KEPT_EVENTS", 4)
    slow = await begun(world)
    asset = await world.asset()
    for _ in range(10):
        await world.registry.archive(ACME, asset.asset_id, "", "")
        await world.registry.restore(ACME, asset.asset_id, "")
        await world.watches.activate()
    expected = ["registered", "available", *["archived", "available"] * 10]
    assert await said(slow, world, 22) == expected
    await slow.aclose()


async def test_positions_that_cannot_be_are_refused(world: AssetWorld) -> None:
    asset = await world.asset()
    with pytest.raises(InvalidRequest, match="another history"):
        await begun(world, after=99)
    await world.leasing.acquire(
        METALD, [asset.asset_id], holder="vm", purpose="", ttl_seconds=1, key=""
    )
    await world.database.write(lambda c: garbage_store.forget_events(c, 2**62, 10))
    with pytest.raises(FailedPrecondition, match="watch from now on"):
        await begun(world, after=1)
    with pytest.raises(InvalidRequest):
        await begun(world, query=AssetFilter(sha256="x"))
    assert world.watches.count == 0


async def test_the_number_of_watches_is_bounded(
    world: AssetWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "MAX_TENANT_WATCHERS", 2)
    monkeypatch.setattr(watch, "MAX_WATCHERS", 3)
    open_ones = [await begun(world, who) for who in (ACME, ACME, EVIL)]
    for who in (ACME, EVIL):
        with pytest.raises(ResourceExhausted):
            await begun(world, who)
    await open_ones[0].aclose()
    open_ones.append(await begun(world, EVIL))
    for one in open_ones:
        await one.aclose()


async def test_a_watch_says_now_and_then_that_it_lives(
    world: AssetWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_BOOKMARK_SECONDS", 0.01)
    changes = await begun(world)
    assert await anext(changes) == Change(sequence=0)
    await changes.aclose()


async def test_of_the_platforms_assets_a_tenant_is_not_told_that_others_use_them(
    world: AssetWorld,
) -> None:
    mine, everything = await begun(world, PERSON), await begun(world, OPERATOR)
    kernel = await world.asset(squashfs(b"p"), PLATFORM, platform=True)
    lease, _ = await world.leasing.acquire(
        METALD, [kernel.asset_id], holder="vm", purpose="", ttl_seconds=0, key=""
    )
    await world.leasing.release(METALD, lease.lease_id)
    await world.asset(squashfs(b"a"), ACME)
    made = ["registered", "available"]
    assert await said(everything, world, 6) == [*made, "in_use", "available", *made]
    assert await said(mine, world, 4) == [*made, *made]
    for changes in (mine, everything):
        await changes.aclose()


async def test_what_others_do_moves_no_message_of_a_watch(
    world: AssetWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sign of life comes though there is always something new of somebody else."""
    monkeypatch.setattr(watch, "_BOOKMARK_SECONDS", 0.05)
    mine = await begun(world)
    async with Tasks() as tasks:
        waiting = tasks.start(anext_of(mine), name="next")
        while not waiting.done():
            asset = await world.asset(squashfs(b"evil"), EVIL)
            await world.registry.archive(EVIL, asset.asset_id, "", "")
            await world.registry.delete(EVIL, asset.asset_id, "", "")
            await world.watches.activate()
        assert (await waiting).event is None
    await mine.aclose()


async def test_a_stop_ends_all_watches_with_an_answer(world: AssetWorld) -> None:
    changes = await begun(world)
    world.watches.close()
    async with aclosing(changes):
        with pytest.raises(Unavailable, match="Watch again, after the last position"):
            await anext(changes)
