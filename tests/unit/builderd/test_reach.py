from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ironworks.builderd.decide import parse_image, with_registry
from ironworks.builderd.reach import Login
from ironworks.runtime.clock import SystemClock
from ironworks.testkit.builds import TENANT, BuildWorld, build_world

OLD_NS = 10**18


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[BuildWorld]:
    async with build_world(tmp_path, max_cache_bytes=100) as made:
        yield made


def blob(world: BuildWorld, name: str, size: int, used_at_ns: int) -> Path:
    path = world.reach.blobs_dir / "ghcr.io" / "sha256" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    os.utime(path, ns=(used_at_ns, used_at_ns))
    return path


async def test_the_least_lately_used_blobs_go_and_used_ones_stay(world: BuildWorld) -> None:
    oldest, old, used, young = (
        blob(world, "a", 60, OLD_NS),
        blob(world, "b", 60, OLD_NS + 1),
        blob(world, "c", 60, OLD_NS - 1),
        blob(world, "d", 60, SystemClock().now_ns()),
    )
    with world.reach.using(["sha256:c"]):
        assert world.reach.evict() == 2
    assert not oldest.exists()
    assert not old.exists()
    assert used.exists()
    assert young.exists()
    assert world.reach.evict() == 1
    assert not used.exists()


async def test_what_a_pull_left_long_ago_goes(world: BuildWorld) -> None:
    partial = world.reach.blobs_dir / "ghcr.io" / "partial" / TENANT
    partial.mkdir(parents=True)
    for name in ("old", "new"):
        (partial / name).write_bytes(b"x")
    os.utime(partial / "old", ns=(OLD_NS, OLD_NS))
    world.reach.evict()
    assert [path.name for path in partial.iterdir()] == ["new"]


async def test_each_registry_has_the_credential_that_is_its_own(world: BuildWorld) -> None:
    await world.choices.set_credential(TENANT, "ghcr.io/acme", "bot", "s3cret")

    async def login(tenant_id: str, image: str) -> Login:
        return await world.reach.login(tenant_id, with_registry(parse_image(image), "docker.io"))

    found = await login(TENANT, "ghcr.io/acme/app:1")
    assert (found.username, found.password) == ("bot", "s3cret")
    assert "s3cret" not in repr(found)
    (stored,) = await world.choices.credentials(TENANT)
    assert stored.last_used_at_ns > 0
    for tenant_id, image in (
        (TENANT, "ghcr.io/other/app"),
        ("tnt_evil", "ghcr.io/acme/app:1"),
        (TENANT, "oci:/srv/app"),
    ):
        assert await login(tenant_id, image) == Login()
