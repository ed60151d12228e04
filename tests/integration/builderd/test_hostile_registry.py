"""A registry that misbehaves costs time that is bounded, and is told apart."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ironworks.builderd.sources.documents import read_manifest
from ironworks.builderd.sources.skopeo import Skopeo, registries_conf
from ironworks.builderd.types import ImageReference, Pulled, Transport
from ironworks.model.errors import (
    DeadlineExceeded,
    InvalidRequest,
    IronError,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from ironworks.testkit.hostile_registry import BLOBS, MANIFESTS, HostileRegistry, hostile_registry

RESOLVING: dict[str, tuple[type[IronError], str]] = {
    "hang": (DeadlineExceeded, "did not answer within"),
    "slow": (DeadlineExceeded, "did not answer within"),
    "limited": (DeadlineExceeded, "limits how often"),
    "denied": (PermissionDenied, "does not hand out"),
    "forbidden": (PermissionDenied, "does not hand out"),
    "broken": (Unavailable, "cannot be reached"),
    "html": (InvalidRequest, "is not JSON"),
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
    "cut-off": (Unavailable, "cannot be reached"),
    "slow-bytes": (DeadlineExceeded, "did not hand over"),
    "hang-bytes": (DeadlineExceeded, "did not hand over"),
    "gone": (NotFound, "There is no image"),
}


@pytest.fixture
async def registry() -> AsyncIterator[HostileRegistry]:
    async with hostile_registry() as running:
        yield running


async def fetch(registry: HostileRegistry, reference: str, place: Path, seconds: float) -> Pulled:
    """Resolve and pull one image, as a build does; its manifest is read as builds read it."""
    configuration = place / "registries.conf"
    configuration.write_text(registries_conf([registry.address], {}))
    skopeo = Skopeo(registries=configuration, file_bytes=1 << 20, answer_seconds=seconds)
    image = ImageReference(transport=Transport.REGISTRY, location=f"{registry.address}/{reference}")
    scratch = place / "scratch" / "bld_1"
    scratch.mkdir(parents=True)
    resolved = await skopeo.resolve(image)
    pulled = await skopeo.pull(
        image, resolved, scratch=scratch, store=place / "store", timeout_seconds=seconds
    )
    read_manifest(pulled.manifest, max_layers=9, max_packed_bytes=1 << 20)
    return pulled


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
    assert list((tmp_path / "store").glob("pulls/*/*")) == []
    assert registry.asked


def test_all_that_the_registry_can_do_is_tried() -> None:
    assert {*RESOLVING, *PULLING} == {*MANIFESTS, *BLOBS}
