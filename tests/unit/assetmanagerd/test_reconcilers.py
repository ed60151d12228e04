from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ironworks.assetmanagerd.reconcilers import reconcilers
from ironworks.testkit.assets import METALD, AssetWorld, asset_world

DAY = 86_400


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[AssetWorld]:
    async with asset_world(tmp_path) as made:
        yield made


async def test_the_loops_report_what_they_did(world: AssetWorld) -> None:
    asset = await world.asset()
    await world.leasing.acquire(
        METALD, [asset.asset_id], holder="vm", purpose="", ttl_seconds=3600, key=""
    )
    await world.clock.advance(8 * DAY)
    world.stage(b"abandoned")
    loops = reconcilers(
        registry=world.registry,
        leasing=world.leasing,
        intake=world.intake,
        repair=world.repair,
        watches=world.watches,
        settings=world.settings,
    )
    reports = {loop.name: (await loop.activate_once(world.clock)).report.counts for loop in loops}
    assert reports["lease-expiry"] == {"expired": 1}
    assert reports["registrations"] == {"resumed": 0}
    assert reports["garbage"]["collected"] == 0
    assert reports["repair"] == {}
    assert reports["news"] == {"changes": 0}
    usage = await world.registry.usage()
    assert usage["available"] == (1, asset.size_bytes)
