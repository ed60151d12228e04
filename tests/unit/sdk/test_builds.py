"""Builds."""

from __future__ import annotations

from pathlib import Path

from ironworks.gen.ironworks.builderd.v1 import build_pb
from ironworks.sdk import AsyncIronworks, archives
from ironworks.testkit.fakeapi import FakeApi
from ironworks.testkit.fakenouns import ASSET_ID, BUILD_ID, LOG_LINES


async def test_get_and_list(api: FakeApi, client: AsyncIronworks) -> None:
    build = await client.builds.get(BUILD_ID)
    assert build.result is not None
    assert build.result.asset_id == ASSET_ID
    page = await client.builds.list(image_digest="sha256:x")
    assert [one.build_id for one in page] == [BUILD_ID]
    request = api.asked["ListBuilds"][-1]
    assert isinstance(request, build_pb.ListBuildsRequest)
    assert request.image_digest == "sha256:x"


async def test_logs(client: AsyncIronworks) -> None:
    lines = [line.text async for line in client.builds.logs(BUILD_ID, follow=True)]
    assert tuple(lines) == LOG_LINES


async def test_create_says_what_is_wanted(api: FakeApi, client: AsyncIronworks) -> None:
    await client.builds.create(
        "docker.io/library/app",
        rootfs_format=build_pb.RootfsFormat.EXT4,
        priority=build_pb.BuildPriority.HIGH,
        timeout_seconds=60,
        force=True,
    )
    request = api.asked["CreateBuild"][-1]
    assert isinstance(request, build_pb.CreateBuildRequest)
    assert (request.format, request.priority) == (
        build_pb.RootfsFormat.EXT4,
        build_pb.BuildPriority.HIGH,
    )
    assert (request.timeout_seconds, request.force) == (60, True)
    assert request.idempotency_key


async def test_watch_cancel_delete_and_figures(client: AsyncIronworks) -> None:
    states = [build.state.name async for build in client.builds.watch(BUILD_ID)]
    assert states == ["QUEUED", "COMPLETED"]
    assert (await client.builds.cancel(BUILD_ID)).state is build_pb.BuildState.CANCELLED
    await client.builds.delete(BUILD_ID)
    assert (await client.builds.stats()).completed_count == 7
    assert (await client.builds.quota()).running_builds == 1


async def test_an_upload_goes_on_where_its_stream_broke(
    api: FakeApi, client: AsyncIronworks, tmp_path: Path
) -> None:
    path = tmp_path / "app.tar"
    path.write_bytes(b"x" * (archives.CHUNK_BYTES + 5))
    told: list[int] = []
    reference = await client.builds.upload(path, progress=lambda done, _: told.append(done))
    assert reference.startswith("upload:upl_")
    assert told == [archives.CHUNK_BYTES, archives.CHUNK_BYTES + 5]
    # The same bytes are not sent again.
    told.clear()
    assert await client.builds.upload(path, progress=lambda done, _: told.append(done)) == reference
    assert told == []
    assert len(api.asked["GetImageUpload"]) == 2
