from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from ironworks.assetmanagerd import store
from ironworks.assetmanagerd.bytes.locks import DigestLocks
from ironworks.assetmanagerd.types import Asset, AssetKind, AssetState, Facts, ImageConfig
from ironworks.model.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
)
from ironworks.runtime.tasks import Tasks
from ironworks.testkit.assets import (
    ACME,
    EVIL,
    PLATFORM,
    AssetWorld,
    asset_world,
    chunked,
    facts,
    squashfs,
)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[AssetWorld]:
    async with asset_world(tmp_path) as made:
        yield made


async def test_registered_bytes_are_available(world: AssetWorld) -> None:
    asset = await world.asset()
    assert asset.state is AssetState.AVAILABLE
    assert asset.media_type == "application/vnd.ironworks.rootfs.squashfs"
    assert await world.kept() == [asset.sha256]
    assert world.files.staging.names() == {}


async def test_an_owner_has_the_same_bytes_once(world: AssetWorld) -> None:
    first = await world.asset()
    again, existed = await world.intake.register(
        ACME, facts(squashfs()), world.stage(squashfs()), "other key"
    )
    assert existed
    assert again.asset_id == first.asset_id
    assert world.files.staging.names() == {}
    theirs = await world.asset(who=EVIL)
    assert theirs.asset_id != first.asset_id
    assert len(await world.kept()) == 1


async def test_known_bytes_are_nothing_else_than_they_are(world: AssetWorld) -> None:
    asset, claim = await world.asset(), replace(facts(squashfs()), kind=AssetKind.KERNEL)
    with pytest.raises(InvalidRequest, match="squashfs: not a kernel"):
        await world.intake.register(ACME, claim, world.stage(squashfs()), "")
    assert world.files.staging.names() == {}
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="squashfs: not a kernel"):
            await world.intake.upload(
                ACME, claim, upload_id="", key="k", offset_bytes=claim.size_bytes, chunks=chunked()
            )
    assert (await world.registry.get(ACME, asset.asset_id)).state is AssetState.AVAILABLE


async def test_bytes_without_a_name_are_what_is_read(world: AssetWorld) -> None:
    body = squashfs()
    unnamed = replace(facts(body), sha256="")
    asset, existed = await world.intake.register(ACME, unnamed, world.stage(body), "k")
    assert (asset.state, asset.sha256, existed) == (
        AssetState.AVAILABLE,
        facts(body).sha256,
        False,
    )
    # The answer was lost, and the file is gone.
    again, existed = await world.intake.register(ACME, unnamed, "absent", "k")
    assert (again.asset_id, existed) == (asset.asset_id, True)
    with pytest.raises(NotFound):
        await world.intake.register(ACME, unnamed, "absent", "k2")
    with pytest.raises(NotFound):
        await world.intake.register(ACME, unnamed, "absent", "")
    twice, existed = await world.intake.register(ACME, unnamed, world.stage(body), "k3")
    assert (twice.asset_id, existed) == (asset.asset_id, True)
    assert world.files.staging.names() == {}


async def test_images_of_the_same_files_keep_their_own_configuration(world: AssetWorld) -> None:
    root, web = ImageConfig(cmd=("/app",)), ImageConfig(cmd=("/app",), user="www-data")
    body = squashfs(b"same")
    made = [
        await world.intake.register(
            ACME, replace(facts(body), image_config=config), world.stage(body, f"s{n}"), f"k{n}"
        )
        for n, config in enumerate((root, web, root))
    ]
    assert [asset.image_config for asset, _ in made] == [root, web, root]
    assert [existed for _, existed in made] == [False, False, True]
    assert made[0][0].asset_id == made[2][0].asset_id
    assert len(await world.kept()) == 1


async def test_many_at_once_become_one(world: AssetWorld) -> None:
    body = squashfs(b"many")
    answers = await asyncio.gather(
        *(
            world.intake.register(ACME, facts(body), world.stage(body, f"s{n}"), f"k{n}")
            for n in range(8)
        )
    )
    assert len({asset.asset_id for asset, _ in answers}) == 1
    assert sum(not existed for _, existed in answers) == 1
    assert world.files.staging.names() == {}


@pytest.mark.parametrize(
    ("body", "claim", "reason"),
    [
        (squashfs(), facts(squashfs(b"other")), "SHA-256"),
        (squashfs() + b"x", facts(squashfs()), "4193 bytes, not 4192"),
        (b"nonsense", facts(b"nonsense"), "no rootfs"),
    ],
)
async def test_bytes_that_are_not_what_was_claimed_fail(
    world: AssetWorld, body: bytes, claim: Facts, reason: str
) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        await world.intake.register(ACME, claim, world.stage(body), "k")
    failed = await world.database.read(lambda c: store.in_state(c, AssetState.FAILED, 10))
    assert [reason in asset.reason for asset in failed] == [True]
    assert world.files.staging.names() == {}
    assert await world.kept() == []
    # With the same key the same answer; with another a fresh start.
    with pytest.raises(InvalidRequest):
        await world.intake.register(ACME, claim, world.stage(body), "k")
    body = squashfs(b"right")
    good, _ = await world.intake.register(ACME, facts(body), world.stage(body), "k2")
    assert good.state is AssetState.AVAILABLE


async def test_bad_names_and_missing_bytes(world: AssetWorld) -> None:
    for name in ("../etc/passwd", "a/b", "", ".hidden", "a\0b"):
        with pytest.raises(InvalidRequest):
            await world.intake.register(ACME, facts(squashfs()), name, "")
    with pytest.raises(NotFound):
        await world.intake.register(ACME, facts(squashfs()), "absent", "")


async def test_one_key_is_for_one_request(world: AssetWorld) -> None:
    first, second = squashfs(b"1"), squashfs(b"2")
    await world.intake.register(ACME, facts(first), world.stage(first), "key")
    with pytest.raises(AlreadyExists):
        await world.intake.register(ACME, facts(second), world.stage(second), "key")


async def test_archived_bytes_are_restored_not_registered_again(world: AssetWorld) -> None:
    asset = await world.asset()
    await world.registry.archive(ACME, asset.asset_id, "", "")
    with pytest.raises(FailedPrecondition, match="archived"):
        await world.asset()


async def test_damaged_bytes_are_mended_by_the_same_bytes(world: AssetWorld) -> None:
    asset = await world.asset()
    await world.files.kept.remove(asset.stored_as)
    damaged, problem = await world.registry.verify(ACME, asset.asset_id)
    assert "gone" in problem
    assert damaged.damage
    mended, existed = await world.intake.register(
        ACME, facts(squashfs()), world.stage(squashfs()), "again"
    )
    assert existed
    assert (mended.asset_id, mended.damage) == (asset.asset_id, "")
    assert (await world.registry.verify(ACME, asset.asset_id))[1] == ""


async def died_after_claiming(world: AssetWorld, claim: Facts, name: str) -> Asset:
    """A registration whose process died before it looked at the bytes."""
    begin = world.intake._claim  # pyright: ignore[reportPrivateUsage]
    asset, mine = await begin(ACME, "tnt_acme", claim, name, "", b"")
    assert mine
    return asset


@pytest.mark.parametrize("taken", [False, True])
async def test_a_registration_that_a_crash_interrupted_is_finished(
    world: AssetWorld, *, taken: bool
) -> None:
    body = squashfs(b"crash")
    claim = facts(body)
    world.stage(body, "s")
    asset = await died_after_claiming(world, claim, "s")
    if taken:
        path = world.files.staging.path / "s"
        await world.files.kept.keep(path, asset.stored_as, claim.size_bytes)
    assert await world.intake.resume() == 1
    finished = await world.registry.get(ACME, asset.asset_id)
    assert finished.state is AssetState.AVAILABLE
    assert await world.intake.resume() == 0


async def test_a_registration_whose_bytes_are_gone_fails(world: AssetWorld) -> None:
    asset = await died_after_claiming(world, facts(squashfs()), "gone")
    await world.intake.resume()
    failed = await world.registry.get(ACME, asset.asset_id)
    assert failed.state is AssetState.FAILED
    assert "never arrived" in failed.reason


async def upload(world: AssetWorld, body: bytes, *chunks: bytes, at: int = 0) -> bool:
    _, existed = await world.intake.upload(
        ACME, facts(body), upload_id="", key="k", offset_bytes=at, chunks=chunked(*chunks)
    )
    return existed


async def test_an_upload_goes_on_where_it_stopped(world: AssetWorld) -> None:
    body = squashfs(b"uploaded")
    with pytest.raises(FailedPrecondition, match="ended at 1000"):
        await upload(world, body, body[:600], body[600:1000])
    stands = await world.intake.get_upload(ACME, "", "k")
    assert stands.offset_bytes == 1000
    with pytest.raises(NotFound):
        await world.intake.get_upload(EVIL, stands.upload_id, "")
    assert not await upload(world, body, body[1000:], at=1000)
    assert await upload(world, body)
    done = await world.intake.get_upload(ACME, stands.upload_id, "")
    assert done.offset_bytes == len(body)
    assert done.asset_id


async def test_an_upload_whose_asset_was_deleted_begins_anew(world: AssetWorld) -> None:
    body = squashfs(b"again")
    await upload(world, body, body)
    asset = await world.intake.get_upload(ACME, "", "k")
    await world.registry.archive(ACME, asset.asset_id, "", "")
    await world.registry.delete(ACME, asset.asset_id, "", "")
    assert not await upload(world, body, body)
    again = await world.intake.get_upload(ACME, "", "k")
    assert again.asset_id != asset.asset_id


async def test_an_upload_whose_asset_was_damaged_mends_it(world: AssetWorld) -> None:
    body = squashfs(b"mended")
    await upload(world, body, body)
    before = await world.intake.get_upload(ACME, "", "k")
    asset = await world.registry.get(ACME, before.asset_id)
    await world.files.kept.remove(asset.stored_as)
    await world.registry.verify(ACME, before.asset_id)
    assert (await world.intake.get_upload(ACME, "", "k")).offset_bytes == 0
    assert await upload(world, body, body)
    after = await world.registry.get(ACME, before.asset_id)
    assert (after.state, after.damage) == (AssetState.AVAILABLE, "")
    assert (await world.registry.verify(ACME, before.asset_id))[1] == ""


async def test_bytes_that_the_owner_has_need_not_be_sent(world: AssetWorld) -> None:
    body = squashfs(b"known")
    asset = await world.asset(body)
    assert await upload(world, body)
    assert (await world.intake.get_upload(ACME, "", "k")).asset_id == asset.asset_id
    # That another tenant has them saves nobody else anything: it would tell.
    with pytest.raises(FailedPrecondition, match="ended at 0"):
        await world.intake.upload(
            EVIL, facts(body), upload_id="", key="k", offset_bytes=0, chunks=chunked()
        )


async def test_a_registration_under_way_takes_what_was_staged_last(world: AssetWorld) -> None:
    body = squashfs(b"twice")
    first = await died_after_claiming(world, facts(body), "lost")
    asset, existed = await world.intake.register(ACME, facts(body), world.stage(body, "new"), "k")
    assert (asset.asset_id, asset.state, existed) == (first.asset_id, AssetState.AVAILABLE, False)
    assert world.files.staging.names() == {}


async def test_uploads_that_are_refused(world: AssetWorld) -> None:
    body = squashfs(b"bad")
    with pytest.raises(InvalidRequest, match="longer"):
        await upload(world, body, body, b"more")
    assert world.files.staging.names() == {}
    with pytest.raises(InvalidRequest, match="SHA-256"):
        await upload(world, body, bytes(len(body)))
    assert world.files.staging.names() == {}
    with pytest.raises(InvalidRequest, match="idempotency_key"):
        await world.intake.upload(
            ACME, facts(body), upload_id="", key="", offset_bytes=0, chunks=chunked()
        )
    with pytest.raises(NotFound):
        await world.intake.upload(
            ACME, facts(body), upload_id="upl_x", key="z", offset_bytes=0, chunks=chunked()
        )


async def test_one_stream_of_an_upload_at_a_time(world: AssetWorld) -> None:
    body = squashfs(b"twice")
    begun, going = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield body[:100]
        begun.set()
        await going.wait()
        yield body[100:]

    async with Tasks() as tasks:
        first = tasks.start(
            world.intake.upload(
                ACME, facts(body), upload_id="", key="k", offset_bytes=0, chunks=slow()
            ),
            name="upload",
        )
        await begun.wait()
        with pytest.raises(Aborted):
            await upload(world, body, body)
        going.set()
        asset, _ = await first
    assert asset.state is AssetState.AVAILABLE


async def test_uploads_that_stand_still_are_forgotten(world: AssetWorld) -> None:
    body = squashfs(b"stale")
    with pytest.raises(FailedPrecondition):
        await upload(world, body, body[:10])
    assert await world.intake.forget_uploads() == 0
    await world.clock.advance(90_000)
    assert await world.intake.forget_uploads() == 1
    assert world.files.staging.names() == {}
    with pytest.raises(NotFound):
        await world.intake.get_upload(ACME, "", "k")


async def test_platform_assets_are_everyones(world: AssetWorld) -> None:
    asset = await world.asset(squashfs(b"all"), PLATFORM, platform=True)
    assert (await world.registry.get(EVIL, asset.asset_id)).tenant_id == ""


async def test_the_same_digest_is_worked_on_by_one_at_a_time() -> None:
    locks = DigestLocks()
    order: list[str] = []

    async def work(name: str, digest: str) -> None:
        async with locks.held(digest):
            order.append(f"{name} begins")
            await asyncio.sleep(0.001)
            order.append(f"{name} ends")

    await asyncio.gather(work("a", "1"), work("b", "1"), work("c", "2"))
    assert order.index("a ends") < order.index("b begins")
    assert order.index("c begins") < order.index("a ends")
    await work("d", "1")
