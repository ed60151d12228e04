"""The whole service over each backend: from an upload to a VM's directory, and back."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from protobuf import Oneof

from ironworks.gen.ironworks.assetmanagerd.v1 import asset_pb as pb
from ironworks.gen.ironworks.assetmanagerd.v1.asset_connect import AssetServiceClient
from ironworks.model.errors import FailedPrecondition
from ironworks.model.units import MIB
from ironworks.testkit.assets import squashfs
from ironworks.testkit.seaweed import ACCESS_KEY_ID, SECRET_ACCESS_KEY, Seaweed
from ironworks.testkit.services import Services, running

BODY = squashfs(os.urandom(10 * MIB))
FACTS = pb.AssetFacts(
    kind=pb.AssetKind.ROOTFS, sha256=hashlib.sha256(BODY).hexdigest(), size_bytes=len(BODY)
)


@pytest.fixture(params=["directory", "bucket"])
async def services(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Services]:
    env = {"IRONWORKS_MIN_FREE_BYTES": "0"}
    if request.param == "bucket":
        server: Seaweed = request.getfixturevalue("s3")
        (tmp_path / "secret").write_text(SECRET_ACCESS_KEY)
        env |= {
            "IRONWORKS_ASSET_BUCKET": server.bucket().name,
            "IRONWORKS_ASSET_BUCKET_ENDPOINT": server.endpoint,
            "IRONWORKS_ASSET_BUCKET_PREFIX": "some/where",
            "IRONWORKS_ASSET_BUCKET_ACCESS_KEY_ID": ACCESS_KEY_ID,
            "IRONWORKS_ASSET_BUCKET_SECRET_KEY_FILE": str(tmp_path / "secret"),
        }
    async with running(tmp_path, ["assetmanagerd"], env) as made:
        yield made


async def parts(body: bytes, offset: int = 0) -> AsyncIterator[pb.UploadAssetRequest]:
    start = pb.UploadStart(facts=FACTS, idempotency_key="key", offset_bytes=offset)
    yield pb.UploadAssetRequest(part=Oneof("start", start))
    for at in range(offset, len(body), MIB):
        yield pb.UploadAssetRequest(part=Oneof("chunk", body[at : at + MIB]))


async def test_from_upload_to_two_vms_with_a_kill_in_between(services: Services) -> None:
    metald = services.clients("metald").of(
        AssetServiceClient, "assetmanagerd", tenant_id="tnt_acme", timeout_seconds=60
    )
    gateway = services.clients("gatewayd").of(
        AssetServiceClient, "assetmanagerd", tenant_id="tnt_acme", timeout_seconds=60
    )
    half = len(BODY) // 2
    with pytest.raises(FailedPrecondition, match="ended at"):
        await metald.upload_asset(parts(BODY[:half]))
    await services.end("assetmanagerd", signal.SIGKILL)
    await services.start("assetmanagerd")
    stands = await metald.get_upload(pb.GetUploadRequest(idempotency_key="key"))
    assert stands.offset_bytes == half
    uploaded = (await metald.upload_asset(parts(BODY, half))).asset
    assert uploaded is not None
    assert uploaded.state is pb.AssetState.AVAILABLE
    verified = await gateway.verify_asset(pb.VerifyAssetRequest(asset_id=uploaded.asset_id))
    assert (verified.intact, verified.problem) == (True, "")
    leased = await metald.acquire_lease(
        pb.AcquireLeaseRequest(asset_ids=[uploaded.asset_id], holder="vm")
    )
    assert leased.lease is not None
    inodes: set[int] = set()
    for name in ("vm_1", "vm_2"):
        jail = services.settings.data_dir / "jails" / name
        jail.mkdir(parents=True)
        placed = await metald.prepare_assets(
            pb.PrepareAssetsRequest(
                lease_id=leased.lease.lease_id,
                directory=str(jail),
                files=[pb.PreparedFile(asset_id=uploaded.asset_id, file_name="rootfs")],
            )
        )
        assert placed.files[0].method is pb.PrepareMethod.HARD_LINK
        assert (jail / "rootfs").read_bytes() == BODY
        inodes.add((jail / "rootfs").stat().st_ino)
    assert len(inodes) == 1
    log = (services.settings.data_dir / "assetmanagerd.log").read_text()
    assert SECRET_ACCESS_KEY not in log
