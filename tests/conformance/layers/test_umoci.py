"""What we make of layers is what `umoci unpack` makes of them, as squashfs and as ext4.

Each image is unpacked by umoci as root beside ours. Where the two differ on purpose, the image
stands in `OURS_ALONE` with the reason, and with the tree that the specification asks for.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from ironworks.builderd.flatten.plan import Flattened, Layer, Limits, Plan
from ironworks.builderd.flatten.run import flatten
from ironworks.testkit import images
from ironworks.testkit.images import File, directory, hard_link, opaque, symlink, whiteout
from ironworks.testkit.trees import Tree, tree_of_directory, tree_of_ext4, tree_of_squashfs

MADE_UP = 1_750_000_000
"""umoci gives the time of the day to directories that it takes things out of late."""


def big(seed: int, size: int) -> bytes:
    return hashlib.shake_256(str(seed).encode()).digest(size)


def f(name: str, text: str = "", **more: object) -> File:
    return File(name=name, data=text.encode(), **more)  # type: ignore[arg-type]


def pax(**records: str) -> bytes:
    """A file of five bytes whose PAX header says more than its own."""
    info = tarfile.TarInfo("a")
    info.size = 5
    info.pax_headers = records
    return info.tobuf(tarfile.PAX_FORMAT) + b"hello".ljust(512, b"\0") + bytes(1024)


def sparse(*how: str, runs: int = 3) -> bytes:
    """A tar by GNU tar of a file that is mostly holes."""
    with tempfile.TemporaryDirectory() as place:
        with (Path(place) / "holes").open("wb") as file:
            for run in range(runs):
                file.seek(run * 65_536 + 1000)
                file.write(big(run, 3000 + run))
            file.truncate(runs * 65_536 + 777)
        os.utime(file.name, (1_700_000_000, 1_700_000_000))
        command = ["tar", "--sparse", "--owner=0", "--group=0", *how, "-cf", "-", "holes"]
        return subprocess.run(command, cwd=place, check=True, capture_output=True).stdout


Layers = list[list[File] | bytes]
SEMANTICS: dict[str, Layers] = {
    "one layer": [[directory("a"), f("a/b", "hello"), f("c", "x", mode=0o755)]],
    "replaced file": [[f("a", "old")], [f("a", "new", mode=0o600)]],
    "whiteout": [[directory("d"), f("d/a"), f("d/b")], [whiteout("d/a")]],
    "whiteout of a directory": [[directory("d"), directory("d/e"), f("d/e/f")], [whiteout("d")]],
    "whiteout of nothing": [[f("a")], [whiteout("nothing"), whiteout("no/where")]],
    "whiteout before its own file": [[f("a", "old")], [whiteout("a"), f("a", "new")]],
    "whiteout after its own file": [[f("a", "old")], [f("a", "new"), whiteout("a")]],
    "whiteout of a directory that comes again": [
        [directory("d"), f("d/old")],
        [directory("d", 0o700), f("d/new"), whiteout("d")],
    ],
    "opaque": [[directory("d"), f("d/old")], [directory("d"), opaque("d"), f("d/new")]],
    "opaque after": [[directory("d"), f("d/old")], [directory("d"), f("d/new"), opaque("d")]],
    "opaque in depth": [
        [directory("d"), directory("d/e"), f("d/e/old"), directory("d/x"), f("d/x/y")],
        [directory("d"), directory("d/e"), f("d/e/new"), opaque("d")],
    ],
    "file over directory": [[directory("d"), f("d/a")], [f("d", "a file")]],
    "directory over file": [[f("d", "a file")], [directory("d"), f("d/a")]],
    "directory keeps its content": [[directory("d"), f("d/a")], [directory("d", 0o711)]],
    "directory over link": [
        [directory("real"), f("real/a"), symlink("d", "real")],
        [directory("d"), f("d/b")],
    ],
    "link over directory": [
        [directory("real"), directory("d"), f("d/a")],
        [symlink("d", "real")],
    ],
    "parent is a link": [
        [directory("usr"), directory("usr/lib"), symlink("lib", "usr/lib")],
        [f("lib/libc.so", "elf")],
    ],
    "parent is an absolute link": [
        [directory("run"), directory("var"), symlink("var/run", "/run")],
        [directory("var/run/app"), f("var/run/app/pid", "1")],
    ],
    "parent is a chain of links": [
        [directory("a"), directory("a/b"), symlink("c", "a"), symlink("d", "c/b/../b")],
        [f("d/file", "deep")],
    ],
    "whiteout through a link": [
        [directory("usr"), f("usr/a"), f("usr/b"), symlink("l", "usr")],
        [whiteout("l/a")],
    ],
    "hard links": [[f("a", "data"), hard_link("b", "a"), directory("d"), hard_link("d/c", "b")]],
    "hard link to a lower layer": [[f("a", "data")], [hard_link("b", "a")]],
    "hard link outlives its target": [[f("a", "data")], [hard_link("b", "a"), whiteout("a")]],
    "hard link whose target is replaced": [
        [f("a", "old"), hard_link("b", "a")],
        [f("a", "new")],
    ],
    "hard link over a file": [[f("a", "data"), f("b", "other")], [hard_link("b", "a")]],
    "link replaced by file": [[f("t", "target"), symlink("l", "t")], [f("l", "own")]],
    "dangling link": [[symlink("l", "/nowhere"), symlink("m", "../up")]],
    "modes": [
        [f("setuid", mode=0o4755), f("none", mode=0), directory("tmp", 0o1777)],
        [directory("setgid", 0o2775)],
    ],
    "owners": [[f("a", uid=1000, gid=100), f("b", uid=100_000, gid=65_534)]],
    "large owner": [[f("a", uid=3_000_000, gid=4_000_000)]],
    "devices": [
        [
            File(name="null", kind=tarfile.CHRTYPE, device=(1, 3), mode=0o666),
            File(name="disk", kind=tarfile.BLKTYPE, device=(8, 17), mode=0o660),
            File(name="fifo", kind=tarfile.FIFOTYPE, mode=0o644),
        ]
    ],
    "long names": [
        [directory("d" * 200), f("d" * 200 + "/" + "f" * 250, "x"), symlink("l", "t/" * 150 + "t")]
    ],
    "many components": [[directory("/".join(["d"] * n)) for n in range(1, 60)]],
    "dotted names": [[directory("./d"), f("./d/./a", "x"), f("d//b", "y")]],
    "names of all bytes": [[f("ümlaut", "x"), f("new\nline", "y"), f("back\\slash", "z")]],
    "xattrs": [
        [f("a", "x", xattrs={"user.note": "hello"}), f("b", "y", xattrs={"user.x": ""})],
        [f("a", "z", xattrs={"user.other": "1"})],
    ],
    "file capability": [
        [
            f(
                "ping",
                "elf",
                xattrs={
                    "security.capability": "\x01\0\0\x02\0\x20" + "\0" * 14,
                },
            )
        ]
    ],
    "contents": [
        [
            directory("d"),
            File(name="d/empty"),
            File(name="d/block", data=big(1, 512)),
            File(name="d/small", data=big(2, 5000)),
            File(name="d/large", data=big(3, 3_000_001)),
            File(name="d/zeros", data=bytes(1_000_000)),
        ]
    ],
    "root": [[File(name="./", kind=tarfile.DIRTYPE, mode=0o711, mtime=1_234_567_890), f("a")]],
    "empty layer": [[f("a")], [], [f("b")]],
    "old and new times": [[f("old", mtime=1), f("new", mtime=4_000_000_000)]],
    "trusted and many xattrs": [
        [
            f(
                "a",
                "x",
                xattrs={"trusted.overlay.note": "t", "user.one": "1", "user.two": "2" * 99},
            ),
            directory("plain"),
        ]
    ],
    "one name twice in a layer": [[f("a", "first"), f("b"), f("a", "last", mode=0o600)]],
    "file and then directory of one name": [[f("a", "file"), directory("a"), f("a/b", "in it")]],
    "directory and then file of one name": [[directory("a"), f("a/b"), f("a", "file")]],
    "hard link through a link": [
        [directory("usr"), f("usr/a", "data"), symlink("l", "usr")],
        [hard_link("b", "l/a")],
    ],
    "hard link of three layers": [
        [f("a", "data")],
        [hard_link("b", "a")],
        [hard_link("c", "b"), whiteout("a")],
    ],
    "hard link replaces a link": [[f("a", "data"), symlink("l", "a")], [hard_link("l", "a")]],
    "hard link carries no mode of its own": [
        [f("a", "data", mode=0o640, uid=7), replace(hard_link("b", "a"), mode=0o640, uid=7)]
    ],
    "whiteout of a link to a directory": [
        [directory("d"), f("d/a"), symlink("l", "d")],
        [whiteout("l")],
    ],
    "whiteouts in three layers": [[f("a", "1")], [whiteout("a")], [f("a", "3")]],
    "opaque, and opened again": [
        [directory("d"), f("d/one")],
        [opaque("d"), f("d/two")],
        [f("d/three")],
    ],
    "opaque of what is not there": [[f("a")], [opaque("no/where")]],
    "directory left empty": [[directory("d"), f("d/a")], [whiteout("d/a")]],
    "parents that no layer names": [[f("deep/down/below/file", "x")]],
    "deep tree removed": [
        [directory("/".join(["d"] * n)) for n in range(1, 30)],
        [whiteout("d/d/d")],
    ],
    "a file below a later link": [
        [directory("etc"), f("etc/a", "1")],
        [directory("private"), directory("private/etc"), whiteout("etc")],
        [symlink("etc", "private/etc")],
        [f("etc/b", "2")],
    ],
    "setuid of another owner": [[f("s", "x", mode=0o6755, uid=1000, gid=1000)]],
    "GNU long names": [
        images.make_tar(
            [directory("d" * 120), f("d" * 120 + "/" + "f" * 200, "x"), symlink("l", "t" * 300)],
            tarfile.GNU_FORMAT,
        )
    ],
    "GNU large numbers": [
        images.make_tar([f("a", uid=3_000_000, gid=9_000_000)], tarfile.GNU_FORMAT)
    ],
    "ustar prefix": [
        images.make_tar(
            [directory("p" * 60), f("p" * 60 + "/" + "n" * 90, "x")], tarfile.USTAR_FORMAT
        )
    ],
    "fractions of a second": [pax(mtime="1234567890.75")],
    "PAX owner and size": [pax(uid="123456", gid="654321", size="5")],
    "a global header": [
        tarfile.TarInfo.create_pax_global_header({"comment": "made by git"})  # type: ignore[arg-type]
        + images.make_tar([f("a", "x")])
    ],
    "data without padding at the end": [images.make_tar([f("a", "x" * 600)])[: 512 + 600]],
    "sparse, old GNU": [sparse("--format=gnu")],
    "sparse, PAX 0.0": [sparse("--format=pax", "--sparse-version=0.0")],
    "sparse, PAX 0.1": [sparse("--format=pax", "--sparse-version=0.1")],
    "sparse, PAX 1.0": [sparse("--format=pax", "--sparse-version=1.0")],
    "sparse, many runs": [sparse("--format=pax", runs=400)],
    "sparse, many runs, old GNU": [sparse("--format=gnu", runs=100)],
    "sparse, more runs than extents": [sparse("--format=pax", runs=1500)],
    "names that sort badly": [[f("a.b"), directory("a"), f("a/z"), f("a-b"), f("a0")]],
    "a directory of many": [[directory("d"), *(f(f"d/{n:0200}", str(n)) for n in range(60))]],
    "large device numbers": [[File(name="n", kind=tarfile.CHRTYPE, device=(300, 70_000))]],
    "shared xattrs": [[f(str(n), "x", xattrs={"user.same": "v"}) for n in range(5)]],
}

OURS_ALONE = {
    "a global header": "umoci 0.4.7 refuses global PAX headers, which `git archive` writes",
    "sparse, old GNU": "umoci 0.4.7 refuses the type S of old GNU headers",
    "sparse, many runs, old GNU": "umoci 0.4.7 refuses the type S of old GNU headers",
}
"""Name of an image → why umoci is no measure for it; GNU tar is, then."""


def tars(layers: Layers) -> list[bytes]:
    return [one if isinstance(one, bytes) else images.make_tar(one) for one in layers]


def build(image: images.Image, place: Path, rootfs_format: str) -> Flattened:
    (place / "scratch").mkdir(exist_ok=True)
    layers: list[Layer] = []
    for number, layer in enumerate(image.layers):
        blob = place / f"{rootfs_format}.{number}"
        data = layer.blob()
        blob.write_bytes(data)
        layers.append(
            Layer(
                path=str(blob),
                digest=f"sha256:{hashlib.sha256(data).hexdigest()}",
                size_bytes=len(data),
                diff_id=f"sha256:{hashlib.sha256(layer.tar).hexdigest()}",
            )
        )
    plan = Plan(
        layers=tuple(layers),
        output=str(place / rootfs_format),
        scratch=str(place / "scratch"),
        format=rootfs_format,
        limits=Limits(free_bytes=0),
    )
    result = flatten(plan, lambda _: None)
    assert list((place / "scratch").iterdir()) == []
    return result


def unpack_umoci(image: images.Image, place: Path) -> Tree:
    # umoci 0.4.7 knows no zstd: it gets the same tars in gzip.
    plain = [replace(layer, compression="gzip") for layer in image.layers]
    images.write_image(place / "layout", replace(image, layers=plain))
    done = subprocess.run(
        ["umoci", "unpack", "--image", f"{place / 'layout'}:latest", place / "theirs"],
        check=False,
        capture_output=True,
        umask=0o022,
    )
    assert done.returncode == 0, done.stderr.decode()
    return tree_of_directory(place / "theirs" / "rootfs")


def image_of(name: str) -> images.Image:
    compressions: list[images.Compression] = ["gzip", "", "zstd"]
    compression = compressions[sum(map(ord, name)) % 3]
    return images.Image(
        layers=[images.Layer(tar=tar, compression=compression) for tar in tars(SEMANTICS[name])]
    )


def unpack_tar(image: images.Image, place: Path) -> Tree:
    (place / "theirs").mkdir(mode=0o755)
    for layer in image.layers:
        command = ["tar", "-x", "-p", "--numeric-owner", "-C", str(place / "theirs")]
        subprocess.run(command, input=layer.tar, check=True)
    return tree_of_directory(place / "theirs")


def comparable(tree: Tree, like: Tree, name: str) -> Tree:
    """`tree` without what umoci takes from the clock: see `MADE_UP`."""
    known = {path: dict(entry) for path, entry in tree.items()}
    for path, entry in like.items():
        if int(str(entry["mtime"])) > MADE_UP and not str(entry["mode"]).startswith("0o10"):
            known.get(path, {})["mtime"] = entry["mtime"]
    if not any(entry.startswith(b"./\0") for entry in tars(SEMANTICS[name])):
        del known["."]
    return known


@pytest.mark.root
@pytest.mark.parametrize("name", SEMANTICS)
def test_layers_become_what_umoci_makes_of_them(name: str, tmp_path: Path) -> None:
    image = image_of(name)
    theirs = (unpack_tar if name in OURS_ALONE else unpack_umoci)(image, tmp_path)
    expected = comparable(theirs, theirs, name)
    squashfs = build(image, tmp_path, "squashfs")
    ours = tree_of_squashfs(tmp_path / "squashfs", tmp_path / "unpacked")
    assert comparable(ours, theirs, name) == expected
    ext4 = build(image, tmp_path, "ext4")
    ours = tree_of_ext4(tmp_path / "ext4", tmp_path / "read")
    assert comparable(ours, theirs, name) == expected
    assert squashfs.file_count == ext4.file_count == len(ours) - 1
    assert squashfs.unpacked_bytes == ext4.unpacked_bytes


def test_holes_stay_holes(tmp_path: Path) -> None:
    place = tmp_path / "made"
    place.mkdir()
    with (place / "holes").open("wb") as file:
        file.write(b"first")
        file.seek(300 << 20)
        file.write(b"last")
    command = ["tar", "--sparse", "--format=pax", "-cf", "-", "holes"]
    tar = subprocess.run(command, cwd=place, check=True, capture_output=True).stdout
    image = images.Image(layers=[images.Layer(tar=tar)])
    assert build(image, tmp_path, "squashfs").size_bytes < 1 << 16
    ext4 = build(image, tmp_path, "ext4")
    assert ext4.size_bytes < 1 << 18
    assert ext4.unpacked_bytes == (300 << 20) + 4
