"""FIFOs that are always drained."""

import asyncio
import fcntl
import os
from pathlib import Path

import pytest

from ironworks.metald.drivers.firecracker.fifo import FIFO_BYTES, DrainedFifo, make_fifo

F_GETPIPE_SZ = 1032


async def test_whatever_comes_is_taken_and_writers_may_come_and_go(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    make_fifo(path, os.getuid(), os.getgid())
    taken = bytearray()
    fifo = DrainedFifo(path, taken.extend)
    for text in (b"one", b"two"):
        descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        os.write(descriptor, text)
        os.close(descriptor)
    async with asyncio.timeout(10):
        while bytes(taken) != b"onetwo":  # noqa: ASYNC110 - no event
            await asyncio.sleep(0)
    fifo.close()
    fifo.close()
    fifo.drain()


async def test_there_is_room_for_what_comes_while_nobody_reads(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    make_fifo(path, os.getuid(), os.getgid())
    taken = bytearray()
    writer = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    DrainedFifo(path, taken.extend).close()
    if os.geteuid() == 0:
        assert fcntl.fcntl(writer, F_GETPIPE_SZ) == FIFO_BYTES
    os.write(writer, b"while away")
    fifo = DrainedFifo(path, taken.extend)
    fifo.drain()
    fifo.close()
    os.close(writer)
    assert bytes(taken) == b"while away"


async def test_what_is_no_fifo_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("secret")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name in ("file", "link", "none"):
        with pytest.raises(OSError, match=r"file|directory|links"):
            DrainedFifo(tmp_path / name, bytearray().extend)
