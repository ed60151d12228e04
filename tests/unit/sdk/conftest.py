"""A client of a platform in memory, over loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ironworks.runtime.settings import Settings
from ironworks.sdk import AsyncIronworks
from ironworks.testkit.fakeapi import TENANT_KEY, FakeApi, running


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[tuple[FakeApi, Settings]]:
    async with running(tmp_path) as both:
        yield both


@pytest.fixture
def api(fake: tuple[FakeApi, Settings]) -> FakeApi:
    return fake[0]


@pytest.fixture
async def client(fake: tuple[FakeApi, Settings]) -> AsyncIterator[AsyncIronworks]:
    async with AsyncIronworks(fake[1].gatewayd_url, TENANT_KEY) as client:
        yield client
