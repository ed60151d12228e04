"""Pulls from a real registry on loopback: Debian's docker-registry."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ironworks.builderd.registry.guard import is_public
from ironworks.builderd.registry.plan import directory_of
from ironworks.builderd.sources.documents import read_manifest
from ironworks.builderd.sources.local import check_blob, read_blob
from ironworks.builderd.sources.registry import Reachable, Registries
from ironworks.model.errors import NotFound, PermissionDenied, Unavailable, Unimplemented
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


def registries(registry: str, directory: Path) -> Registries:
    return Registries(
        store=directory / "store",
        reachable=Reachable(insecure=[registry], mirrors={}),
        file_bytes=1 << 30,
    )


@pytest.mark.parametrize("form", ["oci", "v2s2"])
async def test_a_tag_is_resolved_and_pulled(registry: str, tmp_path: Path, form: str) -> None:
    layout = images.Layout(tmp_path / "layout")
    await push(layout, layout.image(image("hello")), f"{registry}/app:1", "--format", form)
    pulling = registries(registry, tmp_path)
    resolved, data = await pulling.resolve(f"{registry}/app:1")
    assert not resolved.index_digest
    by_digest, same = await pulling.resolve(f"{registry}/app@{resolved.digest}")
    assert (by_digest, same) == (resolved, data)
    manifest = read_manifest(data, max_layers=9, max_packed_bytes=1 << 20)
    pulled = await pulling.pull(
        f"{registry}/app:1",
        resolved,
        data,
        [manifest.config, *manifest.layers],
        tenant_id="tnt_a",
        on_bytes=lambda _: None,
    )
    assert b'"/app"' in read_blob(pulled.blobs, manifest.config)
    store = tmp_path / "store" / directory_of(registry)
    assert check_blob(pulled.blobs, manifest.layers[0]).parent == store / "sha256"
    assert list((store / "partial").glob("*/*")) == []


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
    resolved, data = await registries(registry, tmp_path).resolve(f"{registry}/app:multi")
    assert b"layers" in data
    assert resolved.index_digest == both["digest"]
    assert resolved.digest != both["digest"]
    await push(layout, layout.platforms([other]), f"{registry}/app:arm", "--all")
    with pytest.raises(Unimplemented, match="linux/arm64"):
        await registries(registry, tmp_path).resolve(f"{registry}/app:arm")


async def test_what_the_registry_does_not_have(registry: str, tmp_path: Path) -> None:
    layout = images.Layout(tmp_path / "layout")
    await push(layout, layout.image(image("hello")), f"{registry}/app:1")
    for absent in ("app:2", "none:1", "app@sha256:" + "0" * 64):
        with pytest.raises(NotFound, match="There is no image"):
            await registries(registry, tmp_path).resolve(f"{registry}/{absent}")
    with pytest.raises(Unavailable, match="cannot be reached"):
        await registries("127.0.0.1:1", tmp_path).resolve("127.0.0.1:1/app:1")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "0.0.0.1", "198.18.0.1", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1%eth0",
        "fd00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::",
        "ff02::1",
    ],
)  # fmt: skip
def test_addresses_of_this_machine_and_its_neighbours(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1"])
def test_addresses_of_the_internet(address: str) -> None:
    assert is_public(address)


async def test_a_registry_at_a_private_address_must_be_named(tmp_path: Path) -> None:
    asked = Registries(store=tmp_path, reachable=Reachable(mirrors={}), file_bytes=1 << 20)
    for location in ("localhost/app:1", "127.0.0.1:5000/app:1", "169.254.169.254/app:1"):
        with pytest.raises(PermissionDenied, match="not public"):
            await asked.resolve(location)


def test_mirrors_are_asked_first_and_get_no_password() -> None:
    mirrors = {"docker.io": ["mirror:5000/hub", "other"], "ghcr.io/acme": ["third"]}
    reachable = Reachable(insecure=["mirror:5000"], mirrors=mirrors)
    *others, own = reachable.places("docker.io/library/app:1", "bot", "s3cret")
    assert [(one.registry, one.repository) for one in others] == [
        ("mirror:5000", "hub/library/app"),
        ("other", "library/app"),
    ]
    assert not any(one.username or one.password for one in others)
    assert (own.registry, own.repository, own.password) == ("docker.io", "library/app", "s3cret")
    first, own = reachable.places("ghcr.io/acme/app@sha256:0")
    assert (first.registry, first.repository) == ("third", "app")
    assert set(reachable.trusted()) == {"mirror:5000", "other", "third"}
