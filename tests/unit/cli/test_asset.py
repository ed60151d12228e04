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
    for shown in ("the platform", "rootfs, squashfs", "cd" * 32, "app=web, tier=edge", "are gone"):
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


async def test_list_by_state_label_and_source(iron: Iron) -> None:
    words = ("--state", "in-use", "--state", "deleted", "--label", "a=b", "--source", "sha256:1")
    await iron("asset", "list", *words)
    request = iron.api.asked["ListAssets"][-1]
    assert isinstance(request, asset_pb.ListAssetsRequest)
    chosen = request.filter or asset_pb.AssetFilter()
    assert chosen.states == [asset_pb.AssetState.IN_USE, asset_pb.AssetState.DELETED]
    assert (chosen.labels, chosen.source_digest) == ({"a": "b"}, "sha256:1")
    await iron("asset", "list", "--state", "sold", status=2)


async def test_query_says_why(iron: Iron) -> None:
    done = await iron("asset", "query", "--kind", "rootfs", "--label", "a=b")
    for shown in (ASSET_ID, "The only one."):
        assert shown in done.out


async def test_history_and_watch_show_changes(iron: Iron) -> None:
    done = await iron("asset", "history", ASSET_ID)
    for shown in ("available → archived", "key_1", "not now"):
        assert shown in done.out
    await iron("asset", "history", "ast_none", status=66)
    done = await iron("asset", "watch", "--after", "p5", status=68)
    assert f"{ASSET_ID}  available → archived  not now" in done.out
    asked = [
        one.after
        for one in iron.api.asked["WatchAssets"]
        if isinstance(one, asset_pb.WatchAssetsRequest)
    ]
    assert asked == ["p5", "p7"], "where the first stream ended, the next one goes on"


async def test_by_hand(iron: Iron) -> None:
    for command, state in (
        ("archive", "archived"),
        ("restore", "available"),
        ("delete", "deleted"),
    ):
        assert state in (await iron("asset", command, ASSET_ID)).out
    request = iron.api.asked["ArchiveAsset"][-1]
    assert isinstance(request, asset_pb.ArchiveAssetRequest)
    assert request.asset_id == ASSET_ID


async def test_garbage_is_told_before_it_goes(iron: Iron) -> None:
    done = await iron("asset", "gc", "--dry-run", "--unused-seconds", "60")
    assert f"{ASSET_ID}  would go  Nobody has used it." in done.out
    assert "1 would be deleted (80.0 MiB), 2 kept." in done.err
    request = iron.api.asked["CollectGarbage"][-1]
    assert isinstance(request, asset_pb.CollectGarbageRequest)
    assert (request.dry_run, request.unused_seconds) == (True, 60)
    assert "deleted" in (await iron("asset", "gc")).out
    assert (await iron("asset", "gc", "--json")).json["kept_count"] == 2


async def test_repair_tells_what_it_found(iron: Iron) -> None:
    assert "agree" in (await iron("asset", "repair")).err
    iron.api.damage = "The bytes of this asset are gone."
    done = await iron("asset", "repair", "--dry-run")
    assert f"{ASSET_ID}  row without bytes: The bytes of this asset are gone." in done.out
    assert "row without bytes: 1" in done.err
    assert (await iron("asset", "repair", "--json")).json["counts"][0]["count"] == 1
