"""prepare: a leased root file system of 200 MB into a VM's directory, against `cp`.

Ours is PrepareAssets through assetmanagerd, as metald calls it, of an asset that was registered and
leased; the reference is `cp` of the same file into a directory beside it. They alternate in one
run.
That no bytes are copied shows in the placed file: it is the stored one's inode, one link more.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path

from benchmarks.frame import Benchmark, Outcome, median, spread
from benchmarks.uploading import staged_rootfs
from ironworks.gen.ironworks.assetmanagerd.v1 import asset_pb
from ironworks.gen.ironworks.assetmanagerd.v1.asset_connect import AssetServiceClient
from ironworks.model.errors import Internal
from ironworks.model.units import NS_PER_MS
from ironworks.runtime.clock import SystemClock
from ironworks.runtime.process import run
from ironworks.testkit.services import running

GOAL_MS = 20
ROOTFS_BYTES = 200_000_000
ROOTFS_BLOCKS = ROOTFS_BYTES // 512
TENANT = "tnt_bench"
_CLOCK = SystemClock()


class Prepared:
    """A leased asset, and directories of VMs to come."""

    def __init__(self, metald: AssetServiceClient, data_dir: Path, asset: asset_pb.Asset) -> None:
        self._metald = metald
        self._jails = data_dir / "jails"
        self._asset = asset
        kept = data_dir / "assets" / "objects" / "sha256"
        (self.stored,) = kept.glob(f"??/{asset.sha256}*")
        self._lease_id = ""
        self._count = 0
        self.inodes: set[int] = set()

    async def lease(self) -> None:
        """Take a lease, as metald does before it touches bytes."""
        request = asset_pb.AcquireLeaseRequest(
            asset_ids=[self._asset.asset_id], holder="vm_bench", ttl_seconds=3600
        )
        answer = await self._metald.acquire_lease(request)
        self._lease_id = answer.lease.lease_id if answer.lease is not None else ""

    def _jail(self) -> Path:
        self._count += 1
        path = self._jails / f"vm_{self._count}"
        path.mkdir(parents=True)
        return path

    async def ours(self) -> float:
        """Milliseconds of one PrepareAssets."""
        jail = self._jail()
        request = asset_pb.PrepareAssetsRequest(
            lease_id=self._lease_id,
            directory=str(jail),
            files=[asset_pb.PreparedFile(asset_id=self._asset.asset_id, file_name="rootfs")],
        )
        began_ns = _CLOCK.monotonic_ns()
        await self._metald.prepare_assets(request)
        took_ms = (_CLOCK.monotonic_ns() - began_ns) / NS_PER_MS
        stats = (jail / "rootfs").stat()
        if stats.st_size != ROOTFS_BYTES or stats.st_mode & 0o222:
            raise Internal("The placed file is not the stored one, read-only.")
        self.inodes.add(stats.st_ino)
        (jail / "rootfs").unlink()
        return took_ms

    async def reference(self) -> tuple[float, int]:
        """Milliseconds of one `cp`, and the 512-byte blocks that it took."""
        target = self._jail() / "rootfs"
        began_ns = _CLOCK.monotonic_ns()
        await run(["cp", str(self.stored), str(target)], timeout_seconds=120)
        took_ms = (_CLOCK.monotonic_ns() - began_ns) / NS_PER_MS
        fd = os.open(target, os.O_RDONLY)
        os.fsync(fd)  # blocks of the disk are given out when it is written
        blocks = os.fstat(fd).st_blocks
        os.close(fd)
        target.unlink()
        return took_ms, blocks


async def measure(quick: bool) -> Outcome:  # noqa: FBT001 - the frame's signature
    """Place and copy alternately."""
    with tempfile.TemporaryDirectory(prefix="iw-prepare-") as directory:
        data_dir = Path(directory)
        async with running(data_dir, ["assetmanagerd"]) as services:
            clients = services.clients("metald")
            metald = clients.of(AssetServiceClient, "assetmanagerd", tenant_id=TENANT)
            facts, name = await asyncio.to_thread(staged_rootfs, data_dir, ROOTFS_BYTES)
            answer = await metald.register_asset(
                asset_pb.RegisterAssetRequest(facts=facts, staged_name=name)
            )
            prepared = Prepared(metald, data_dir, answer.asset or asset_pb.Asset())
            await prepared.lease()
            await prepared.ours()
            ours: list[float] = []
            reference: list[tuple[float, int]] = []
            for _ in range(5 if quick else 25):
                ours += [await prepared.ours() for _ in range(4)]
                reference.append(await prepared.reference())
            is_stored = prepared.inodes == {prepared.stored.stat().st_ino}
    copies = [took_ms for took_ms, _ in reference]
    return Outcome(
        ours=median(ours),
        reference=median(copies),
        passed=median(ours) <= GOAL_MS and is_stored,
        details={
            "ours_spread": spread(ours),
            "reference_spread": spread(copies),
            "placed_file_is_the_stored_inode": is_stored,
            "blocks_copied": 0 if is_stored else ROOTFS_BLOCKS,
            "blocks_copied_by_cp": reference[-1][1],
        },
    )


BENCHMARK = Benchmark(
    name="prepare",
    unit="ms",
    goal=f"<= {GOAL_MS} ms, no bytes copied",
    measure=measure,
)
