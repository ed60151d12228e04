"""What is none of a caller's costs and answers exactly what does not exist costs and answers.

Times are not compared: they would say more about the machine. What the database is asked is the
same, statement by statement, and so are code, sentence and hint.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import event

from ironworks.assetmanagerd.types import Who
from ironworks.model.errors import IronError
from ironworks.model.pages import PageSpec
from ironworks.testkit.assets import ACME, EVIL, METALD, AssetWorld, asset_world, chunked, squashfs
from ironworks.testkit.assets import facts as facts_of

BODY = squashfs(b"a secret of Acme's")
THIEF = Who(actor="metald", tenant_id=EVIL.tenant_id, is_service=True)
Call = Callable[[AssetWorld, str], Awaitable[object]]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[AssetWorld]:
    async with asset_world(tmp_path) as made:
        yield made


@contextmanager
def statements(world: AssetWorld) -> Generator[list[str]]:
    """All that the database is asked meanwhile, transactions too."""
    told: list[str] = []

    def trace(driver: sqlite3.Connection, *_: object) -> None:
        driver.set_trace_callback(told.append)

    event.listen(world.database.engine, "checkout", trace)
    try:
        yield told
    finally:
        event.remove(world.database.engine, "checkout", trace)


async def refused(world: AssetWorld, call: Call, name: str) -> tuple[object, ...]:
    """What a caller can tell, and what the database was asked, without the id itself."""
    with statements(world) as told, pytest.raises(IronError) as error:
        await call(world, name)
    assert any("SELECT" in one for one in told)
    seen = (type(error.value), error.value.message, error.value.hint)
    return *(str(one).replace(name, "ID") for one in seen), [
        one.replace(name, "ID") for one in told
    ]


ON_ASSETS: dict[str, Call] = {
    "get": lambda world, name: world.registry.get(EVIL, name),
    "history": lambda world, name: world.registry.events(EVIL, name, PageSpec(size=10)),
    "archive": lambda world, name: world.registry.archive(EVIL, name, "", ""),
    "restore": lambda world, name: world.registry.restore(EVIL, name, ""),
    "delete": lambda world, name: world.registry.delete(EVIL, name, "", ""),
    "verify": lambda world, name: world.registry.verify(EVIL, name),
    "acquire": lambda world, name: world.leasing.acquire(
        THIEF, [name], holder="vm", purpose="", ttl_seconds=60, key=""
    ),
}


@pytest.mark.parametrize("call", ON_ASSETS)
@pytest.mark.parametrize("state", ["available", "in use", "archived", "deleted"])
async def test_an_asset_of_another_tenant_is_like_one_that_does_not_exist(
    world: AssetWorld, call: str, state: str
) -> None:
    asset = await world.asset(BODY)
    if state == "in use":
        await world.leasing.acquire(
            METALD, [asset.asset_id], holder="vm", purpose="", ttl_seconds=60, key=""
        )
    if state in ("archived", "deleted"):
        await world.registry.archive(ACME, asset.asset_id, "", "")
    if state == "deleted":
        await world.registry.delete(ACME, asset.asset_id, "", "")
    unknown = asset.asset_id[:-4] + "zzzz"
    theirs = await refused(world, ON_ASSETS[call], asset.asset_id)
    assert theirs == await refused(world, ON_ASSETS[call], unknown)


async def test_a_lease_or_an_upload_of_another_tenant_is_like_one_that_does_not_exist(
    world: AssetWorld,
) -> None:
    asset = await world.asset(BODY)
    lease, _ = await world.leasing.acquire(
        METALD, [asset.asset_id], holder="vm", purpose="", ttl_seconds=60, key=""
    )
    await world.intake.upload(
        ACME, facts_of(BODY), upload_id="", key="k", offset_bytes=0, chunks=chunked(BODY)
    )
    upload = await world.intake.get_upload(ACME, "", "k")

    async def release(world: AssetWorld, name: str) -> None:
        await world.leasing.release(THIEF, name)

    async def get_upload(world: AssetWorld, name: str) -> None:
        await world.intake.get_upload(EVIL, name, "")

    for call, name in ((release, lease.lease_id), (get_upload, upload.upload_id)):
        theirs = await refused(world, call, name)
        assert theirs == await refused(world, call, name[:-4] + "zzzz")


async def test_bytes_that_another_tenant_has_are_taken_in_like_any(world: AssetWorld) -> None:
    """A registration asks the database the same, whoever has the bytes already."""
    other = squashfs(b"nobody has had these")
    await world.asset(BODY)
    asked: list[list[str]] = []
    for body in (BODY, other):
        with statements(world) as told:
            await world.asset(body, EVIL)
        verbs = [one.split("(")[0].split("=")[0] for one in told]
        asked.append([" ".join(one.split()[:4]) for one in verbs])
    assert asked[0] == asked[1]
