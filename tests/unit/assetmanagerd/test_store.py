from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ironworks.assetmanagerd import store
from ironworks.assetmanagerd.types import (
    Asset,
    AssetFilter,
    AssetFormat,
    AssetKind,
    AssetState,
    ImageConfig,
    Who,
)
from ironworks.model.errors import Aborted
from ironworks.model.pages import PageSpec
from ironworks.storage.migrate import upgrade
from ironworks.storage.sql import Database, sqlite_url
from ironworks.testkit.assets import ACME

ASSET = Asset(
    asset_id="ast_1",
    tenant_id="tnt_acme",
    kind=AssetKind.ROOTFS,
    format=AssetFormat.SQUASHFS,
    state=AssetState.AVAILABLE,
    size_bytes=10,
    sha256="0" * 64,
    media_type="m",
    architecture="amd64",
    source_digest="sha256:1",
    build_id="bld_1",
    image_config=ImageConfig(entrypoint=("/app",), env=("A=b",), labels={"x": "y"}),
    labels={"app": "web", "env": "prod"},
    staged_name="s",
    created_at_ns=1,
    updated_at_ns=1,
)
PAGE = PageSpec(size=10)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(sqlite_url(tmp_path / "assets.db"))
    upgrade(made.engine, "ironworks.assetmanagerd.migrations")
    yield made
    made.close()


async def test_an_asset_comes_back_whole(database: Database) -> None:
    await database.write(lambda c: store.insert_asset(c, ASSET, "builderd"))
    assert await database.read(lambda c: store.read_asset(c, "ast_1")) == ASSET
    assert await database.read(lambda c: store.read_asset(c, "ast_x")) is None
    bare = replace(ASSET, asset_id="ast_2", tenant_id="", format=None, image_config=None, labels={})
    await database.write(lambda c: store.insert_asset(c, bare, "builderd"))
    assert await database.read(lambda c: store.read_asset(c, "ast_2")) == bare


async def test_a_change_that_was_decided_on_an_old_record_is_refused(database: Database) -> None:
    await database.write(lambda c: store.insert_asset(c, ASSET, "builderd"))
    archived = replace(ASSET, state=AssetState.ARCHIVED)

    async def change() -> Asset:
        return await database.write(
            lambda c: store.change_asset(c, ASSET, archived, reason="r", actor="a", now_ns=9)
        )

    assert (await change()).revision == 2
    with pytest.raises(Aborted):
        await change()
    events = await database.read(lambda c: store.list_events(c, "ast_1", PAGE))
    assert [(event.reason, event.actor) for event in events] == [
        ("Registered.", "builderd"),
        ("r", "a"),
    ]


async def test_one_owner_cannot_have_the_same_bytes_twice(database: Database) -> None:
    await database.write(lambda c: store.insert_asset(c, ASSET, "a"))
    twin = replace(ASSET, asset_id="ast_2")
    with pytest.raises(Aborted):
        await database.write(lambda c: store.insert_asset(c, twin, "a"))
    others = replace(twin, tenant_id="tnt_evil")
    await database.write(lambda c: store.insert_asset(c, others, "a"))
    failed = replace(ASSET, asset_id="ast_3", state=AssetState.FAILED)
    await database.write(lambda c: store.insert_asset(c, failed, "a"))
    live = await database.read(lambda c: store.find_live(c, "tnt_acme", ASSET.sha256))
    assert live == ASSET


@pytest.mark.parametrize(
    ("query", "found"),
    [
        (AssetFilter(), True),
        (AssetFilter(kind=AssetKind.ROOTFS, format=AssetFormat.SQUASHFS), True),
        (AssetFilter(kind=AssetKind.KERNEL), False),
        (AssetFilter(format=AssetFormat.EXT4), False),
        (AssetFilter(labels={"app": "web"}), True),
        (AssetFilter(labels={"app": "web", "env": "prod"}), True),
        (AssetFilter(labels={"app": "web", "env": "test"}), False),
        (AssetFilter(source_digest="sha256:1"), True),
        (AssetFilter(source_digest="sha256:2"), False),
        (AssetFilter(architecture="arm64"), False),
        (AssetFilter(sha256="0" * 64), True),
        (AssetFilter(states=(AssetState.AVAILABLE, AssetState.IN_USE)), True),
        (AssetFilter(states=(AssetState.DELETED,)), False),
    ],
)
async def test_filters(database: Database, query: AssetFilter, *, found: bool) -> None:
    await database.write(lambda c: store.insert_asset(c, ASSET, "a"))
    listed = await database.read(lambda c: store.list_assets(c, ACME, query, PAGE))
    assert bool(listed) == found
    stranger = Who(actor="x", tenant_id="tnt_evil")
    assert await database.read(lambda c: store.list_assets(c, stranger, query, PAGE)) == []


async def test_bytes_are_doomed_only_when_nothing_stands_for_them(database: Database) -> None:
    await database.write(lambda c: store.insert_asset(c, ASSET, "a"))
    assert not await database.write(lambda c: store.doom_if_orphaned(c, ASSET.sha256, 1))
    for _ in range(2):
        assert await database.write(lambda c: store.doom_if_orphaned(c, "f" * 64, 1))
    assert await database.read(lambda c: store.doomed(c, 10)) == ["f" * 64]
    await database.write(lambda c: store.undoom(c, "f" * 64))
    assert await database.read(lambda c: store.doomed(c, 10)) == []


async def test_the_platforms_newest_of_each_kind_is_needed(database: Database) -> None:
    old = replace(ASSET, tenant_id="")
    new = replace(old, asset_id="ast_2", sha256="1" * 64)
    other = replace(old, asset_id="ast_3", sha256="2" * 64, architecture="arm64")
    mine = replace(ASSET, asset_id="ast_4", sha256="3" * 64)
    for asset in (old, new, other, mine):
        await database.write(lambda c, asset=asset: store.insert_asset(c, asset, "a"))
    needed = await database.read(store.needed_by_platform)
    assert needed == {"ast_2", "ast_3"}
