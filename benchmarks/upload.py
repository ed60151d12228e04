"""upload: 1 GiB as a stream into assetmanagerd, against hashing and writing the same bytes.

Ours is UploadAsset over loopback from a client in another process, until the asset is AVAILABLE:
sent, hashed, written, flushed to the disk, validated, put in place. The reference reads the same
file, hashes it, writes it and flushes it to the disk, in one process. They alternate in one run.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
from pathlib import Path

from benchmarks.frame import Benchmark, Outcome, median, spread
from benchmarks.uploading import upload_messages, write_rootfs
from ironworks.gen.ironworks.assetmanagerd.v1 import asset_pb
from ironworks.gen.ironworks.assetmanagerd.v1.asset_connect import AssetServiceClient
from ironworks.model.errors import Internal
from ironworks.model.units import GIB, MIB, NS_PER_MS
from ironworks.runtime.clock import SystemClock
from ironworks.testkit.services import Services, running

GOAL_RATIO = 1.3
CHUNK_BYTES = 4 * MIB
UPLOAD_SECONDS = 280.0
TENANT = "tnt_bench"
_CLOCK = SystemClock()


def hash_and_write(source: Path, target: Path) -> str:
    """What has to be done with bytes, and no more; answers their SHA-256."""
    digest = hashlib.sha256()
    with source.open("rb") as reading, target.open("wb") as writing:
        while chunk := reading.read(CHUNK_BYTES):
            digest.update(chunk)
            writing.write(chunk)
        writing.flush()
        os.fsync(writing.fileno())
    return digest.hexdigest()


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def pair(
    services: Services, directory: Path, size_bytes: int, number: int
) -> tuple[float, float, float]:
    """Milliseconds of ours and of the reference, and CPU seconds of assetmanagerd."""
    source, target = directory / "source", directory / "target"
    facts = await asyncio.to_thread(write_rootfs, source, size_bytes)
    clients = services.clients("metald")
    client = clients.of(
        AssetServiceClient, "assetmanagerd", tenant_id=TENANT, timeout_seconds=UPLOAD_SECONDS
    )

    async def ours() -> float:
        began_ns = _CLOCK.monotonic_ns()
        done = await client.upload_asset(upload_messages(facts, source, facts.sha256))
        took_ms = (_CLOCK.monotonic_ns() - began_ns) / NS_PER_MS
        if done.asset is None or done.asset.state is not asset_pb.AssetState.AVAILABLE:
            raise Internal("The uploaded asset is not available.")
        return took_ms

    async def reference() -> float:
        began_ns = _CLOCK.monotonic_ns()
        sha256 = await asyncio.to_thread(hash_and_write, source, target)
        took_ms = (_CLOCK.monotonic_ns() - began_ns) / NS_PER_MS
        if sha256 != facts.sha256:
            raise Internal("The reference read other bytes.")
        target.unlink()
        return took_ms

    pid = services.processes["assetmanagerd"].pid
    before = cpu_seconds(pid)
    if number % 2:
        reference_ms, ours_ms = await reference(), await ours()
    else:
        ours_ms, reference_ms = await ours(), await reference()
    cpu = cpu_seconds(pid) - before
    (kept,) = (directory / "assets" / "objects" / "sha256").glob(f"??/{facts.sha256}*")
    kept.unlink()  # room for the next
    return ours_ms, reference_ms, cpu


async def measure(quick: bool) -> Outcome:  # noqa: FBT001 - the frame's signature
    """Upload and write alternately; every second pair in the other order."""
    size_bytes = GIB // 4 if quick else GIB
    with tempfile.TemporaryDirectory(prefix="iw-upload-") as directory:
        async with running(Path(directory), ["assetmanagerd"]) as services:
            pairs = [
                await pair(services, Path(directory), size_bytes, number)
                for number in range(3 if quick else 7)
            ]
    ours, reference, cpu = ([one[at] for one in pairs] for at in range(3))
    ratio = median(ours) / median(reference)
    return Outcome(
        ours=median(ours),
        reference=median(reference),
        passed=ratio <= GOAL_RATIO,
        details={
            "size_bytes": size_bytes,
            "ours_spread": spread(ours),
            "reference_spread": spread(reference),
            "assetmanagerd_cpu_seconds": round(median(cpu), 2),
        },
    )


BENCHMARK = Benchmark(
    name="upload",
    unit="ms",
    goal=f"ratio <= {GOAL_RATIO}",
    measure=measure,
)
