"""The same layers are the same bytes; hostile layers are refused with their reason."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ironworks.builderd.flatten.plan import Flattened, Layer, Limits, Plan
from ironworks.builderd.flatten.run import flatten
from ironworks.builderd.flatten.sparse import octal
from ironworks.model.errors import InvalidRequest
from ironworks.testkit import images
from ironworks.testkit.images import File, directory, hard_link, symlink


def big(seed: int, size: int) -> bytes:
    return hashlib.shake_256(bytes([seed])).digest(size)


def f(name: str, text: str = "", **more: object) -> File:
    return File(name=name, data=text.encode(), **more)  # type: ignore[arg-type]


def layer_files(image: images.Image, root: Path) -> tuple[Layer, ...]:
    found: list[Layer] = []
    for layer in image.layers:
        data = layer.blob()
        digest = hashlib.sha256(data).hexdigest()
        found.append(
            Layer(
                path=str(root / "blobs" / "sha256" / digest),
                digest=layer.digest or f"sha256:{digest}",
                size_bytes=len(data) if layer.size_bytes < 0 else layer.size_bytes,
                diff_id=layer.diff_id or f"sha256:{hashlib.sha256(layer.tar).hexdigest()}",
            )
        )
    return tuple(found)


def build(image: images.Image, place: Path, limits: Limits | None = None) -> Flattened:
    place.mkdir(exist_ok=True)
    images.write_image(place / "layout", image)
    (place / "scratch").mkdir()
    plan = Plan(
        layers=layer_files(image, place / "layout"),
        output=str(place / "rootfs"),
        scratch=str(place / "scratch"),
        limits=limits or Limits(free_bytes=0),
    )
    result = flatten(plan, lambda _: None)
    assert list((place / "scratch").iterdir()) == []
    return result


def rootfs(place: Path) -> bytes:
    return (place / "rootfs").read_bytes()


@pytest.mark.parametrize("compression", ["", "gzip", "zstd"])
def test_the_same_image_is_the_same_bytes(tmp_path: Path, compression: images.Compression) -> None:
    files = [
        directory("d"),
        File(name="d/large", data=big(7, 2_000_000)),
        hard_link("d/again", "d/large"),
        *(f(f"d/{n}", str(n) * n) for n in range(200)),
    ]
    image = images.Image(layers=[images.Layer(tar=images.make_tar(files), compression=compression)])
    first = build(image, tmp_path / "one")
    os.utime(tmp_path / "one")
    second = build(image, tmp_path / "two")
    assert first == second
    assert rootfs(tmp_path / "one") == rootfs(tmp_path / "two")
    assert len(rootfs(tmp_path / "one")) == first.size_bytes


def test_a_slash_alone_is_the_root_directory(tmp_path: Path) -> None:
    def image(root: bytes) -> images.Image:
        tar = raw_entry(root, b"5") + raw_entry(b"a") + END
        return images.Image(layers=[images.Layer(tar=tar)])

    assert build(image(b"/"), tmp_path / "slash") == build(image(b"./"), tmp_path / "dot")
    assert rootfs(tmp_path / "slash") == rootfs(tmp_path / "dot")


def raw_entry(name: bytes, kind: bytes = b"0", target: bytes = b"", size: int = 0) -> bytes:
    """A header that tarfile would not write."""
    block = bytearray(512)
    block[0 : len(name)] = name
    block[100:136] = b"0000644\x000000000\x000000000\x00%011o\x00" % size
    block[136:148] = b"00000000000\x00"
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[157 : 157 + len(target)] = target
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\x00 " % sum(block)
    return bytes(block)


END = bytes(1024)
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "..": (lambda: raw_entry(b"../evil") + END, "upwards"),
    ".. within": (lambda: raw_entry(b"a/../../evil") + END, "upwards"),
    "absolute": (lambda: raw_entry(b"/etc/passwd") + END, "absolute"),
    "link out": (
        lambda: images.make_tar([symlink("l", "../../etc"), f("l/passwd", "evil")]),
        "out of the image",
    ),
    "hard link out": (lambda: raw_entry(b"h", b"1", b"../../etc/shadow") + END, "upwards"),
    "hard link to an absolute name": (
        lambda: raw_entry(b"h", b"1", b"/etc/shadow") + END,
        "absolute",
    ),
    "hard link to nothing": (lambda: raw_entry(b"h", b"1", b"nothing") + END, "to nothing"),
    "hard link to itself": (
        lambda: images.make_tar([f("h"), hard_link("h", "h")]),
        "to itself",
    ),
    "cyclic hard links": (
        lambda: raw_entry(b"a", b"1", b"b") + raw_entry(b"b", b"1", b"a") + END,
        "to nothing",
    ),
    "hard link to a directory": (
        lambda: images.make_tar([directory("d"), hard_link("h", "d")]),
        "to a directory",
    ),
    "circle of links": (
        lambda: images.make_tar([symlink("a", "b"), symlink("b", "a"), f("a/x")]),
        "circle",
    ),
    "file as a directory": (lambda: images.make_tar([f("a"), f("a/b")]), "not a directory"),
    "whiteout of ..": (lambda: raw_entry(b"d/.wh...") + END, "whiteout of nothing"),
    "whiteout of nothing": (lambda: raw_entry(b".wh.") + END, "whiteout of nothing"),
    "whiteout as a directory": (lambda: raw_entry(b".wh.d/a") + END, "reserved"),
    "size beyond the end": (lambda: raw_entry(b"a", size=1 << 30) + END, "longer than the layer"),
    "cut off": (lambda: raw_entry(b"a")[:300], "cut off"),
    "wrong checksum": (lambda: b"x" + raw_entry(b"a")[1:] + END, "checksum"),
    "not a tar": (lambda: b"<html>" * 1000, "checksum"),
    "unknown kind": (lambda: raw_entry(b"a", b"Q") + END, "kind"),
    "root is a file": (lambda: raw_entry(b".") + END, "root of the image"),
    "NUL in a PAX name": (
        lambda: (
            raw_entry(b"p", b"x", size=12) + b"12 path=a\0b\n".ljust(512, b"\0") + raw_entry(b"a")
        ),
        "NUL",
    ),
    "damaged PAX": (
        lambda: raw_entry(b"p", b"x", size=12) + b"99 path=abc\n".ljust(512, b"\0"),
        "damaged PAX",
    ),
    "huge PAX": (lambda: raw_entry(b"p", b"x", size=1 << 24) + END, "extended header"),
    "long component": (lambda: images.make_tar([f("c" * 256)]), "longer than 255"),
    "long name": (lambda: images.make_tar([f("/".join(["c" * 250] * 20))]), "longer than 4095"),
    "too many files": (lambda: images.make_tar([f(f"{n}") for n in range(60)]), "more than 50"),
    "bomb": (lambda: images.make_tar([f("z", "\0" * 3_000_000)]), "unpacks to more"),
}


@pytest.mark.parametrize("text", [b"0o5", b"0_5", b"+5", b"-5", b"5 5", b"9", b"0x5"])
def test_a_number_of_a_header_is_octal_digits_and_nothing_else(text: bytes) -> None:
    with pytest.raises(InvalidRequest, match="not a number"):
        octal(text.ljust(12, b"\0"), "size")


@pytest.mark.parametrize("text", [b"5", b"      5 ", b"0000005", b"5\0zzzz"])
def test_a_number_of_a_header_ends_at_its_nul(text: bytes) -> None:
    assert octal(text.ljust(12, b"\0"), "size") == 5


@pytest.mark.parametrize("rootfs_format", ["squashfs", "ext4", ""])
def test_links_lead_no_deeper_than_a_name_may_be(tmp_path: Path, rootfs_format: str) -> None:
    deep = "/".join(["a"] * 40)
    tar = images.make_tar([directory(deep), symlink("s", deep), f(f"s/{deep}/x")])
    image = images.Image(layers=[images.Layer(tar=tar)])
    images.write_image(tmp_path / "layout", image)
    plan = Plan(
        layers=layer_files(image, tmp_path / "layout"),
        output=str(tmp_path / "rootfs") if rootfs_format else "",
        scratch=str(tmp_path),
        format=rootfs_format or "squashfs",
        limits=Limits(free_bytes=0, path_bytes=100),
    )
    with pytest.raises(InvalidRequest, match="longer than 100"):
        flatten(plan, lambda _: None)


def test_a_squashfs_has_no_files_of_too_many_owners(tmp_path: Path) -> None:
    files = [File(name=f"{n}", uid=n, gid=100_000 + n) for n in range(33_000)]
    tar = images.make_tar(files, tarfile.GNU_FORMAT)
    with pytest.raises(InvalidRequest, match="users and groups"):
        build(images.Image(layers=[images.Layer(tar=tar)]), tmp_path)


def test_an_ext4_has_no_file_of_too_many_names(tmp_path: Path) -> None:
    links = (raw_entry(b"l%d" % n, b"1", b"a") for n in range(65_001))
    image = images.Image(layers=[images.Layer(tar=raw_entry(b"a") + b"".join(links) + END)])
    images.write_image(tmp_path / "layout", image)
    plan = Plan(
        layers=layer_files(image, tmp_path / "layout"),
        output=str(tmp_path / "rootfs"),
        scratch=str(tmp_path),
        format="ext4",
        limits=Limits(free_bytes=0),
    )
    with pytest.raises(InvalidRequest, match="more names"):
        flatten(plan, lambda _: None)


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_layers_are_refused_with_their_reason(
    name: str, compression: images.Compression, tmp_path: Path
) -> None:
    make, reason = HOSTILE[name]
    image = images.Image(layers=[images.Layer(tar=make(), compression=compression)])
    limits = Limits(free_bytes=0, file_count=50, unpacked_bytes=2_000_000)
    with pytest.raises(InvalidRequest, match=reason):
        build(image, tmp_path, limits)
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ({"digest": "sha256:" + "0" * 64}, "what the manifest says"),
        ({"size_bytes": 10}, "what the manifest says"),
        ({"diff_id": "sha256:" + "0" * 64}, "configuration says"),
    ],
)
def test_blobs_that_are_not_what_they_should_be(
    lie: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    layer = images.Layer(tar=images.make_tar([f("a", "x" * 9000)]), compression="")
    honest = images.Image(layers=[layer])
    images.write_image(tmp_path / "layout", honest)
    (tmp_path / "scratch").mkdir()
    blob = layer_files(honest, tmp_path / "layout")[0]
    values = {name: getattr(blob, name) for name in blob.__slots__}
    plan = Plan(
        layers=(Layer(**{**values, **lie}),),
        output=str(tmp_path / "out"),
        scratch=str(tmp_path / "scratch"),
        limits=Limits(free_bytes=0),
    )
    with pytest.raises(InvalidRequest, match=reason):
        flatten(plan, lambda _: None)


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_cut_off_layer_is_refused(compression: images.Compression, tmp_path: Path) -> None:
    tar = images.make_tar([File(name="a", data=big(5, 100_000))])
    data = images.Layer(tar=tar, compression=compression).blob()[:50_000]
    blob = tmp_path / "blob"
    blob.write_bytes(data)
    layer = Layer(
        path=str(blob),
        digest=f"sha256:{hashlib.sha256(data).hexdigest()}",
        size_bytes=len(data),
        diff_id=f"sha256:{hashlib.sha256(tar).hexdigest()}",
    )
    plan = Plan(
        layers=(layer,),
        output=str(tmp_path / "out"),
        scratch=str(tmp_path),
        limits=Limits(free_bytes=0),
    )
    with pytest.raises(InvalidRequest, match=r"cut off|configuration says"):
        flatten(plan, lambda _: None)


@pytest.mark.parametrize("rootfs_format", ["squashfs", "ext4"])
def test_progress_has_a_total_in_each_step_that_takes_long(
    tmp_path: Path, rootfs_format: str
) -> None:
    files = [f("a", "x" * (40 << 20)), hard_link("b", "a")]
    image = images.Image(layers=[images.Layer(tar=images.make_tar(files))])
    images.write_image(tmp_path / "layout", image)
    (tmp_path / "scratch").mkdir()
    layers = layer_files(image, tmp_path / "layout")
    plan = Plan(
        layers=layers,
        output=str(tmp_path / "rootfs"),
        scratch=str(tmp_path / "scratch"),
        format=rootfs_format,
        limits=Limits(free_bytes=0),
    )
    told: list[dict[str, Any]] = []
    flatten(plan, told.append)
    totals = {one["step"]: one["total_bytes"] for one in told}
    assert totals["unpacking layers"] == layers[0].size_bytes
    assert totals["writing the file system"] >= 40 << 20
    assert all(one["done_bytes"] <= one["total_bytes"] for one in told)
