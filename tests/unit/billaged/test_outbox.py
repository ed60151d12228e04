from __future__ import annotations

import errno
from pathlib import Path

import pytest

from ironworks.billaged import outbox as outbox_module
from ironworks.billaged.outbox import Outbox
from ironworks.billaged.types import SealedWindow
from ironworks.gen.ironworks.aggregatord.v1.batch_pb import SubmitBatchRequest
from ironworks.model.errors import DataLoss, ResourceExhausted, Unavailable
from ironworks.model.ids import derived_id

WINDOW = SealedWindow(
    window_id="win_1", vm_id="vm_1", boot_epoch=1, first_seq=0, last_seq=1, sample_count=2
)


def batch(name: str) -> SubmitBatchRequest:
    return SubmitBatchRequest(batch_id=derived_id("bat", name), payload=name.encode() * 10)


def opened(directory: Path) -> Outbox:
    outbox = Outbox(directory)
    outbox.open(lambda _: (WINDOW,))
    return outbox


async def test_a_batch_waits_until_it_is_released_and_acknowledged(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    one = batch("one")
    await outbox.put(one, (WINDOW,), 7)
    assert outbox.waiting == ()
    outbox.release(one.batch_id)
    assert [waiting.batch_id for waiting in outbox.waiting] == [one.batch_id]
    assert outbox.load(one.batch_id) == one
    outbox.acknowledge(one.batch_id)
    outbox.acknowledge("bat_unknown")
    assert outbox.waiting == ()
    assert list(tmp_path.glob("*.batch")) == []


async def test_the_next_run_finds_what_waits_in_order(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    names = ["c", "a", "b"]
    for name in names:
        await outbox.put(batch(name), (), 0)
    (tmp_path / "half.tmp").write_bytes(b"half")
    (tmp_path / "other.batch").write_bytes(b"not ours")
    again = opened(tmp_path)
    assert [one.batch_id for one in again.waiting] == [batch(name).batch_id for name in names]
    assert again.waiting[0].windows == (WINDOW,)
    assert again.size_bytes > 0
    assert not (tmp_path / "half.tmp").exists()
    await again.put(batch("d"), (), 0)
    again.release(batch("d").batch_id)
    assert again.waiting[-1].batch_id == batch("d").batch_id


@pytest.mark.parametrize("position", [0, 10, -1])
async def test_a_damaged_batch_is_set_aside_and_never_sent(tmp_path: Path, position: int) -> None:
    outbox = opened(tmp_path)
    await outbox.put(batch("one"), (), 0)
    outbox.release(batch("one").batch_id)
    [path] = tmp_path.glob("*.batch")
    content = bytearray(path.read_bytes())
    content[position] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(DataLoss):
        outbox.load(batch("one").batch_id)
    assert outbox.waiting == ()
    assert (tmp_path / "refused" / path.name).exists()
    path.write_bytes(content)
    assert opened(tmp_path).waiting == ()


async def test_a_batch_that_was_removed_is_told_once_and_forgotten(tmp_path: Path) -> None:
    outbox, one = opened(tmp_path), batch("one")
    await outbox.put(one, (), 0)
    outbox.release(one.batch_id)
    next(tmp_path.glob("*.batch")).unlink()
    with pytest.raises(DataLoss, match="removed"):
        outbox.load(one.batch_id)
    assert outbox.waiting == ()


@pytest.mark.parametrize(
    ("number", "kind", "waits"), [(errno.EIO, DataLoss, 0), (errno.EMFILE, Unavailable, 1)]
)
async def test_a_batch_that_cannot_be_read_keeps_no_other_from_being_sent(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    kind: type[Exception],
    waits: int,
) -> None:
    outbox, one = opened(tmp_path), batch("one")
    await outbox.put(one, (), 0)
    outbox.release(one.batch_id)

    def refuse(_path: Path) -> bytes:
        raise OSError(number, "refused")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(kind):
        outbox.load(one.batch_id)
    assert len(outbox.waiting) == waits


async def test_a_disk_that_refuses_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = opened(tmp_path)

    def refuse(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(outbox_module.os, "fsync", refuse)
    with pytest.raises(ResourceExhausted):
        await outbox.put(batch("one"), (), 0)
    assert outbox.waiting == ()
    assert [path.name for path in tmp_path.iterdir()] == ["refused"]


def test_a_directory_that_cannot_be_made_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "outbox").write_text("a file is in the way")
    with pytest.raises(ResourceExhausted, match="cannot be stored"):
        opened(tmp_path / "outbox")
