"""`iron asset`."""

from __future__ import annotations

from pathlib import Path
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


async def test_upload(iron: Iron, tmp_path: Path) -> None:
    path = tmp_path / "rootfs.squashfs"
    path.write_bytes(b"bytes" * 100)
    done = await iron("asset", "upload", str(path), "--kind", "rootfs", "--label", "a=b")
    assert ASSET_ID in done.out
    assert "500 B of 500 B" in done.err
    again = await iron("asset", "upload", str(path), "--kind", "rootfs", "--label", "a=b", "--json")
    assert again.json["asset"]["asset_id"] == ASSET_ID
    keys = {
        one.idempotency_key
        for one in iron.api.asked["GetUpload"]
        if isinstance(one, asset_pb.GetUploadRequest)
    }
    assert len(keys) == 1
    await iron("asset", "upload", str(path), status=2)
    await iron("asset", "upload", str(path), "--kind", "rootfs", "--label", "a", status=65)
    await iron("asset", "upload", str(tmp_path / "no"), "--kind", "rootfs", status=65)


async def test_verify(iron: Iron) -> None:
    done = await iron("asset", "verify")
    assert f"{ASSET_ID}  intact" in done.out
    assert "1 assets are intact" in done.err
    iron.api.damage = "The stored bytes have another SHA-256."
    done = await iron("asset", "verify", ASSET_ID, status=73)
    assert f"{ASSET_ID}  The stored bytes have another SHA-256." in done.out
    assert "1 of 1 assets are damaged" in done.err
    done = await iron("asset", "verify", ASSET_ID, "--json", status=73)
    assert '"intact": false' in done.out
    await iron("asset", "verify", "ast_none", status=66)
