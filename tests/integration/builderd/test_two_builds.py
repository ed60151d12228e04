"""Two builds at once stay within their memory, and neither waits for the other."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from ironworks.builderd.cgroup import BuildGroups, BuildLimits
from ironworks.builderd.flatten.plan import Flattened, Layer, Limits, Plan
from ironworks.builderd.sandbox import run_flatten
from ironworks.model.errors import ResourceExhausted
from ironworks.model.units import MIB
from ironworks.runtime.cgroup_layout import read_layout
from ironworks.runtime.clock import SystemClock
from ironworks.runtime.settings import tag_of
from ironworks.testkit import images
from ironworks.testkit.images import File

WRITER_BYTES = 256 * MIB
"""What sqfstar is told to use at most."""


def groups(place: Path, memory_bytes: int) -> BuildGroups:
    limits = BuildLimits(memory_bytes=memory_bytes, processors=2, process_count=64)
    return BuildGroups(read_layout(), tag_of(place), limits, SystemClock())


async def build(place: Path, name: str, memory_bytes: int) -> Flattened:
    """A layer of 80 MB that does not compress, and of 5,000 files."""
    scratch = place / name
    scratch.mkdir()
    noise = hashlib.shake_256(name.encode()).digest(16_000)
    files = [File(name=f"d/{n}", data=b"%d" % n + noise) for n in range(5000)]
    layer = images.Layer(tar=images.make_tar(files), compression="")
    blob = place / f"{name}.blob"
    blob.write_bytes(layer.tar)
    digest = f"sha256:{hashlib.sha256(layer.tar).hexdigest()}"
    plan = Plan(
        layers=(Layer(path="/blobs/0", digest=digest, size_bytes=len(layer.tar), diff_id=digest),),
        output="/scratch/rootfs",
        scratch="/scratch",
        limits=Limits(free_bytes=0),
    )
    return await run_flatten(
        plan,
        blobs=[blob],
        scratch=scratch,
        on_step=lambda _step, _done, _total: None,
        groups=groups(place, memory_bytes),
    )


@pytest.mark.root
async def test_two_at_once_need_256_mib_each_beyond_the_writers_own(tmp_path: Path) -> None:
    made = await asyncio.gather(
        *(build(tmp_path, name, WRITER_BYTES + 256 * MIB) for name in ("one", "two"))
    )
    assert {one.file_count for one in made} == {5001}
    one, two = (tmp_path / name / "rootfs" for name in ("one", "two"))
    assert one.read_bytes() != two.read_bytes()


@pytest.mark.root
async def test_a_build_that_needs_more_than_it_has_says_so(tmp_path: Path) -> None:
    with pytest.raises(ResourceExhausted, match="memory that a build has"):
        await build(tmp_path, "small", 24 * MIB)
