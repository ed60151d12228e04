"""The guest's init knocks, as Firecracker does for it."""

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from ironworks.metald.drivers.firecracker import channel as module
from ironworks.metald.drivers.firecracker.channel import ControlListener
from ironworks.metald.guest.control import MAX_CONNECTION_BYTES, Ended


async def knock(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(path)


@pytest.fixture
async def listener(tmp_path: Path) -> ControlListener:
    made = ControlListener()
    await made.open(tmp_path / "v_1024", os.getuid(), os.getgid())
    return made


async def test_a_guest_is_asked_and_heard(tmp_path: Path, listener: ControlListener) -> None:
    assert not listener.attached.is_set()
    reader, writer = await knock(tmp_path / "v_1024")
    assert await reader.readline() == b"status\n"
    writer.write(b"ready\nexited 3\n")
    async with asyncio.timeout(10):
        await listener.channel.ready.wait()
        while listener.channel.last_word is None:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0)
    assert listener.channel.last_word == Ended(status=3)
    await listener.close()
    assert await reader.read() == b""
    writer.close()


async def test_a_guest_that_comes_again_is_listened_to(
    tmp_path: Path, listener: ControlListener
) -> None:
    first_reader, first = await knock(tmp_path / "v_1024")
    assert await first_reader.readline() == b"status\n"
    second_reader, second = await knock(tmp_path / "v_1024")
    assert await second_reader.readline() == b"status\n"
    second.write(b"ready\n")
    async with asyncio.timeout(10):
        await listener.channel.ready.wait()
    assert listener.channel.connected
    listener.channel.send("stop")
    assert await second_reader.readline() == b"stop\n"
    await listener.close()
    for writer in (first, second):
        writer.close()


async def test_a_metald_that_starts_takes_the_place_over(
    tmp_path: Path, listener: ControlListener
) -> None:
    await listener.close()
    again = ControlListener()
    await again.open(tmp_path / "v_1024", os.getuid(), os.getgid())
    reader, writer = await knock(tmp_path / "v_1024")
    assert await reader.readline() == b"status\n"
    writer.close()
    await again.close()


async def test_a_flood_is_bounded_over_all_connections(
    tmp_path: Path, listener: ControlListener
) -> None:
    for _ in range(3):
        _, writer = await knock(tmp_path / "v_1024")
        with contextlib.suppress(OSError):
            for _ in range(MAX_CONNECTION_BYTES // 2048):
                writer.write(b"x" * 1024)
                await writer.drain()
        writer.close()
    async with asyncio.timeout(10):
        while listener.channel.connected:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0)
    await listener.close()


async def test_knocking_without_end_closes_the_door(
    tmp_path: Path, listener: ControlListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_CONNECTIONS", 3)
    open_writers: list[asyncio.StreamWriter] = []
    for _ in range(4):
        reader, writer = await knock(tmp_path / "v_1024")
        open_writers.append(writer)
        await reader.read(1)
    with pytest.raises(OSError, match="refused"):
        await knock(tmp_path / "v_1024")
    for writer in open_writers:
        writer.close()
    await listener.close()
