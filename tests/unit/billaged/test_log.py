from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ironworks.billaged import log as log_module
from ironworks.billaged.log import Kind, Log, Scan, frame, read_frames
from ironworks.model.errors import ResourceExhausted
from ironworks.runtime.tasks import Tasks


def make_log(directory: Path, *, segment_bytes: int = 4096, max_bytes: int = 1 << 20) -> Log:
    return Log(
        directory,
        segment_bytes=segment_bytes,
        max_bytes=max_bytes,
        checkpoint=lambda: b"state",
    )


def replayed(directory: Path) -> tuple[list[bytes], Log]:
    log = make_log(directory)
    ticks = [record.payload for record in log.replay() if record.kind == Kind.TICK]
    return ticks, log


async def written(directory: Path, count: int, *, segment_bytes: int = 4096) -> Log:
    log = make_log(directory, segment_bytes=segment_bytes)
    assert list(log.replay()) == []
    log.begin()
    for number in range(count):
        log.append(Kind.TICK, b"tick %d" % number)
        await log.sync()
    log.close()
    return log


def segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.log"))


async def test_what_was_synced_is_read_back_in_order(tmp_path: Path) -> None:
    await written(tmp_path, 20)
    ticks, log = replayed(tmp_path)
    assert ticks == [b"tick %d" % number for number in range(20)]
    assert log.scan.damaged == 0


async def test_what_was_only_appended_is_not_on_disk(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    list(log.replay())
    log.begin()
    log.append(Kind.TICK, b"never synced")
    log.close()
    assert replayed(tmp_path)[0] == []


@pytest.mark.parametrize("cut_bytes", [1, 5, 12, 15])
async def test_a_torn_tail_is_cut_off_and_the_log_goes_on(tmp_path: Path, cut_bytes: int) -> None:
    await written(tmp_path, 3)
    last = segments(tmp_path)[-1]
    os.truncate(last, last.stat().st_size - cut_bytes)
    ticks, log = replayed(tmp_path)
    assert ticks == [b"tick 0", b"tick 1"]
    assert log.scan.truncated_bytes > 0
    assert log.scan.damaged == 0
    log.begin()
    log.append(Kind.TICK, b"after")
    await log.sync()
    log.close()
    again, second = replayed(tmp_path)
    assert again == [b"tick 0", b"tick 1", b"after"]
    assert second.scan.truncated_bytes == 0


async def test_bit_rot_costs_one_record_and_is_counted(tmp_path: Path) -> None:
    await written(tmp_path, 5)
    path = segments(tmp_path)[0]
    content = bytearray(path.read_bytes())
    content[content.index(b"tick 2") + 1] ^= 1
    path.write_bytes(content)
    ticks, log = replayed(tmp_path)
    assert ticks == [b"tick 0", b"tick 1", b"tick 3", b"tick 4"]
    assert log.scan.damaged == 1


async def test_a_damaged_end_of_an_old_segment_is_damage_and_not_a_torn_tail(
    tmp_path: Path,
) -> None:
    await written(tmp_path, 3)
    log = make_log(tmp_path)
    list(log.replay())
    log.begin()
    log.close()
    first = segments(tmp_path)[0]
    os.truncate(first, first.stat().st_size - 2)
    ticks, log = replayed(tmp_path)
    assert ticks == [b"tick 0", b"tick 1"]
    assert log.scan.damaged == 1
    assert log.scan.truncated_bytes == 0


async def test_segments_begin_with_a_checkpoint_and_old_ones_can_go(tmp_path: Path) -> None:
    await written(tmp_path, 40, segment_bytes=200)
    log = make_log(tmp_path, segment_bytes=200)
    firsts: dict[int, int] = {}
    for record in log.replay():
        firsts.setdefault(record.segment, record.kind)
    assert len(firsts) > 3
    assert set(firsts.values()) == {Kind.CHECKPOINT}
    log.begin()
    assert log.drop_before(log.segment - 1) == log.segment - 2
    assert log.segments == 2
    assert log.size_bytes == sum(path.stat().st_size for path in segments(tmp_path))
    assert log.drop_before(log.segment + 100) == 1, "the segment that is written stays"
    log.close()


async def test_all_who_wait_share_one_flush(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushes = 0
    real = os.fdatasync

    def counted(descriptor: int) -> None:
        nonlocal flushes
        flushes += 1
        real(descriptor)

    log = make_log(tmp_path)
    list(log.replay())
    log.begin()
    monkeypatch.setattr(log_module.os, "fdatasync", counted)

    async def one(number: int) -> None:
        log.append(Kind.TICK, b"%d" % number)
        await log.sync()

    await asyncio.gather(*[one(number) for number in range(50)])
    log.close()
    assert flushes < 5
    assert len(replayed(tmp_path)[0]) == 50


async def test_nobody_writes_while_one_who_was_cancelled_still_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = make_log(tmp_path)
    assert list(log.replay()) == []
    log.begin()
    may_go_on = threading.Event()

    def slow(descriptor: int, data: bytes) -> None:
        may_go_on.wait(10)
        os.write(descriptor, data)

    monkeypatch.setattr(log_module, "_write_all", slow)
    async with Tasks() as tasks:
        log.append(Kind.TICK, b"once")
        gone = tasks.start(log.sync(), name="gone")
        await asyncio.sleep(0.05)
        gone.cancel()
        log.append(Kind.TICK, b"twice")
        other = tasks.start(log.sync(), name="other")
        await asyncio.sleep(0.05)
        may_go_on.set()
        await other
        assert gone.cancelled()
    log.close()
    assert replayed(tmp_path)[0] == [b"once", b"twice"]


async def test_a_full_disk_refuses_and_what_was_appended_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = make_log(tmp_path)
    list(log.replay())
    log.begin()
    log.append(Kind.TICK, b"first")
    await log.sync()
    real = os.write

    def half(descriptor: int, data: bytes) -> int:
        if len(data) < 10:
            raise OSError(errno.ENOSPC, "full")
        return real(descriptor, data[:10])

    monkeypatch.setattr(log_module.os, "write", half)
    log.append(Kind.TICK, b"second")
    with pytest.raises(ResourceExhausted):
        await log.sync()
    monkeypatch.setattr(log_module.os, "write", real)
    log.append(Kind.TICK, b"third")
    await log.sync()
    log.close()
    ticks, again = replayed(tmp_path)
    assert ticks == [b"first", b"second", b"third"]
    assert again.scan.damaged == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "disk"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(directory)], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


@pytest.mark.root
async def test_a_disk_that_fills_and_is_freed_loses_nothing_that_was_acknowledged(
    small_disk: Path,
) -> None:
    log = make_log(small_disk / "log")
    list(log.replay())
    log.begin()
    (small_disk / "other").write_bytes(bytes(64 * 1024))
    acknowledged: list[bytes] = []

    async def write(number: int) -> bool:
        payload = b"%d " % number * 200
        log.append(Kind.TICK, payload)
        acknowledged.append(payload)
        try:
            await log.sync()
        except ResourceExhausted:
            return False
        return True

    # Segments of 4 KiB: it is full now while a record, now while a segment's head is written.
    refusals = [number for number in range(120) if not await write(number)]
    assert refusals
    (small_disk / "other").unlink()
    assert await write(120)
    log.close()
    ticks, again = replayed(small_disk / "log")
    assert ticks == acknowledged
    assert again.scan.damaged == 0
    assert len(segments(small_disk / "log")) > 1


@pytest.mark.root
async def test_a_disk_without_room_at_the_start_is_said_so_and_nothing_is_left(
    small_disk: Path,
) -> None:
    (small_disk / "other").write_bytes(bytes(128 * 1024))
    log = make_log(small_disk / "log")
    list(log.replay())
    with pytest.raises(ResourceExhausted, match="cannot be written"):
        log.begin()
    assert not list(small_disk.glob("log/*"))


@pytest.mark.root
async def test_a_directory_that_cannot_be_written_is_said_so(small_disk: Path) -> None:
    await written(small_disk / "log", 3)
    with (small_disk / "log" / "000000000001.log").open("ab") as torn:
        torn.write(frame(Kind.TICK, b"never acknowledged")[:-1])
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(ResourceExhausted, match="cannot be written: Read-only"):
        list(make_log(small_disk / "other").replay())
    log = make_log(small_disk / "log")
    assert [one.payload for one in log.replay()][1:] == [b"tick 0", b"tick 1", b"tick 2"]
    with pytest.raises(ResourceExhausted, match="cannot be written: Read-only"):
        log.begin()


async def test_the_bounds_of_the_log_refuse_before_anything_is_appended(tmp_path: Path) -> None:
    log = make_log(tmp_path, max_bytes=100)
    list(log.replay())
    log.begin()
    log.ensure_room(10)
    log.append(Kind.TICK, b"x" * 200)
    with pytest.raises(ResourceExhausted, match="bound"):
        log.ensure_room(1)
    large = make_log(tmp_path / "other")
    list(large.replay())
    large.begin()
    with pytest.raises(ResourceExhausted):
        large.ensure_room(log_module.MAX_RECORD_BYTES + 1)
    large.close()
    log.close()


def test_a_length_that_lies_does_not_swallow_what_follows() -> None:
    lying = bytearray(frame(Kind.TICK, b"lies"))
    lying[4:8] = (1 << 20).to_bytes(4, "little")
    scan = Scan()
    frames = list(read_frames(bytes(lying) + frame(Kind.TICK, b"true"), scan))
    assert [payload for _, payload, _ in frames] == [b"true"]
    assert scan.damaged == 1
