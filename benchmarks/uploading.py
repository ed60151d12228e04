"""Large root file systems, and streams of them, for benchmarks of assets."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

from protobuf import Oneof

from ironworks.gen.ironworks.assetmanagerd.v1 import asset_pb
from ironworks.model.units import MIB
from ironworks.testkit.assets import squashfs


def write_rootfs(path: Path, size_bytes: int) -> asset_pb.AssetFacts:
    """Write what passes for a root file system, other bytes each time; what is true of it."""
    digest, block = hashlib.sha256(), os.urandom(MIB)
    with path.open("wb") as file:
        piece = squashfs(os.urandom(64))
        while piece:
            digest.update(piece)
            file.write(piece)
            piece = block[: size_bytes - file.tell()]
        file.flush()
        os.fsync(file.fileno())
    return asset_pb.AssetFacts(
        kind=asset_pb.AssetKind.ROOTFS, sha256=digest.hexdigest(), size_bytes=size_bytes
    )


def staged_rootfs(data_dir: Path, size_bytes: int) -> tuple[asset_pb.AssetFacts, str]:
    """A root file system in the staging area, as builderd leaves it; its facts and its name."""
    name = "bench"
    return write_rootfs(data_dir / "assets" / "staging" / name, size_bytes), name


async def upload_messages(
    facts: asset_pb.AssetFacts, path: Path, key: str
) -> AsyncIterator[asset_pb.UploadAssetRequest]:
    """The stream of a client that sends a file."""
    start = asset_pb.UploadStart(facts=facts, idempotency_key=key)
    yield asset_pb.UploadAssetRequest(part=Oneof("start", start))
    with path.open("rb") as file:
        while chunk := file.read(MIB):
            yield asset_pb.UploadAssetRequest(part=Oneof("chunk", chunk))
