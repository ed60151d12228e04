from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ironworks.builderd.decide import parse_image, with_registry
from ironworks.builderd.sources.skopeo import registries_conf
from ironworks.runtime.clock import SystemClock
from ironworks.testkit.builds import TENANT, BuildWorld, build_world

OLD_NS = 10**18


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[BuildWorld]:
    async with build_world(tmp_path, max_cache_bytes_per_tenant=100) as made:
        yield made


def blob(world: BuildWorld, name: str, size: int, used_at_ns: int) -> Path:
    path = world.reach.blobs_dir / TENANT / "sha256" / name
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
    with world.reach.using(TENANT, ["sha256:c"]):
        assert world.reach.evict(TENANT) == 2
    assert not oldest.exists()
    assert not old.exists()
    assert used.exists()
    assert young.exists()
    assert world.reach.evict_all() == 1
    assert not used.exists()


async def test_the_credential_is_a_file_while_it_is_needed(
    world: BuildWorld, tmp_path: Path
) -> None:
    await world.choices.set_credential(TENANT, "ghcr.io/acme", "bot", "s3cret")

    async def login(tenant_id: str, image: str) -> bool:
        reference = with_registry(parse_image(image), "docker.io")
        async with world.reach.login(tenant_id, reference, tmp_path) as path:
            return path is not None and path.exists()

    assert await login(TENANT, "ghcr.io/acme/app:1")
    assert not (tmp_path / "login.json").exists()
    (found,) = await world.choices.credentials(TENANT)
    assert found.last_used_at_ns > 0
    assert not await login(TENANT, "ghcr.io/other/app")
    assert not await login("tnt_evil", "ghcr.io/acme/app:1")
    assert not await login(TENANT, "oci:/srv/app")


def test_registries_are_told_to_skopeo() -> None:
    text = registries_conf(["mirror:5000"], {"docker.io": ["mirror:5000/hub", "other"]})
    assert text.splitlines() == [
        "[[registry]]",
        'location = "docker.io"',
        "insecure = false",
        "[[registry.mirror]]",
        'location = "mirror:5000/hub"',
        "insecure = true",
        "[[registry.mirror]]",
        'location = "other"',
        "insecure = false",
        "[[registry]]",
        'location = "mirror:5000"',
        "insecure = true",
    ]
