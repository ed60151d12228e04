from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from ironworks.model.errors import InvalidRequest
from ironworks.sdk.archives import open_archive
from ironworks.testkit import images


def layout(root: Path) -> Path:
    layer = images.Layer(tar=images.make_tar([images.File(name="app", data=b"x" * 700)]))
    images.write_image(root, images.Image(layers=[layer], config={"Cmd": ["/app"]}))
    return root


def test_a_layout_is_the_same_archive_whenever_it_is_packed(tmp_path: Path) -> None:
    one, two = open_archive(layout(tmp_path / "a")), open_archive(layout(tmp_path / "b"))
    assert one.sha256() == two.sha256()
    packed = b"".join(one.chunks(0))
    assert len(packed) == one.size_bytes
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        assert tar.getnames()[:2] == ["oci-layout", "index.json"]
        for member in tar:
            if member.isdir():
                continue
            file = tar.extractfile(member)
            assert file is not None
            assert file.read() == (tmp_path / "a" / member.name).read_bytes()


def test_the_rest_of_an_archive_is_read_from_any_place(tmp_path: Path) -> None:
    archive = open_archive(layout(tmp_path / "a"))
    whole = b"".join(archive.chunks(0))
    for offset in (0, 1, 511, 512, 600, len(whole) - 1, len(whole)):
        assert b"".join(archive.chunks(offset)) == whole[offset:]


def test_what_is_no_image_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for name, said in (("none", "cannot be read"), ("empty", "neither"), (".", "not an OCI")):
        with pytest.raises(InvalidRequest, match=said):
            open_archive(tmp_path / name)


def test_a_file_that_changes_meanwhile_is_said(tmp_path: Path) -> None:
    (tmp_path / "app.tar").write_bytes(b"x" * 10)
    archive = open_archive(tmp_path / "app.tar")
    (tmp_path / "app.tar").write_bytes(b"x")
    with pytest.raises(InvalidRequest, match="shorter"):
        archive.sha256()
