"""What every backend of bytes has to do, asked of each of them alike."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from tests.conformance.assets.conftest import Place

from ironworks.assetmanagerd.bytes.place import open_below
from ironworks.assetmanagerd.bytes.place import place as put
from ironworks.assetmanagerd.types import PrepareMethod
from ironworks.model.errors import DataLoss

BODY = b"some bytes " * 1000
LARGE = os.urandom(9 << 20)
"""More than one part of an upload to a bucket."""


async def names(place: Place) -> list[str]:
    return [sha256 async for sha256 in place.kept.objects()]


@pytest.mark.parametrize("body", [b"x", BODY, LARGE], ids=["one byte", "small", "large"])
async def test_what_is_kept_is_there_intact_and_can_be_linked(place: Place, body: bytes) -> None:
    sha256 = await place.keep(body)
    assert await names(place) == [sha256]
    await place.kept.check(sha256, len(body))
    assert await place.kept.problem(sha256, len(body)) == ""
    async with place.kept.local(sha256, len(body)) as path:
        assert path.read_bytes() == body
        assert path.stat().st_mode & 0o777 == 0o444


async def test_the_same_bytes_again_are_one_object(place: Place) -> None:
    assert await place.keep(BODY) == await place.keep(BODY)
    assert len(await names(place)) == 1


async def test_many_keep_the_same_at_once(place: Place) -> None:
    files = [place.file(BODY, f"file{number}") for number in range(8)]
    await asyncio.gather(*(place.kept.keep(path, sha256, len(BODY)) for path, sha256 in files))
    assert await names(place) == [files[0][1]]
    assert await place.kept.problem(files[0][1], len(BODY)) == ""


async def test_what_is_removed_is_gone_and_that_can_be_repeated(place: Place) -> None:
    sha256, other = await place.keep(BODY), await place.keep(b"other")
    await place.kept.remove(sha256)
    await place.kept.remove(sha256)
    assert await names(place) == [other]
    with pytest.raises(DataLoss, match="gone"):
        await place.kept.check(sha256, len(BODY))
    with pytest.raises(DataLoss, match="gone"):
        async with place.kept.local(sha256, len(BODY)):
            pass
    assert "gone" in await place.kept.problem(sha256, len(BODY))


async def test_names_come_in_order_however_many(place: Place) -> None:
    kept = sorted([await place.keep(str(number).encode()) for number in range(30)])
    assert await names(place) == kept


async def test_bytes_that_were_lost(place: Place) -> None:
    sha256 = await place.keep(BODY)
    await place.lose(sha256)
    with pytest.raises(DataLoss, match="gone"):
        await place.kept.check(sha256, len(BODY))
    assert "gone" in await place.kept.problem(sha256, len(BODY))
    assert await place.keep(BODY) == sha256
    assert await place.kept.problem(sha256, len(BODY)) == ""


@pytest.mark.parametrize("harm", [BODY[:-1], BODY + b"x", b""], ids=["short", "long", "empty"])
async def test_bytes_of_another_length(place: Place, harm: bytes) -> None:
    sha256 = await place.keep(BODY)
    await place.harm(sha256, harm)
    with pytest.raises(DataLoss, match="damaged"):
        await place.kept.check(sha256, len(BODY))
    assert "damaged" in await place.kept.problem(sha256, len(BODY))


async def test_bytes_that_are_others_of_the_same_length(place: Place) -> None:
    sha256 = await place.keep(BODY)
    await place.harm(sha256, BODY[::-1])
    await place.kept.check(sha256, len(BODY))
    assert "SHA-256" in await place.kept.problem(sha256, len(BODY))
    await place.keep(BODY)
    assert await place.kept.problem(sha256, len(BODY)) == ""


async def test_an_asset_is_placed_by_link_and_outlives_its_removal(
    place: Place, tmp_path: Path
) -> None:
    sha256 = await place.keep(LARGE)
    jails = tmp_path / "jails"
    (jails / "vm_1").mkdir(parents=True)
    (jails / "vm_2").mkdir()
    for name in ("vm_1", "vm_2"):
        fd = open_below(jails, (name,))
        async with place.kept.local(sha256, len(LARGE)) as path:
            method = put(
                path, sha256=sha256, size_bytes=len(LARGE), directory_fd=fd, file_name="rootfs"
            )
        os.close(fd)
        assert method is PrepareMethod.HARD_LINK
    first, second = ((jails / name / "rootfs") for name in ("vm_1", "vm_2"))
    assert first.stat().st_ino == second.stat().st_ino
    assert first.stat().st_mode & 0o222 == 0
    await place.kept.remove(sha256)
    assert first.read_bytes() == LARGE


async def test_what_interrupted_work_left_is_removed_at_the_next_start(place: Place) -> None:
    sha256 = await place.keep(BODY)
    await place.keep(BODY)
    await place.kept.open()
    assert await place.kept.leftovers() == 0
    assert await names(place) == [sha256]
