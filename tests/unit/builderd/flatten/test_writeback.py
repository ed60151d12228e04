"""Writing back early changes nothing of what is written, and needs no file."""

from __future__ import annotations

import asyncio
from pathlib import Path

from ironworks.builderd.flatten.writeback import written_back


async def test_what_is_written_meanwhile_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "rootfs"
    with written_back(str(path)):
        await asyncio.sleep(0.05)  # there is no file yet
        path.write_bytes(b"x" * 100_000)
        await asyncio.sleep(0.05)
    assert path.read_bytes() == b"x" * 100_000
