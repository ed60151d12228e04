"""Assets and their leases."""

from __future__ import annotations

import pytest

from ironworks.gen.ironworks.assetmanagerd.v1 import asset_pb
from ironworks.model.errors import NotFound
from ironworks.sdk import AsyncIronworks
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
