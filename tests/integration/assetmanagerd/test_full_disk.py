"""A disk that fills in the middle of an upload: a clear answer; it goes on once there is room."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from ironworks.assetmanagerd.types import AssetState
from ironworks.model.errors import ResourceExhausted
from ironworks.model.units import MIB
from ironworks.testkit.assets import ACME, asset_world, facts, squashfs

BODY = squashfs(os.urandom(24 * MIB))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A data directory with 40 MiB."""
    directory = tmp_path / "data"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", directory], check=True)
    yield directory
    subprocess.run(["umount", "-l", directory], check=True)


@pytest.mark.root
async def test_a_disk_that_fills_during_an_upload(small_disk: Path) -> None:
    filler = small_disk / "filler"

    async def until_full() -> AsyncIterator[bytes]:
        for at in range(0, len(BODY), MIB):
            if at == 10 * MIB:
                await asyncio.to_thread(filler.write_bytes, bytes(20 * MIB))
            yield BODY[at : at + MIB]

    async def rest(at: int) -> AsyncIterator[bytes]:
        yield BODY[at:]

    async with asset_world(small_disk) as world:
        with pytest.raises(ResourceExhausted, match="no room on the disk"):
            await world.intake.upload(
                ACME, facts(BODY), upload_id="", key="k", offset_bytes=0, chunks=until_full()
            )
        stands = (await world.intake.get_upload(ACME, "", "k")).offset_bytes
        assert 0 < stands < len(BODY)
        assert await world.kept() == []
        with pytest.raises(ResourceExhausted, match="no room for"):
            await world.intake.upload(
                ACME, facts(BODY), upload_id="", key="k", offset_bytes=stands, chunks=rest(stands)
            )
        filler.unlink()
        asset, _ = await world.intake.upload(
            ACME, facts(BODY), upload_id="", key="k", offset_bytes=stands, chunks=rest(stands)
        )
        assert asset.state is AssetState.AVAILABLE
        assert await world.files.kept.problem(asset.stored_as, len(BODY)) == ""
        assert world.files.staging.names() == {}
