"""Assets and their leases."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ironworks.gen.ironworks.assetmanagerd.v1 import asset_pb
from ironworks.model.errors import (
    FailedPrecondition,
    Internal,
    InvalidRequest,
    IronError,
    NotFound,
    Unavailable,
)
from ironworks.sdk import AsyncIronworks, assets
from ironworks.testkit.fakeapi import FakeApi
from ironworks.testkit.fakenouns import ASSET_ID


async def test_get_list_and_leases(api: FakeApi, client: AsyncIronworks) -> None:
    assert (await client.assets.get(ASSET_ID)).lease_count == 1
    chosen = asset_pb.AssetFilter(kind=asset_pb.AssetKind.ROOTFS)
    assert [one.asset_id for one in await client.assets.list(chosen=chosen)] == [ASSET_ID]
    leases = await client.assets.leases(state=asset_pb.LeaseState.ACTIVE, asset_id=ASSET_ID)
    assert leases[0].asset_ids == [ASSET_ID]
    request = api.asked["ListLeases"][-1]
    assert isinstance(request, asset_pb.ListLeasesRequest)
    assert (request.state, request.asset_id) == (asset_pb.LeaseState.ACTIVE, ASSET_ID)
    with pytest.raises(NotFound):
        await client.assets.get("ast_none")


async def test_an_upload_goes_on_where_it_broke(
    api: FakeApi, client: AsyncIronworks, tmp_path: Path
) -> None:
    path = tmp_path / "rootfs"
    path.write_bytes(os.urandom(3_000_000))
    api.fail("UploadAsset", Unavailable("It broke."))
    told: list[int] = []
    done = await client.assets.upload(
        path,
        asset_pb.AssetKind.ROOTFS,
        labels={"b": "1", "a": "2"},
        progress=lambda sent, _: told.append(sent),
    )
    assert done.asset is not None
    assert done.asset.asset_id == ASSET_ID
    # The chunk that had arrived when it broke was not sent again.
    sizes = [
        len(one.part.value)
        for one in api.asked["UploadAsset"]
        if isinstance(one, asset_pb.UploadAssetRequest)
        and one.part is not None
        and one.part.field == "chunk"
    ]
    assert sum(sizes) == 3_000_000
    assert told[-1] == 3_000_000


async def test_an_upload_that_gets_nowhere_is_given_up(
    api: FakeApi, client: AsyncIronworks, tmp_path: Path
) -> None:
    (tmp_path / "rootfs").write_bytes(b"x")
    api.fail("GetUpload", Unavailable("It is down."), times=100)
    with pytest.raises(Unavailable, match="down"):
        await client.assets.upload(tmp_path / "rootfs", asset_pb.AssetKind.ROOTFS)
    with pytest.raises(InvalidRequest, match="cannot be read"):
        await client.assets.upload(tmp_path / "absent", asset_pb.AssetKind.ROOTFS)


async def test_verify(api: FakeApi, client: AsyncIronworks) -> None:
    assert (await client.assets.verify(ASSET_ID)).intact
    api.damage = "The bytes of this asset are gone."
    found = await client.assets.verify(ASSET_ID)
    assert (found.intact, found.problem) == (False, api.damage)


@pytest.mark.parametrize("error", [Unavailable("It stops."), Internal("stream error received")])
async def test_a_broken_watch_goes_on_where_it_was_left(
    api: FakeApi, client: AsyncIronworks, error: IronError
) -> None:
    api.fail("WatchAssets", error, times=2)
    watch = client.assets.watch(after="p5")
    assert [(await anext(watch)).position for _ in range(2)] == ["p6", "p7"]
    # What a watch cannot mend ends it.
    with pytest.raises(FailedPrecondition, match="no longer reaches"):
        await anext(watch)
    asked = [
        one.after
        for one in api.asked["WatchAssets"]
        if isinstance(one, asset_pb.WatchAssetsRequest)
    ]
    assert asked == ["p5", "p5", "p5", "p7"]


async def test_a_watch_of_a_platform_that_stays_away_says_where_to_go_on(
    api: FakeApi, client: AsyncIronworks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assets, "MAX_BROKEN_STREAMS", 2)
    api.fail("WatchAssets", Unavailable("away"), times=1000)
    with pytest.raises(Unavailable, match="away") as error:
        await anext(client.assets.watch(after="p5"))
    assert error.value.hint == "Watch again, after p5."


async def test_a_watch_that_is_silent_for_too_long_is_begun_again(
    api: FakeApi, client: AsyncIronworks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assets, "MAX_BROKEN_STREAMS", 2)
    monkeypatch.setattr(assets, "SILENCE_SECONDS", 0.0)
    with pytest.raises(Unavailable, match="every stream ends"):
        await anext(client.assets.watch(after="p5"))
