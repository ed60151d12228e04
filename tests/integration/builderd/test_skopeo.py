"""Archives that are compressed, taken apart for real."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from ironworks.builderd.sources.skopeo import Skopeo
from ironworks.model.errors import InvalidRequest


async def inflate(archive: Path, *, file_bytes: int = 1 << 30) -> Path:
    scratch = archive.parent / f"scratch-{file_bytes}"
    scratch.mkdir()
    skopeo = Skopeo(file_bytes=file_bytes)
    return await skopeo.inflate(archive, scratch=scratch, timeout_seconds=60)


async def test_an_archive_is_as_large_unpacked_as_a_blob_may_be(tmp_path: Path) -> None:
    archive = tmp_path / "bomb.tar.gz"
    archive.write_bytes(gzip.compress(bytes(3 << 20)))
    inflated = await inflate(archive, file_bytes=3 << 20)
    assert inflated.read_bytes() == bytes(3 << 20)
    with pytest.raises(InvalidRequest, match=r"bomb.tar.gz has more than 3145727 bytes"):
        await inflate(archive, file_bytes=(3 << 20) - 1)


async def test_one_that_is_cut_off_is_refused_without_saying_where_it_is(tmp_path: Path) -> None:
    archive = tmp_path / "cut.tar.gz"
    archive.write_bytes(gzip.compress(bytes(range(256)) * 99)[:-50])
    with pytest.raises(InvalidRequest, match=r"cut.tar.gz cannot be read") as caught:
        await inflate(archive)
    assert str(tmp_path) not in caught.value.message
