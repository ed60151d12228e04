from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from ironworks.assetmanagerd import store
from ironworks.assetmanagerd.decide import acquired
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
from ironworks.storage.sql import Database
from ironworks.testkit.assets import ACME, ensure_migrated

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
def database(database_url: str) -> Iterator[Database]:
    made = Database(database_url, order_by="asset_events")
    ensure_migrated(made.engine)
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
    events = await database.read(lambda c: store.list_events(c, "ast_1", PAGE, with_use=True))
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
    live = await database.read(
        lambda c: store.find_live(c, "tnt_acme", ASSET.sha256, ASSET.image_config)
    )
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


async def test_a_tenant_finds_the_platforms_as_if_nobody_used_them(database: Database) -> None:
    person = Who(actor="key_1", tenant_id="tnt_acme")
    used = replace(ASSET, state=AssetState.IN_USE, lease_count=1)
    theirs = replace(used, asset_id="ast_2", tenant_id="", sha256="1" * 64)
    for asset in (used, theirs):
        await database.write(lambda c, asset=asset: store.insert_asset(c, asset, "a"))
    for who, state, ids in (
        (person, AssetState.IN_USE, ["ast_1"]),
        (person, AssetState.AVAILABLE, ["ast_2"]),
        (ACME, AssetState.IN_USE, ["ast_2", "ast_1"]),
        (ACME, AssetState.AVAILABLE, []),
    ):
        query = AssetFilter(states=(state,))
        found = await database.read(
            lambda c, who=who, query=query: store.list_assets(c, who, query, PAGE)
        )
        assert [asset.asset_id for asset in found] == ids


async def test_the_key_of_positions_is_made_once(database: Database) -> None:
    assert await database.write(lambda c: store.position_key(c, b"first")) == b"first"
    assert await database.write(lambda c: store.position_key(c, b"second")) == b"first"


async def test_the_platforms_newest_of_each_kind_is_needed(database: Database) -> None:
    old = replace(ASSET, tenant_id="")
    new = replace(old, asset_id="ast_2", sha256="1" * 64)
    other = replace(old, asset_id="ast_3", sha256="2" * 64, architecture="arm64")
    mine = replace(ASSET, asset_id="ast_4", sha256="3" * 64)
    for asset in (old, new, other, mine):
        await database.write(lambda c, asset=asset: store.insert_asset(c, asset, "a"))
    needed = await database.read(store.needed_by_platform)
    assert needed == {"ast_2", "ast_3"}


async def test_what_is_not_the_callers_is_not_even_read(database: Database) -> None:
    platforms = replace(ASSET, asset_id="ast_2", tenant_id="", sha256="1" * 64)
    for asset in (ASSET, platforms):
        await database.write(lambda c, asset=asset: store.insert_asset(c, asset, "a"))
    stranger = Who(actor="x", tenant_id="tnt_evil")
    operator = Who(actor="x", sees_all=True)
    for who, seen in (
        (ACME, {"ast_1", "ast_2"}),
        (stranger, {"ast_2"}),
        (operator, {"ast_1", "ast_2"}),
    ):
        for wanted in (["ast_1", "ast_2", "ast_3"], ["ast_1"], ["ast_2"]):
            found = await database.read(
                lambda c, who=who, wanted=wanted: store.visible_assets(c, who, wanted)
            )
            assert found.keys() == seen.intersection(wanted)


async def test_leases_change_what_they_change_and_nothing_else(database: Database) -> None:
    await database.write(lambda c: store.insert_asset(c, ASSET, "a"))
    used = acquired(ASSET, 9)
    await database.write(lambda c: store.use_assets(c, [(ASSET, used)], reason="r", actor="metald"))
    assert used == replace(
        ASSET,
        state=AssetState.IN_USE,
        lease_count=1,
        updated_at_ns=9,
        last_used_at_ns=9,
        revision=2,
    )
    assert await database.read(lambda c: store.read_asset(c, "ast_1")) == used
    more = acquired(used, 10)
    await database.write(lambda c: store.use_assets(c, [(used, more)], reason="r", actor="metald"))
    with pytest.raises(Aborted):
        await database.write(
            lambda c: store.use_assets(c, [(used, more)], reason="r", actor="metald")
        )
    assert await database.read(lambda c: store.read_asset(c, "ast_1")) == more
    events = await database.read(lambda c: store.list_events(c, "ast_1", PAGE, with_use=True))
    assert [event.to_state.value for event in events] == ["available", "in_use"]


async def test_all_that_is_not_deleted_is_walked_in_pages(database: Database) -> None:
    for number, state in enumerate(AssetState):
        one = replace(ASSET, asset_id=f"ast_{number}", state=state, sha256=f"{number:064x}")
        await database.write(lambda c, one=one: store.insert_asset(c, one, "a"))
    seen: list[AssetState] = []
    after = ""
    while page := await database.read(lambda c, after=after: store.after_id(c, after, 2)):
        seen += [asset.state for asset in page]
        after = page[-1].asset_id
    assert seen == [state for state in AssetState if state is not AssetState.DELETED]
