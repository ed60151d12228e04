from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ironworks.builderd.types import BuildState
from ironworks.builderd.uploads import MAX_CHUNK_BYTES, Start
from ironworks.model.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    ResourceExhausted,
)
from ironworks.sdk.archives import open_archive
from ironworks.testkit.builds import TENANT, BuildWorld, build_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[BuildWorld]:
    async with build_world(tmp_path, max_upload_bytes_per_tenant=1 << 20) as made:
        yield made


async def pieces(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def start(data: bytes, offset: int = 0, key: str = "k", size: int = 0) -> Start:
    sha256 = hashlib.sha256(data).hexdigest()
    return Start(sha256=sha256, size_bytes=size or len(data), offset_bytes=offset, key=key)


async def test_an_upload_is_resumed_where_it_broke_and_built(world: BuildWorld) -> None:
    layout = Path(world.image().removeprefix("oci:").partition(":")[0])
    data = b"".join(open_archive(layout).chunks(0))
    with pytest.raises(FailedPrecondition, match=f"after 700 of {len(data)}"):
        await world.uploads.receive(TENANT, start(data), pieces(data[:700]))
    found, here = await world.uploads.find(TENANT, "k")
    assert (here, found.complete) == (700, False)
    with pytest.raises(NotFound, match="finished"):
        await world.create(f"upload:{found.upload_id}")
    with pytest.raises(FailedPrecondition, match="700 bytes of the archive are here"):
        await world.uploads.receive(TENANT, start(data, 5), pieces(data))
    whole = await world.uploads.receive(TENANT, start(data, 700), pieces(data[700:]))
    assert whole.complete
    again = await world.uploads.receive(TENANT, start(data), pieces())
    assert again.upload_id == whole.upload_id
    build = await world.build(f"upload:{whole.upload_id}")
    assert build.state is BuildState.COMPLETED
    with pytest.raises(NotFound):
        await world.create(f"upload:{whole.upload_id}", tenant_id="tnt_evil")


async def test_what_is_not_what_was_claimed_is_refused_and_gone(world: BuildWorld) -> None:
    claimed = start(b"right")
    with pytest.raises(InvalidRequest, match="SHA-256"):
        await world.uploads.receive(TENANT, claimed, pieces(b"wrong"))
    with pytest.raises(NotFound):
        await world.uploads.find(TENANT, "k")
    assert list(world.settings.uploads_dir.iterdir()) == []
    with pytest.raises(InvalidRequest, match="More than"):
        await world.uploads.receive(TENANT, claimed, pieces(b"rightrightright"))
    assert await world.uploads.receive(TENANT, claimed, pieces(b"right"))
    with pytest.raises(AlreadyExists):
        await world.uploads.receive(TENANT, start(b"other"), pieces(b"other"))


@pytest.mark.parametrize(
    ("given", "chunks"),
    [
        (Start(sha256="x", size_bytes=1, offset_bytes=0, key="k"), []),
        (start(b"x", offset=-1), []),
        (start(b"x", size=1 << 40), []),
        (start(b"x", key=""), []),
        (start(b"x"), [b""]),
        (start(b"x" * (MAX_CHUNK_BYTES - 1)), [b"x" * (MAX_CHUNK_BYTES + 1)]),
    ],
)
async def test_bad_uploads(world: BuildWorld, given: Start, chunks: list[bytes]) -> None:
    with pytest.raises(InvalidRequest):
        await world.uploads.receive(TENANT, given, pieces(*chunks))


async def test_the_room_of_a_tenant_is_bounded_and_comes_back(tmp_path: Path) -> None:
    async with build_world(tmp_path, max_upload_bytes_per_tenant=9, upload_ttl_seconds=60) as world:
        await world.uploads.receive(TENANT, start(b"123456"), pieces(b"123456"))
        with pytest.raises(ResourceExhausted, match="6 are taken"):
            await world.uploads.receive(TENANT, start(b"abcdef", key="l"), pieces(b"abcdef"))
        assert await world.uploads.sweep() == 0
        assert await world.uploads.used_bytes(TENANT) == 6
