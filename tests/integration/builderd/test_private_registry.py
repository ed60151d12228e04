"""Private registries: Debian's docker-registry with passwords, and a mirror that has none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ironworks.builderd.types import Build, BuildState
from ironworks.runtime.architecture import host_architecture
from ironworks.runtime.process import run
from ironworks.testkit import images
from ironworks.testkit.builds import BuildWorld, build_world
from ironworks.testkit.images import File
from ironworks.testkit.registry import INSTALLED, docker_registry

pytestmark = pytest.mark.skipif(not INSTALLED, reason="docker-registry is not installed")


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[str]:
    async with docker_registry(tmp_path / "private", private=True) as address:
        yield address


@pytest.fixture
async def world(tmp_path: Path, registry: str) -> AsyncIterator[BuildWorld]:
    async with build_world(tmp_path / "data", insecure_registries=[registry]) as made:
        yield made


async def push(directory: Path, target: str, *more: str) -> None:
    layer = images.Layer(tar=images.make_tar([File(name="app", data=target.encode())]))
    reference = images.write_image(
        directory,
        images.Image(layers=[layer], config={"Cmd": ["/app"]}, architecture=host_architecture()),
    )
    command = ["skopeo", "--insecure-policy", "copy", "-q", "--dest-tls-verify=false", *more]
    await run([*command, reference, f"docker://{target}"], timeout_seconds=60)


def everything(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())


async def built(world: BuildWorld, image: str, tenant_id: str) -> Build:
    return await world.end(await world.create(image, tenant_id=tenant_id))


async def test_who_has_proved_access_and_nobody_else(
    world: BuildWorld, registry: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = f"{registry}/acme/app:1"
    await push(tmp_path / "layout", image, "--dest-creds=bot:s3cret")
    refused = await built(world, image, "tnt_a")
    assert refused.failure is not None
    assert refused.failure.code == "permission_denied"
    assert "credential" in refused.failure.message
    await world.choices.set_credential("tnt_a", f"{registry}/acme", "bot", "wrong")
    assert (await built(world, image, "tnt_a")).failure is not None
    await world.choices.set_credential("tnt_a", f"{registry}/acme", "bot", "s3cret")
    done = await built(world, image, "tnt_a")
    assert done.failure is None
    assert done.state is BuildState.COMPLETED
    # Another tenant knows the digest, and that somebody here has the layers: of no use to it.
    for asked in (image, f"{registry}/acme/app@{done.image_digest}"):
        other = await built(world, asked, "tnt_b")
        assert other.failure is not None
        assert other.failure.code == "permission_denied"
    assert not list(world.reach.blobs_dir.glob("*/partial/tnt_b/*"))
    # With a credential of its own it gets them, and nothing is sent twice.
    await world.choices.set_credential("tnt_b", registry, "bot", "s3cret")
    kept = {path: path.stat().st_ino for path in world.reach.blobs_dir.glob("*/sha256/*")}
    shared = await built(world, image, "tnt_b")
    assert shared.failure is None
    assert not shared.reused_build_id
    assert {path: path.stat().st_ino for path in world.reach.blobs_dir.glob("*/sha256/*")} == kept
    await world.choices.delete_credential("tnt_a", f"{registry}/acme")
    assert (await built(world, image, "tnt_a")).failure is not None
    # Neither the disk nor the log has the password.
    assert b"s3cret" not in everything(tmp_path / "data")
    assert b"Ym90OnMzY3JldA" not in everything(tmp_path / "data")
    assert "s3cret" not in caplog.text
    for build in (refused, done):
        assert not [line for line in await world.log(build) if "s3cret" in line.text]


async def test_a_trial_uses_the_credential_too(
    world: BuildWorld, registry: str, tmp_path: Path
) -> None:
    image = f"{registry}/app:1"
    await push(tmp_path / "layout", image, "--dest-creds=bot:s3cret")
    await world.choices.set_credential("tnt_a", registry, "bot", "s3cret")
    report, digest = await world.choices.evaluate("tnt_a", image, None)
    assert digest.startswith("sha256:")
    assert report.outcome.value == "passed"


async def test_a_mirror_is_asked_first(tmp_path: Path) -> None:
    async with (
        docker_registry(tmp_path / "mirror") as mirror,
        build_world(
            tmp_path / "data",
            insecure_registries=[mirror],
            # Nobody answers there: only the mirror can have it.
            registry_mirrors={"registry.invalid": [f"{mirror}/cache"]},
            default_registry="registry.invalid",
        ) as world,
    ):
        await push(tmp_path / "layout", f"{mirror}/cache/team/app:1")
        for name in ("registry.invalid/team/app:1", "team/app:1"):
            done = await world.build(name)
            assert done.failure is None
