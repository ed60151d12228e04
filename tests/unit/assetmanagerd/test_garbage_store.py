"""What goes, and what must not go with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
from sqlalchemy import Connection

from ironworks.assetmanagerd import garbage_store, lease_store, store
from ironworks.assetmanagerd.decide import acquired, let_go
from ironworks.assetmanagerd.types import (
    Asset,
    AssetEvent,
    AssetKind,
    AssetState,
    Lease,
    LeaseState,
)
from ironworks.model.pages import PageSpec
from ironworks.storage.sql import Database
from ironworks.testkit.assets import ensure_migrated

ASSET = Asset(
    asset_id="ast_1",
    tenant_id="tnt_acme",
    kind=AssetKind.ROOTFS,
    format=None,
    state=AssetState.AVAILABLE,
    size_bytes=10,
    sha256="0" * 64,
    labels={"app": "web"},
    created_at_ns=1,
    updated_at_ns=1,
)
THEIRS = replace(ASSET, asset_id="ast_2", tenant_id="tnt_other")
OTHER = replace(ASSET, asset_id="ast_3", sha256="3" * 64)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    made = Database(database_url, order_by="asset_events")
    ensure_migrated(made.engine)
    yield made
    made.close()


async def add(database: Database, *assets: Asset) -> None:
    for asset in assets:
        await database.write(lambda c, asset=asset: store.insert_asset(c, asset, "a"))


async def gone(database: Database, assets: Sequence[Asset], now_ns: int = 5) -> frozenset[str]:
    reasons = {asset.asset_id: "old" for asset in assets}
    return await database.write(
        lambda c: garbage_store.delete_assets(c, assets, reasons=reasons, actor="gc", now_ns=now_ns)
    )


async def history(database: Database, asset_id: str) -> list[AssetEvent]:
    return await database.read(
        lambda c: store.list_events(c, asset_id, PageSpec(size=100), with_use=True)
    )


async def test_collected_assets_are_tombstones_with_a_reason(database: Database) -> None:
    await add(database, ASSET, OTHER)
    assert await gone(database, [ASSET, OTHER]) == {ASSET.sha256, OTHER.sha256}
    tombstone = await database.read(lambda c: store.read_asset(c, "ast_1"))
    assert tombstone == replace(ASSET, state=AssetState.DELETED, updated_at_ns=5, revision=2)
    last = (await history(database, "ast_1"))[-1]
    assert (last.from_state, last.to_state) == (AssetState.AVAILABLE, AssetState.DELETED)
    assert (last.reason, last.actor, last.at_ns) == ("old", "gc", 5)
    await add(database, replace(ASSET, asset_id="ast_9"))


async def test_bytes_stay_while_another_owner_has_them(database: Database) -> None:
    await add(database, ASSET, THEIRS, OTHER)
    assert await gone(database, [ASSET, OTHER]) == {OTHER.sha256}
    assert await database.read(lambda c: garbage_store.doomed(c, "", 10, 9)) == [OTHER.sha256]
    assert await gone(database, [THEIRS]) == {ASSET.sha256}
    assert await gone(database, []) == frozenset()


async def test_bytes_are_doomed_only_when_nothing_stands_for_them(database: Database) -> None:
    await add(database, ASSET)
    assert not await database.write(lambda c: garbage_store.doom_if_orphaned(c, ASSET.sha256, 1))
    for _ in range(2):
        assert await database.write(lambda c: garbage_store.doom_if_orphaned(c, "f" * 64, 1))
    assert await database.read(lambda c: garbage_store.doomed(c, "", 10, 9)) == ["f" * 64]
    assert await database.read(lambda c: garbage_store.doomed(c, "f" * 64, 10, 9)) == []
    await database.write(lambda c: garbage_store.undoom(c, "f" * 64))
    assert await database.read(lambda c: garbage_store.doomed(c, "", 10, 9)) == []


async def test_only_validated_records_stand_for_bytes_that_must_be_there(
    database: Database,
) -> None:
    for number, state in enumerate(AssetState):
        one = replace(ASSET, asset_id=f"ast_{number}", state=state, sha256=f"{number:064x}")
        await add(database, one)
    live = await database.read(lambda c: garbage_store.live_objects(c, "", 100))
    assert live == {f"{number:064x}": 10 for number in (1, 2, 3)}
    assert await database.read(lambda c: garbage_store.live_objects(c, f"{2:064x}", 100)) == {
        f"{3:064x}": 10
    }


async def test_changes_by_leases_are_forgotten_and_others_are_not(database: Database) -> None:
    await add(database, ASSET)

    def change(c: Connection, decided: Callable[[Asset, int], Asset], at_ns: int) -> None:
        before = store.read_assets(c, ["ast_1"])["ast_1"]
        store.use_assets(c, [(before, decided(before, at_ns))], reason="r", actor="metald")

    for at_ns in (10, 20, 30):
        await database.write(lambda c, at=at_ns: change(c, acquired, at))
        await database.write(lambda c, at=at_ns: change(c, let_go, at))
    assert await database.write(lambda c: garbage_store.forget_events(c, 10, 100)) == 0
    assert await database.write(lambda c: garbage_store.forget_events(c, 30, 3)) == 3
    assert await database.write(lambda c: garbage_store.forget_events(c, 30, 3)) == 1
    assert [event.at_ns for event in await history(database, "ast_1")] == [1, 30, 30]


async def test_tombstones_go_with_their_history_once_no_lease_names_them(
    database: Database,
) -> None:
    await add(database, ASSET, OTHER)
    lease = Lease(
        lease_id="lse_1",
        tenant_id="tnt_acme",
        asset_ids=("ast_1",),
        owner="metald",
        holder="vm_1",
        purpose="",
        state=LeaseState.RELEASED,
        created_at_ns=1,
        expires_at_ns=2,
        ended_at_ns=2,
    )
    await database.write(lambda c: lease_store.insert_lease(c, lease))
    await gone(database, [ASSET], now_ns=5)
    assert await database.write(lambda c: garbage_store.forget_tombstones(c, 5, 10)) == 0
    assert await database.write(lambda c: garbage_store.forget_tombstones(c, 6, 10)) == 0
    assert await database.write(lambda c: lease_store.forget_leases(c, 3, 10)) == 1
    assert await database.write(lambda c: garbage_store.forget_tombstones(c, 6, 10)) == 1
    assert await database.read(lambda c: store.read_asset(c, "ast_1")) is None
    assert await history(database, "ast_1") == []
    assert await database.read(lambda c: store.read_asset(c, "ast_3")) == OTHER
