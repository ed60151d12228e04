"""Builds."""

from __future__ import annotations

import pytest

from ironworks.gen.ironworks.builderd.v1 import build_pb
from ironworks.model.errors import Unimplemented
from ironworks.sdk import AsyncIronworks
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


async def test_create_asks_the_platform(client: AsyncIronworks) -> None:
    with pytest.raises(Unimplemented):
        await client.builds.create("oci:/x")
