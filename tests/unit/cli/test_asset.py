"""`iron asset`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ironworks.gen.ironworks.assetmanagerd.v1 import asset_pb
from ironworks.testkit.fakenouns import ASSET_ID

if TYPE_CHECKING:
    from conftest import Iron


async def test_list(iron: Iron) -> None:
    done = await iron("asset", "list", "--kind", "rootfs")
    for shown in (ASSET_ID, "squashfs", "in use", "80.0 MiB"):
        assert shown in done.out
    request = iron.api.asked["ListAssets"][-1]
    assert isinstance(request, asset_pb.ListAssetsRequest)
    assert request.filter is not None
    assert request.filter.kind is asset_pb.AssetKind.ROOTFS
    await iron("asset", "list", "--kind", "floppy", status=2)


async def test_get(iron: Iron) -> None:
    done = await iron("asset", "get", ASSET_ID)
    for shown in ("the platform", "rootfs, squashfs", "cd" * 32):
        assert shown in done.out
    assert (await iron("asset", "get", ASSET_ID, "--json")).json["lease_count"] == 1
    await iron("asset", "get", "ast_none", status=66)
