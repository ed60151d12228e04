"""A registry that misbehaves costs time that is bounded, and is told apart."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ironworks.builderd.sources.documents import read_manifest
from ironworks.builderd.sources.registry import Reachable, Registries
from ironworks.builderd.types import Pulled
from ironworks.model.errors import (
    DeadlineExceeded,
    InvalidRequest,
    IronError,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from ironworks.testkit.hostile_registry import (
    BLOBS,
    LAYER,
    LAYER_DIGEST,
    MANIFESTS,
    HostileRegistry,
    hostile_registry,
)

RESOLVING: dict[str, tuple[type[IronError], str]] = {
    "hang": (DeadlineExceeded, "did not answer within"),
    "slow": (DeadlineExceeded, "did not answer within"),
    "limited": (Unavailable, "limits how often"),
    "denied": (PermissionDenied, "does not hand out"),
    "forbidden": (PermissionDenied, "does not hand out"),
    "broken": (Unavailable, "cannot be reached"),
    "html": (InvalidRequest, "is not JSON"),
    "to-metadata": (PermissionDenied, "without TLS"),
    "to-loopback": (PermissionDenied, "not public"),
    "to-private": (PermissionDenied, "not public"),
    "to-file": (PermissionDenied, "not to HTTP"),
    "token-elsewhere": (PermissionDenied, "not public"),
    "deep": (InvalidRequest, "is not JSON"),
    "circle": (Unavailable, "redirects in circles"),
    "huge": (InvalidRequest, "larger than"),
    "schema1": (InvalidRequest, "type of manifest"),
    "other-digest": (InvalidRequest, "another image than"),
    "nested": (InvalidRequest, "other bytes"),
}
PULLING: dict[str, tuple[type[IronError], str]] = {
    "other-bytes": (InvalidRequest, "other bytes"),
    "more-bytes": (InvalidRequest, "other bytes"),
    "elsewhere": (InvalidRequest, "other bytes"),
    "cut-off": (Unavailable, "broke off"),
    "slow-bytes": (DeadlineExceeded, "next to nothing"),
    "hang-bytes": (DeadlineExceeded, "stopped sending"),
    "blob-to-loopback": (PermissionDenied, "not public"),
    "blob-to-metadata": (PermissionDenied, "without TLS"),
    "gone": (NotFound, "There is no image"),
}


@pytest.fixture
async def registry() -> AsyncIterator[HostileRegistry]:
    async with hostile_registry() as running:
        yield running


def registries(registry: HostileRegistry, place: Path, seconds: float) -> Registries:
    return Registries(
        store=place / "store",
        reachable=Reachable(
            insecure=[registry.address], mirrors={}, stall_seconds=seconds, answer_seconds=seconds
        ),
        file_bytes=1 << 20,
    )


async def fetch(
    registry: HostileRegistry, reference: str, place: Path, seconds: float, tenant_id: str = "tnt_a"
) -> Pulled:
    """Resolve and pull one image, as a build does; its manifest is read as builds read it."""
    asked = registries(registry, place, seconds)
    location = f"{registry.address}/{reference}"
    resolved, data = await asked.resolve(location)
    manifest = read_manifest(data, max_layers=9, max_packed_bytes=1 << 20)
    blobs = [manifest.config, *manifest.layers]
    return await asked.pull(
        location, resolved, data, blobs, tenant_id=tenant_id, on_bytes=lambda _: None
    )


async def test_an_honest_image_is_pulled(registry: HostileRegistry, tmp_path: Path) -> None:
    await fetch(registry, "honest:1", tmp_path, 20)


@pytest.mark.parametrize("how", [*RESOLVING, *PULLING])
async def test_misbehaviour_is_refused_with_its_reason(
    how: str, registry: HostileRegistry, tmp_path: Path
) -> None:
    kind, reason = (RESOLVING | PULLING)[how]
    hangs = kind is DeadlineExceeded
    reference = f"{how}@sha256:{'0' * 64}" if how == "other-digest" else f"{how}:1"
    with pytest.raises(kind, match=reason) as caught:
        await fetch(registry, reference, tmp_path, 2 if hangs else 20)
    assert "skopeo" not in caught.value.message
    layer = LAYER_DIGEST.removeprefix("sha256:")
    assert list((tmp_path / "store").glob(f"*/sha256/{layer}")) == []
    assert registry.asked


def test_all_that_the_registry_can_do_is_tried() -> None:
    assert {*RESOLVING, *PULLING} == {*MANIFESTS, *BLOBS}


async def test_a_pull_goes_on_where_it_broke_off(registry: HostileRegistry, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="broke off"):
        await fetch(registry, "breaks-once:1", tmp_path, 20)
    pulled = await fetch(registry, "breaks-once:1", tmp_path, 20)
    assert (pulled.blobs / LAYER_DIGEST.removeprefix("sha256:")).read_bytes() == LAYER
    # The second time what was there already was not sent again.
    assert f"bytes={len(LAYER) // 2}-" in registry.ranges
    assert not list((tmp_path / "store").glob("*/partial/*/*"))


async def test_a_damaged_beginning_is_thrown_away(
    registry: HostileRegistry, tmp_path: Path
) -> None:
    with pytest.raises(Unavailable, match="broke off"):
        await fetch(registry, "breaks-once:1", tmp_path, 20)
    name = LAYER_DIGEST.removeprefix("sha256:")
    (partly,) = (tmp_path / "store").glob(f"*/partial/tnt_a/{name}")
    partly.write_bytes(bytes(partly.stat().st_size))
    pulled = await fetch(registry, "breaks-once:1", tmp_path, 20)
    assert (pulled.blobs / LAYER_DIGEST.removeprefix("sha256:")).read_bytes() == LAYER


async def test_who_has_proved_access_shares_and_nobody_else(
    registry: HostileRegistry, tmp_path: Path
) -> None:
    await fetch(registry, "honest:1", tmp_path, 20)
    await fetch(registry, "honest:1", tmp_path, 20, "tnt_b")
    # The first byte of each blob is the proof.
    assert registry.ranges == ["bytes=0-0"] * 2
    for denied in ("gone", "denied-bytes"):
        with pytest.raises((NotFound, PermissionDenied)):
            await fetch(registry, f"{denied}:1", tmp_path, 20, "tnt_b")
    # Another registry's word proves nothing: it has a store of its own.
    async with hostile_registry() as liar:
        with pytest.raises(InvalidRequest, match="other bytes"):
            await fetch(liar, "other-bytes:1", tmp_path, 20, "tnt_b")


async def test_with_access_or_without_the_same_is_asked_whether_a_blob_is_kept_or_not(
    registry: HostileRegistry, tmp_path: Path
) -> None:
    asked: list[list[str]] = []
    for kept in (False, True):
        if kept:
            await fetch(registry, "honest:1", tmp_path, 20)
        registry.asked.clear()
        with pytest.raises(PermissionDenied):
            await fetch(registry, "denied-bytes:1", tmp_path, 20, "tnt_b")
        asked.append(sorted(registry.asked))
    assert asked[0] == asked[1]
