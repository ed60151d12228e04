"""Pulls from a real registry on loopback: Debian's docker-registry."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ironworks.builderd.sources.documents import read_manifest
from ironworks.builderd.sources.local import check_blob, read_blob
from ironworks.builderd.sources.skopeo import Skopeo, registries_conf
from ironworks.builderd.types import ImageReference, Transport
from ironworks.model.errors import NotFound, Unavailable, Unimplemented
from ironworks.runtime.process import run
from ironworks.testkit import images
from ironworks.testkit.builds import build_world
from ironworks.testkit.images import File
from ironworks.testkit.registry import INSTALLED, docker_registry

pytestmark = pytest.mark.skipif(not INSTALLED, reason="docker-registry is not installed")


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[str]:
    async with docker_registry(tmp_path / "registry") as address:
        yield address


def image(text: str, architecture: str = "amd64") -> images.Image:
    layer = images.Layer(tar=images.make_tar([File(name="app", data=text.encode())]))
    return images.Image(layers=[layer], config={"Cmd": ["/app"]}, architecture=architecture)


async def push(layout: images.Layout, descriptor: object, target: str, *more: str) -> None:
    layout.tag(latest=descriptor)  # type: ignore[arg-type]
    command = ["skopeo", "--insecure-policy", "copy", "-q", "--dest-tls-verify=false", *more]
    await run([*command, f"oci:{layout.root}:latest", f"docker://{target}"], timeout_seconds=30)


def named(location: str) -> ImageReference:
    return ImageReference(transport=Transport.REGISTRY, location=location)


def skopeo(registry: str, directory: Path) -> Skopeo:
    registries = directory / "registries.conf"
    registries.write_text(registries_conf([registry], {}))
    return Skopeo(registries=registries, file_bytes=1 << 30)


@pytest.mark.parametrize("form", ["oci", "v2s2"])
async def test_a_tag_is_resolved_and_pulled(registry: str, tmp_path: Path, form: str) -> None:
    layout = images.Layout(tmp_path / "layout")
    await push(layout, layout.image(image("hello")), f"{registry}/app:1", "--format", form)
    pulling = skopeo(registry, tmp_path)
    resolved = await pulling.resolve(named(f"{registry}/app:1"))
    assert not resolved.index_digest
    by_digest = await pulling.resolve(named(f"{registry}/app@{resolved.digest}"))
    assert by_digest == resolved
    scratch, store = tmp_path / "scratch", tmp_path / "store"
    scratch.mkdir()
    pulled = await pulling.pull(
        named(f"{registry}/app:1"), resolved, scratch=scratch, store=store, timeout_seconds=30
    )
    manifest = read_manifest(pulled.manifest, max_layers=9, max_packed_bytes=1 << 20)
    assert b'"/app"' in read_blob(pulled.blobs, manifest.config)
    assert check_blob(pulled.blobs, manifest.layers[0]).parent == store / "sha256"
    assert list((store / "pulls").glob("*/*")) == []


async def test_what_a_registry_has_is_built(registry: str, tmp_path: Path) -> None:
    layout = images.Layout(tmp_path / "layout")
    await push(layout, layout.image(image("hello")), f"{registry}/app:1")
    async with build_world(tmp_path / "data", insecure_registries=[registry]) as world:
        build = await world.end(await world.create(f"{registry}/app:1"))
        assert build.failure is None
        assert build.result is not None
        again = await world.end(await world.create(f"docker://{registry}/app:1"))
        assert again.reused_build_id == build.build_id
        forced = await world.end(await world.create(f"{registry}/app:1", force=True))
        assert forced.result is not None
        assert forced.result.sha256 == build.result.sha256
        absent = await world.end(await world.create(f"{registry}/app:2"))
        assert absent.failure is not None
        assert absent.failure.code == "not_found"


async def test_a_kept_blob_that_was_damaged_is_fetched_again(registry: str, tmp_path: Path) -> None:
    layout = images.Layout(tmp_path / "layout")
    await push(layout, layout.image(image("hello")), f"{registry}/app:1")
    async with build_world(tmp_path / "data", insecure_registries=[registry]) as world:
        first = await world.build(f"{registry}/app:1")
        blobs = list((world.settings.builder_dir / "blobs").glob("*/sha256/*"))
        (layer,) = [path for path in blobs if path.read_bytes()[:2] == b"\x1f\x8b"]
        size_bytes = layer.stat().st_size
        for damage in (b"", bytes(size_bytes)):  # as a power cut leaves files
            layer.write_bytes(damage)
            again = await world.end(await world.create(f"{registry}/app:1", force=True))
            assert again.failure is None
            assert again.result is not None
            assert first.result is not None
            assert again.result.sha256 == first.result.sha256


async def test_an_index_is_resolved_to_this_platform(registry: str, tmp_path: Path) -> None:
    layout = images.Layout(tmp_path / "layout")
    other = image("other", "arm64")
    both = layout.platforms([other, image("mine")])
    await push(layout, both, f"{registry}/app:multi", "--all")
    resolved = await skopeo(registry, tmp_path).resolve(named(f"{registry}/app:multi"))
    assert resolved.index_digest == both["digest"]
    assert resolved.digest != both["digest"]
    await push(layout, layout.platforms([other]), f"{registry}/app:arm", "--all")
    with pytest.raises(Unimplemented, match="linux/arm64"):
        await skopeo(registry, tmp_path).resolve(named(f"{registry}/app:arm"))


async def test_what_the_registry_does_not_have(registry: str, tmp_path: Path) -> None:
    layout = images.Layout(tmp_path / "layout")
    await push(layout, layout.image(image("hello")), f"{registry}/app:1")
    for absent in ("app:2", "none:1", "app@sha256:" + "0" * 64):
        with pytest.raises(NotFound, match="There is no image"):
            await skopeo(registry, tmp_path).resolve(named(f"{registry}/{absent}"))
    with pytest.raises(Unavailable, match="cannot be reached"):
        await skopeo(registry, tmp_path).resolve(named("127.0.0.1:1/app:1"))
