"""What documents say, which paths may be read, and what skopeo's complaints mean."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ironworks.builderd.sources.documents import (
    choose_named,
    choose_platform,
    is_index,
    read_config,
    read_descriptor,
    read_manifest,
)
from ironworks.builderd.sources.local import (
    check_blob,
    classify,
    is_compressed,
    locate,
    read_blob,
    resolve_layout,
)
from ironworks.builderd.types import Descriptor, HealthCheck, ImageReference, Transport
from ironworks.model.errors import (
    FailedPrecondition,
    InvalidRequest,
    IronError,
    NotFound,
    Unimplemented,
)
from ironworks.runtime.architecture import host_architecture
from ironworks.testkit import images

DIGEST = "sha256:" + "a" * 64
OTHER = "arm64" if host_architecture() == "amd64" else "amd64"
LAYER = {
    "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
    "digest": DIGEST,
    "size": 10,
}


def data(value: object) -> bytes:
    return json.dumps(value).encode()


def manifest(**changes: object) -> bytes:
    return data({"config": {"digest": DIGEST, "size": 5}, "layers": [LAYER], **changes})


def config(**changes: object) -> bytes:
    return data(
        {
            "os": "linux",
            "architecture": host_architecture(),
            "rootfs": {"diff_ids": [DIGEST]},
            "config": {"Cmd": ["/app"]},
            **changes,
        }
    )


def read(document: bytes) -> object:
    return read_manifest(document, max_layers=2, max_packed_bytes=100)


def test_a_manifest() -> None:
    found = read_manifest(manifest(), max_layers=2, max_packed_bytes=100)
    assert found.config.digest == DIGEST
    assert [layer.size_bytes for layer in found.layers] == [10]
    assert not is_index(manifest())
    assert is_index(data({"manifests": []}))


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 100_000,
        manifest(layers="none"),
        manifest(layers=[LAYER] * 3),
        manifest(layers=[{**LAYER, "size": 101}]),
        manifest(layers=[{**LAYER, "size": -1}]),
        manifest(layers=[{**LAYER, "size": True}]),
        manifest(layers=[{**LAYER, "digest": "md5:x"}]),
        manifest(layers=[{**LAYER, "digest": "sha256:../../etc/passwd"}]),
        manifest(layers=[{**LAYER, "mediaType": "application/x-tar"}]),
        manifest(layers=[1]),
        manifest(config=None),
        manifest(mediaType="application/vnd.cncf.helm.config.v1+json"),
        data({"x": "y" * 5_000_000}),
    ],
)
def test_manifests_that_are_refused(document: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read(document)


@given(st.recursive(st.none() | st.integers() | st.text(), st.lists) | st.binary(max_size=50))
def test_no_document_does_more_than_be_refused(value: object) -> None:
    document = value if isinstance(value, bytes) else data(value)
    with pytest.raises(InvalidRequest):
        read(document)
    with pytest.raises(InvalidRequest):
        read_descriptor(value)
    with pytest.raises(InvalidRequest):
        choose_named(document, "")


def test_how_to_run_it() -> None:
    raw: dict[str, object] = {
        "Entrypoint": ["/e"],
        "Cmd": ["c"],
        "Env": ["A=b"],
        "User": "www",
        "WorkingDir": "/srv",
        "ExposedPorts": {"80/tcp": {}, "443/tcp": {}},
        "StopSignal": "SIGINT",
        "Labels": {"b": "2", "a": "1"},
        "Healthcheck": {
            "Test": ["CMD", "/check"],
            "Interval": 30_000_000_000,
            "Timeout": -1,
            "Retries": 3,
        },
    }
    found, diff_ids = read_config(config(config=raw), 1)
    assert (found.entrypoint, found.cmd, found.env) == (("/e",), ("c",), ("A=b",))
    assert (found.user, found.working_directory, found.stop_signal) == ("www", "/srv", "SIGINT")
    assert found.exposed_ports == ("443/tcp", "80/tcp")
    assert list(found.labels.items()) == [("a", "1"), ("b", "2")]
    assert found.health_check == HealthCheck(
        test=("CMD", "/check"), interval_ns=30_000_000_000, retries=3
    )
    assert diff_ids == (DIGEST,)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"architecture": OTHER}, Unimplemented),
        ({"os": "windows"}, Unimplemented),
        ({"config": {}}, FailedPrecondition),
        ({"config": None}, FailedPrecondition),
        ({"config": {"Cmd": "/app"}}, InvalidRequest),
        ({"config": {"Cmd": ["a\0b"]}}, InvalidRequest),
        ({"config": {"Cmd": ["x" * 70_000]}}, InvalidRequest),
        ({"rootfs": {"diff_ids": []}}, InvalidRequest),
        ({"rootfs": {"diff_ids": ["x"]}}, InvalidRequest),
        ({"rootfs": None}, InvalidRequest),
    ],
)
def test_configurations_that_are_refused(
    changes: Mapping[str, Any], error: type[IronError]
) -> None:
    with pytest.raises(error):
        read_config(config(**changes), 1)


def entry(architecture: str, number: int, system: str = "linux") -> dict[str, object]:
    digest = f"sha256:{number:064x}"
    return {
        "digest": digest,
        "size": 1,
        "platform": {"os": system, "architecture": architecture},
    }


def test_an_index_has_an_image_for_this_platform_or_says_for_which() -> None:
    mine = entry(host_architecture(), 2)
    index = {"manifests": [entry(OTHER, 1), mine, entry("unknown", 3, "unknown")]}
    assert choose_platform(data(index)).digest == mine["digest"]
    with pytest.raises(Unimplemented, match=f"linux/{OTHER}.*linux/{host_architecture()}"):
        choose_platform(data({"manifests": [entry(OTHER, 1), entry("unknown", 3, "unknown")]}))


def named(name: str, number: int) -> dict[str, object]:
    annotations = {"org.opencontainers.image.ref.name": name}
    return {"digest": f"sha256:{number:064x}", "size": 1, "annotations": annotations}


def test_images_of_a_layout_by_name() -> None:
    index = data({"manifests": [named("a", 1), named("b", 2)]})
    assert choose_named(index, "b").digest.endswith("2")
    assert choose_named(data({"manifests": [named("a", 1)]}), "").digest.endswith("1")
    with pytest.raises(InvalidRequest, match=r"no image named 'c'.*a, b"):
        choose_named(index, "c")
    with pytest.raises(InvalidRequest, match=r"several images.*a, b"):
        choose_named(index, "")
    with pytest.raises(InvalidRequest, match="no image"):
        choose_named(data({"manifests": []}), "")


# --- paths --------------------------------------------------------------------------------------


def at(path: Path, transport: Transport = Transport.PATH) -> ImageReference:
    return ImageReference(transport=transport, location=str(path))


def test_only_below_the_roots(tmp_path: Path) -> None:
    root, outside = tmp_path / "images", tmp_path / "outside"
    (root / "app").mkdir(parents=True)
    outside.mkdir()
    (root / "out").symlink_to(outside)
    (root / "in").symlink_to(root / "app")
    assert locate(at(root / "app"), [root]) == root / "app"
    assert locate(at(root / "in"), [root]) == root / "app"
    answers: set[str] = set()
    for path in (outside, root / "out", root / "absent", Path("/etc/passwd")):
        with pytest.raises(NotFound) as caught:
            locate(at(path), [root])
        answers.add(str(caught.value).replace(str(path), "PATH"))
    assert len(answers) == 1


def test_what_a_path_is(tmp_path: Path) -> None:
    images.write_image(tmp_path / "layout", images.Image(layers=[]))
    assert classify(tmp_path / "layout") is Transport.LAYOUT
    for name, member in (("oci.tar", "index.json"), ("docker.tar", "manifest.json")):
        with tarfile.open(tmp_path / name, "w") as archive:
            archive.addfile(tarfile.TarInfo(member))
    assert classify(tmp_path / "oci.tar") is Transport.OCI_ARCHIVE
    assert classify(tmp_path / "docker.tar") is Transport.DOCKER_ARCHIVE
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.tar").write_text("hello")
    (tmp_path / "garbage.tar").write_bytes(b"x" * 4096)
    with tarfile.open(tmp_path / "other.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("README"))
    with tarfile.open(tmp_path / "compressed.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("index.json"))
    os.mkfifo(tmp_path / "fifo.tar")
    for name in ("empty", "text.tar", "garbage.tar", "other.tar", "compressed.tar", "fifo.tar"):
        with pytest.raises(InvalidRequest):
            classify(tmp_path / name)
    compressed = [
        one.name for one in tmp_path.glob("*.tar") if one.is_file() and is_compressed(one)
    ]
    assert compressed == ["compressed.tar"]
    assert not is_compressed(tmp_path / "layout")
    with pytest.raises(InvalidRequest):
        is_compressed(tmp_path / "fifo.tar")


def test_blobs_are_compared_with_their_digests(tmp_path: Path) -> None:
    layout = images.Layout(tmp_path)
    descriptor = Descriptor(media_type="", digest=layout.blob(b"{}"), size_bytes=2)
    assert read_blob(layout.blobs, descriptor) == b"{}"
    path = check_blob(layout.blobs, descriptor)
    path.write_bytes(b"[]")
    with pytest.raises(InvalidRequest, match="not what the digest says"):
        read_blob(layout.blobs, descriptor)
    path.write_bytes(b"[ ]")
    with pytest.raises(InvalidRequest, match="has 3 bytes, not 2"):
        check_blob(layout.blobs, descriptor)
    path.unlink()
    path.symlink_to("/etc/passwd")
    for reader in (read_blob, check_blob):
        with pytest.raises(InvalidRequest, match="cannot be read"):
            reader(layout.blobs, descriptor)


def test_indexes_in_indexes_end(tmp_path: Path) -> None:
    layout = images.Layout(tmp_path)
    image = images.Image(layers=[], architecture=host_architecture())
    inner = layout.platforms([image])
    layout.tag(latest=inner)
    resolved, _ = resolve_layout(tmp_path, "latest")
    assert resolved.index_digest == inner["digest"]
    for _ in range(5):
        inner = layout.document(
            images.INDEX_TYPE,
            {
                "mediaType": images.INDEX_TYPE,
                "manifests": [
                    {
                        **inner,
                        "platform": {"os": "linux", "architecture": host_architecture()},
                    }
                ],
            },
        )
    layout.tag(latest=inner)
    with pytest.raises(InvalidRequest, match="nested"):
        resolve_layout(tmp_path, "latest")
