from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ironworks.builderd import store
from ironworks.builderd.types import (
    Build,
    BuildResult,
    BuildState,
    Failure,
    ImageConfig,
    Package,
    Progress,
    RootfsFormat,
    Stage,
)
from ironworks.model.errors import Aborted
from ironworks.storage.migrate import upgrade
from ironworks.storage.sql import Database, sqlite_url

BUILD = Build(
    build_id="bld_1",
    tenant_id="tnt_acme",
    image="app",
    format=RootfsFormat.SQUASHFS,
    state=BuildState.QUEUED,
    created_at_ns=1,
    updated_at_ns=1,
    timeout_seconds=60,
    labels={"a": "b"},
)
WHOLE = replace(
    BUILD,
    build_id="bld_2",
    state=BuildState.COMPLETED,
    image_digest="sha256:" + "a" * 64,
    result=BuildResult(
        asset_id="ast_1",
        sha256="b" * 64,
        size_bytes=1,
        unpacked_bytes=2,
        file_count=3,
        layer_count=4,
        image_config=ImageConfig(cmd=("/app",), labels={"x": "y"}),
    ),
    failure=Failure(code="internal", message="x", state=BuildState.PULLING),
    stages=(Stage(state=BuildState.RESOLVING, started_at_ns=1, ended_at_ns=2),),
)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(sqlite_url(tmp_path / "builds.db"))
    upgrade(made.engine, "ironworks.builderd.migrations")
    yield made
    made.close()


async def test_a_build_comes_back_whole(database: Database) -> None:
    await database.write(lambda c: store.insert_build(c, WHOLE))
    assert await database.read(lambda c: store.read_build(c, "bld_2")) == WHOLE
    assert await database.read(lambda c: store.read_build(c, "bld_x")) is None


async def test_a_change_that_was_decided_on_an_old_record_is_refused(database: Database) -> None:
    await database.write(lambda c: store.insert_build(c, BUILD))
    changed = replace(BUILD, state=BuildState.CANCELLED)
    after = await database.write(lambda c: store.change_build(c, BUILD, changed, 9))
    assert (after.revision, after.updated_at_ns) == (2, 9)
    with pytest.raises(Aborted):
        await database.write(lambda c: store.change_build(c, BUILD, changed, 10))


async def test_only_made_builds_of_the_tenant_are_reused(database: Database) -> None:
    await database.write(lambda c: store.insert_build(c, WHOLE))
    asked = replace(WHOLE, build_id="bld_3", state=BuildState.RESOLVING, result=None)

    async def found(build: Build) -> Build | None:
        return await database.read(lambda c: store.find_made(c, build))

    assert await found(asked) == WHOLE
    for other in (
        replace(asked, tenant_id="tnt_evil"),
        replace(asked, image_digest="sha256:" + "c" * 64),
        replace(asked, format=RootfsFormat.EXT4),
        replace(asked, policy_digest="d" * 64),
    ):
        assert await found(other) is None


async def test_logs_are_bounded(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_LOG_LINES", 3)
    await database.write(lambda c: store.insert_build(c, BUILD))
    for number in range(5):
        text = f"{number} " + "x" * 5000
        await database.write(
            lambda c, text=text: store.append_log(c, "bld_1", BuildState.QUEUED, text, 1)
        )
    lines = await database.read(lambda c: store.read_log(c, "bld_1", 0, 100))
    assert [line.sequence for line in lines] == [3, 4, 5]
    assert {len(line.text) for line in lines} == {2000}
    assert await database.read(lambda c: store.last_sequence(c, "bld_1")) == 5
    await database.write(lambda c: store.delete_build(c, "bld_1"))
    assert await database.read(lambda c: store.read_log(c, "bld_1", 0, 100)) == []


async def test_progress_and_packages_are_beside_the_record(database: Database) -> None:
    await database.write(lambda c: store.insert_build(c, BUILD))
    assert await database.read(lambda c: store.read_progress(c, "bld_1")) == Progress()
    assert await database.read(lambda c: store.read_packages(c, "bld_1")) == ()
    progress = Progress(done_bytes=1, total_bytes=2, step="fetching layers")
    package = Package(manager="apk", name="musl", version="1.2", architecture="x86_64")
    await database.write(lambda c: store.write_progress(c, "bld_1", progress))
    for _ in range(2):
        await database.write(lambda c: store.write_packages(c, "bld_1", [package]))
    assert await database.read(lambda c: store.read_progress(c, "bld_1")) == progress
    assert await database.read(lambda c: store.read_packages(c, "bld_1")) == (package,)
    assert await database.read(lambda c: store.read_build(c, "bld_1")) == BUILD
    await database.write(lambda c: store.delete_build(c, "bld_1"))
    assert await database.read(lambda c: store.read_packages(c, "bld_1")) == ()
