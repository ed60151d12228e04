"""What does not agree is told, and mended or marked."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, update

from ironworks.assetmanagerd.repair import Fault, Findings
from ironworks.assetmanagerd.tables import ASSETS
from ironworks.assetmanagerd.types import AssetState
from ironworks.model.errors import FailedPrecondition
from ironworks.testkit.assets import (
    ACME,
    EVIL,
    METALD,
    AssetWorld,
    asset_world,
    chunked,
    facts,
    squashfs,
)

DAY = 86_400


@pytest.fixture
async def world(tmp_path: Path, database_url: str) -> AsyncIterator[AssetWorld]:
    async with asset_world(tmp_path, database_url=database_url) as made:
        yield made


def told(findings: Findings) -> list[tuple[Fault, str]]:
    """What was found, without files that were replaced by newer ones of the same bytes."""
    return [(one.fault, one.name) for one in findings.findings if one.fault is not Fault.LEFTOVER]


def object_file(world: AssetWorld, name: str) -> Path:
    return world.kept_file(name)


async def hold(world: AssetWorld, asset_id: str) -> None:
    await world.leasing.acquire(
        METALD, [asset_id], holder="vm", purpose="", ttl_seconds=3600, key=""
    )


async def test_where_all_agrees_nothing_is_found(world: AssetWorld) -> None:
    asset = await world.asset()
    await hold(world, asset.asset_id)
    assert told(await world.repair.run()) == []


async def test_bytes_without_a_row_are_told_until_they_go(world: AssetWorld) -> None:
    stray = "a" * 64
    object_file(world, stray).parent.mkdir(parents=True)
    object_file(world, stray).write_bytes(b"from an old backup")
    for _ in range(2):
        found = await world.repair.run()
        assert told(found) == [(Fault.STRAY, stray)]
        assert dict(found.counts) == {Fault.STRAY: 1}
        assert await world.registry.remove_doomed() == 0
        assert world.repair.last == found
    await world.clock.advance(8 * DAY)
    assert await world.registry.remove_doomed() == 1
    assert told(await world.repair.run()) == []


async def test_bytes_without_a_row_that_are_registered_get_a_copy_that_stays(
    world: AssetWorld,
) -> None:
    asset = await world.asset()
    await world.database.write(lambda it: it.execute(update(ASSETS).values(state="failed")))
    assert told(await world.repair.run()) == [(Fault.STRAY, asset.stored_as)]
    await world.database.write(lambda it: it.execute(update(ASSETS).values(live_key=None)))
    again = await world.asset()
    assert again.asset_id != asset.asset_id
    await world.clock.advance(8 * DAY)
    assert await world.registry.remove_doomed() == 1
    assert Fault.STRAY not in dict((await world.repair.run()).counts)
    assert await world.kept() == [again.sha256]
    assert (await world.registry.verify(ACME, again.asset_id))[1] == ""


@pytest.mark.parametrize("harm", ["gone", "short"])
async def test_rows_without_their_bytes_are_marked_and_mended_by_the_bytes(
    world: AssetWorld, harm: str
) -> None:
    mine, theirs = await world.asset(), await world.asset(who=EVIL)
    path = object_file(world, mine.stored_as)
    whole = path.read_bytes()
    path.unlink()
    if harm == "short":
        path.write_bytes(whole[:-1])
    both = {(Fault.ROW_WITHOUT_BYTES, asset.asset_id) for asset in (mine, theirs)}
    assert set(told(await world.repair.run(dry_run=True))) == both
    assert not (await world.registry.get(ACME, mine.asset_id)).damage
    assert set(told(await world.repair.run())) == both
    with pytest.raises(FailedPrecondition, match="damaged"):
        await hold(world, mine.asset_id)
    path.unlink(missing_ok=True)
    path.write_bytes(whole)
    path.chmod(0o444)
    found = await world.repair.run()
    assert {fault for fault, _ in told(found)} == {Fault.CAME_BACK}
    assert all(one.is_mended for one in found.findings)
    await hold(world, mine.asset_id)


async def test_all_short_files_are_found_in_turn(
    world: AssetWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ironworks.assetmanagerd.repair._CHECKED_AT_ONCE", 2)
    assets = [await world.asset(squashfs(bytes([number]))) for number in range(5)]
    for asset in assets:
        path = object_file(world, asset.stored_as)
        path.unlink()
        path.write_bytes(b"")
    found: set[str] = set()
    for _ in range(4):
        found |= {name for _, name in told(await world.repair.run())}
    assert found == {asset.asset_id for asset in assets}


async def test_what_interrupted_work_left_is_removed_and_told(world: AssetWorld) -> None:
    for _ in range(2):
        await world.asset()
        await world.asset(who=EVIL)
    found = await world.repair.run()
    assert dict(found.counts) == {Fault.LEFTOVER: 1}
    assert dict((await world.repair.run()).counts) == {}


async def test_partial_uploads_and_temporary_files_are_told(world: AssetWorld) -> None:
    body = squashfs()
    with pytest.raises(FailedPrecondition):
        await world.intake.upload(
            ACME,
            facts(body),
            upload_id="",
            key="k",
            offset_bytes=0,
            chunks=chunked(body[:1000]),
        )
    upload = await world.intake.get_upload(ACME, "", "k")
    world.stage(b"abandoned", "abandoned")
    world.stage(b"fresh", "fresh")
    old_ns = world.clock.now_ns() - 2 * DAY * 10**9
    os.utime(world.files.staging.path / "abandoned", ns=(old_ns, old_ns))
    expected = [
        (Fault.TEMPORARY_FILE, "abandoned"),
        (Fault.PARTIAL_UPLOAD, upload.staged_name),
    ]
    assert told(await world.repair.run(dry_run=True)) == expected
    assert told(await world.repair.run()) == expected
    assert sorted(world.files.staging.names()) == ["fresh", upload.staged_name]


async def test_leases_are_counted_again(world: AssetWorld) -> None:
    held, free = await world.asset(squashfs(b"1")), await world.asset(squashfs(b"2"))
    await hold(world, held.asset_id)

    def harm(connection: Connection) -> None:
        for asset, state, count in ((held, "available", 0), (free, "in_use", 3)):
            connection.execute(
                update(ASSETS)
                .where(ASSETS.c.asset_id == asset.asset_id)
                .values(state=state, lease_count=count)
            )

    await world.database.write(harm)
    found = await world.repair.run()
    assert set(told(found)) == {
        (Fault.LEASE_COUNT, held.asset_id),
        (Fault.LEASE_COUNT, free.asset_id),
    }
    after = [await world.registry.get(ACME, asset.asset_id) for asset in (held, free)]
    assert [(one.state, one.lease_count) for one in after] == [
        (AssetState.IN_USE, 1),
        (AssetState.AVAILABLE, 0),
    ]
    assert told(await world.repair.run()) == []
