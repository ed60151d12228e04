"""Hostile images through the whole worker: each has its own reason, and nothing is left.

Layers are tried alone in `test_flatten`; here stand images, the documents around layers, and what
costs memory, disk or time.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from ironworks.runtime.architecture import host_architecture
from ironworks.testkit import images
from ironworks.testkit.builds import BuildWorld, build_world
from ironworks.testkit.images import File, hard_link, opaque, symlink

LIMITS: dict[str, Any] = {
    "max_unpacked_bytes": 8_000_000,
    "max_packed_bytes": 8_000_000,
    "max_image_files": 2000,
    "max_image_layers": 20,
}
Json = dict[str, Any]
TAR = images.make_tar([File(name="app", data=b"hello")])
LAYER = "application/vnd.oci.image.layer.v1.tar"


@dataclass
class Forge:
    """Writes one layout, of which anything may be a lie."""

    root: Path

    def __post_init__(self) -> None:
        self.layout = images.Layout(self.root)

    def stored(self, data: bytes, media_type: str = LAYER) -> Json:
        return {"mediaType": media_type, "digest": self.layout.blob(data), "size": len(data)}

    def config(self, tars: list[bytes], **more: Any) -> Json:
        value: Json = {
            "architecture": host_architecture(),
            "os": "linux",
            "config": {"Cmd": ["/app"]},
            "rootfs": {
                "type": "layers",
                "diff_ids": [f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in tars],
            },
            **more,
        }
        return self.stored(json.dumps(value).encode(), images.CONFIG_TYPE)

    def manifest(self, config: Json, layers: list[Json], **more: Any) -> Json:
        value = {
            "schemaVersion": 2,
            "mediaType": images.MANIFEST_TYPE,
            "config": config,
            "layers": layers,
            **more,
        }
        return self.stored(json.dumps(value).encode(), images.MANIFEST_TYPE)

    def tagged(self, descriptor: Json) -> None:
        self.layout.tag(latest=descriptor)

    def layered(self, tar: bytes, packed: bytes | None = None, media_type: str = LAYER) -> None:
        layer = self.stored(tar if packed is None else packed, media_type)
        self.tagged(self.manifest(self.config([tar]), [layer]))

    def described(self, **lie: Any) -> None:
        """A manifest whose layer's descriptor lies."""
        self.tagged(self.manifest(self.config([TAR]), [{**self.stored(TAR), **lie}]))

    def indexed(self, *manifests: Json) -> Json:
        index = {"schemaVersion": 2, "mediaType": images.INDEX_TYPE, "manifests": manifests}
        return self.stored(json.dumps(index).encode(), images.INDEX_TYPE)

    def nested(self, depth: int) -> None:
        platform = {"platform": {"os": "linux", "architecture": host_architecture()}}
        inner = self.manifest(self.config([TAR]), [self.stored(TAR)])
        for _ in range(depth):
            inner = self.indexed({**inner, **platform})
        self.tagged(inner)

    def replaced(self, what: Callable[[Path], object]) -> None:
        """An honest image whose layer's file is something else."""
        layer = self.stored(TAR)
        self.tagged(self.manifest(self.config([TAR]), [layer]))
        path = self.layout.blobs / str(layer["digest"]).removeprefix("sha256:")
        path.unlink()
        what(path)


def entry(
    name: bytes, kind: bytes = b"0", size: bytes = b"00000000000\0", data: bytes = b""
) -> bytes:
    block = bytearray(512)
    block[0 : len(name)] = name
    block[100:124] = b"0000644\x000000000\x000000000\x00"
    block[124:136] = size
    block[136:148] = b"00000000000\x00"
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\x00 " % sum(block)
    return bytes(block) + data + bytes(-len(data) % 512)


def pax(*records: tuple[bytes, bytes]) -> bytes:
    body = b""
    for key, value in records:
        rest = b" " + key + b"=" + value + b"\n"
        length = len(rest) + len(str(len(rest)))
        length += len(str(length)) - len(str(len(rest)))
        body += str(length).encode() + rest
    return entry(b"pax", b"x", b"%011o\0" % len(body), body)


def repeated(one: bytes, count: int) -> bytes:
    return one * count + bytes(1024)


def zstd_frame(window_log: int) -> bytes:
    """A frame that asks for a window of 2^window_log bytes."""
    body = bytes(100)
    return (
        b"\x28\xb5\x2f\xfd\x00" + bytes([(window_log - 10) << 3])
        + struct.pack("<I", 1 | len(body) << 3)[:3] + body
    )  # fmt: skip


def deep_json(forge: Forge) -> None:
    data = b'{"schemaVersion":2,"layers":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    forge.tagged(forge.stored(data, images.MANIFEST_TYPE))


def many_names() -> bytes:
    """Few entries that bring many directories."""
    return b"".join(
        pax((b"path", b"/".join(b"%d.%d" % (n, m) for m in range(500)))) + entry(b"x")
        for n in range(10)
    ) + bytes(1024)


def heavy_attributes() -> bytes:
    one = pax(*((b"SCHILY.xattr.user.%d" % n, b"v" * 60_000) for n in range(15)))
    return b"".join(one + entry(b"f%d" % n) for n in range(100)) + bytes(1024)


def no_size(value: Any) -> Callable[[Forge], None]:
    return lambda forge: forge.described(size=value)


HOSTILE: dict[str, tuple[Callable[[Forge], None], str]] = {
    "unknown layer type": (lambda it: it.described(mediaType="application/x-evil"), "unknown type"),
    "foreign layer": (
        lambda it: it.described(
            mediaType="application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
        ),
        "may not be distributed",
    ),
    "encrypted layer": (lambda it: it.described(mediaType=LAYER + "+encrypted"), "'encrypted'"),
    "bzip2 inside": (lambda it: it.layered(TAR, b"BZh91AY&SY" + bytes(90)), "with bzip2"),
    "xz inside": (lambda it: it.layered(TAR, b"\xfd7zXZ\0" + bytes(90)), "with xz"),
    "lz4 inside": (lambda it: it.layered(TAR, b"\x04\x22\x4d\x18" + bytes(90)), "with lz4"),
    "digest of another kind": (lambda it: it.described(digest="md5:" + "0" * 32), "no SHA-256"),
    "digest that is a path": (
        lambda it: it.described(digest="sha256:../../../../etc/passwd"),
        "no SHA-256",
    ),
    "negative size": (no_size(-1), "no sensible size"),
    "huge size": (no_size(1 << 60), "no sensible size"),
    "size that is text": (no_size("5"), "no sensible size"),
    "size beyond the limit": (no_size(1 << 30), "larger than"),
    "wrong size": (no_size(len(TAR) + 1), "bytes, not"),
    "layer that is absent": (
        lambda it: it.described(digest="sha256:" + "0" * 64),
        "cannot be read",
    ),
    "layer of other bytes": (
        lambda it: it.replaced(lambda path: path.write_bytes(b"x" * len(TAR))),
        "what the manifest says",
    ),
    "layer that is a link": (
        lambda it: it.replaced(lambda path: path.symlink_to("/etc/shadow")),
        "cannot be read",
    ),
    "layer that is a pipe": (
        lambda it: it.replaced(os.mkfifo),
        "is not a file",
    ),
    "config of other bytes": (
        lambda it: it.tagged(
            it.manifest({**it.config([TAR]), "digest": it.layout.blob(b"{}")}, [it.stored(TAR)])
        ),
        "no system",
    ),
    "config of another type": (
        lambda it: it.tagged(it.manifest(it.stored(b"[1]", images.CONFIG_TYPE), [it.stored(TAR)])),
        "not a JSON object",
    ),
    "config of other layers": (
        lambda it: it.tagged(it.manifest(it.config([TAR, TAR]), [it.stored(TAR)])),
        "disagree about the layers",
    ),
    "config without layers": (
        lambda it: it.tagged(it.manifest(it.config([TAR], rootfs=7), [it.stored(TAR)])),
        "disagree about the layers",
    ),
    "tar of another digest": (
        lambda it: it.tagged(it.manifest(it.config([b"other"]), [it.stored(TAR)])),
        "configuration says",
    ),
    "config with a NUL": (
        lambda it: it.tagged(
            it.manifest(it.config([TAR], config={"Cmd": ["/a\0b"]}), [it.stored(TAR)])
        ),
        "have a NUL",
    ),
    "manifest of an unknown type": (
        lambda it: it.tagged(
            it.manifest(it.config([TAR]), [it.stored(TAR)], mediaType="application/x-evil")
        ),
        "type of manifest",
    ),
    "manifest of more than 4 MiB": (
        lambda it: it.tagged(
            it.manifest(it.config([TAR]), [it.stored(TAR)], annotations={"x": "y" * (5 << 20)})
        ),
        "too large",
    ),
    "manifest that is deep": (deep_json, "is not JSON"),
    "manifest that is no JSON": (
        lambda it: it.tagged(it.stored(b"\xff\xfe{", images.MANIFEST_TYPE)),
        "is not JSON",
    ),
    "too many layers": (
        lambda it: it.tagged(it.manifest(it.config([TAR] * 21), [it.stored(TAR)] * 21)),
        "more than 20",
    ),
    "nested indexes": (lambda it: it.nested(5), "nested too deeply"),
    "index for other machines": (
        lambda it: it.tagged(
            it.indexed({**it.stored(b"{}"), "platform": {"os": "linux", "architecture": "s390x"}})
        ),
        "linux/s390x",
    ),
    "index of nothing": (lambda it: it.tagged(it.indexed()), "no platform"),
    "gzip bomb": (
        lambda it: it.layered(b"", gzip.compress(bytes(200_000_000), 9), LAYER + "+gzip"),
        "unpacks to more",
    ),
    "gzip of many members": (
        lambda it: it.layered(b"", gzip.compress(bytes(1_000_000)) * 300, LAYER + "+gzip"),
        "unpacks to more",
    ),
    "gzip with more behind it": (
        lambda it: it.layered(TAR, gzip.compress(TAR) + b"evil", LAYER + "+gzip"),
        "damaged",
    ),
    "gzip that is cut off": (
        lambda it: it.layered(TAR, gzip.compress(TAR)[:-20], LAYER + "+gzip"),
        "cut off",
    ),
    "zstd bomb": (
        lambda it: it.layered(
            b"", zstandard.ZstdCompressor(level=19).compress(bytes(200_000_000)), LAYER + "+zstd"
        ),
        "unpacks to more",
    ),
    "zstd with a window of 2 GiB": (
        lambda it: it.layered(TAR, zstd_frame(31), LAYER + "+zstd"),
        "too much memory",
    ),
    "many tiny files": (
        lambda it: it.layered(repeated(entry(b"f"), 3000)),
        "more than 2000 files",
    ),
    "few names, many directories": (lambda it: it.layered(many_names()), "more than 2000 files"),
    "heavy attributes": (
        # 100 files of 15 by 60 kB: more bytes than the image may unpack to, most of them headers
        lambda it: it.layered(
            heavy_attributes(), gzip.compress(heavy_attributes()), LAYER + "+gzip"
        ),
        "unpacks to more",
    ),
    "one huge attribute": (
        lambda it: it.layered(pax((b"SCHILY.xattr.user.x", b"v" * 100_000)) + entry(b"f")),
        "more than 65536 bytes",
    ),
    "a bomb of PAX headers": (
        lambda it: it.layered(pax((b"comment", b"c" * 300_000)) * 5 + entry(b"f")),
        "more than 1 MiB",
    ),
    "negative size in a header": (
        lambda it: it.layered(entry(b"f", size=b"\xff" * 12) + bytes(1024)),
        "size is impossible",
    ),
    "size of 2^60 in a header": (
        lambda it: it.layered(entry(b"f", size=b"\x80" + b"\0" * 3 + (1 << 60).to_bytes(8, "big"))),
        "size is impossible",
    ),
    "size that is no number": (
        lambda it: it.layered(entry(b"f", size=b"0000000zzzz\0")),
        "size is not a number",
    ),
    "negative extended header": (
        lambda it: it.layered(entry(b"f", b"x", size=b"\xff" * 12) + bytes(1024)),
        "more than 1 MiB",
    ),
    "a sparse file of a petabyte": (
        lambda it: it.layered(
            pax((b"GNU.sparse.map", b"0,0"), (b"GNU.sparse.size", b"1099511627776"))
            + entry(b"f")
            + bytes(1024)
        ),
        "unpacks to more",
    ),
    "a sparse file that overlaps itself": (
        lambda it: it.layered(
            pax((b"GNU.sparse.map", b"0,5,3,5"), (b"GNU.sparse.size", b"10"))
            + entry(b"f", size=b"%011o\0" % 10, data=b"0123456789")
        ),
        "sparse map is impossible",
    ),
    "a sparse file that lies": (
        lambda it: it.layered(
            pax((b"GNU.sparse.map", b"0,9"), (b"GNU.sparse.size", b"10"))
            + entry(b"f", size=b"%011o\0" % 5, data=b"01234")
        ),
        "sparse map and its size disagree",
    ),
    "whiteout that leads out": (
        lambda it: it.layered(images.make_tar([symlink("l", "../../.."), opaque("l")])),
        "out of the image",
    ),
    "hard link to the root": (
        lambda it: it.layered(images.make_tar([File(name="a"), hard_link("h", ".")])),
        "hard link",
    ),
    "an impossible owner": (
        lambda it: it.layered(pax((b"uid", b"99999999999")) + entry(b"f")),
        "uid is impossible",
    ),
    "an impossible device": (
        lambda it: it.layered(
            bytes(entry(b"d", b"3"))[:329] + b"7777777\0" + entry(b"d", b"3")[337:]
        ),
        "wrong checksum",
    ),
}


def left_behind(world: BuildWorld) -> list[Path]:
    scratch = world.settings.builder_dir / "scratch"
    found = [path for path in scratch.rglob("*") if path.is_dir()]
    return [path for path in found if path.parent != scratch]


async def test_every_hostile_image_is_refused_and_the_worker_lives(tmp_path: Path) -> None:
    assert len(HOSTILE) >= 25
    async with build_world(tmp_path, **LIMITS) as world:
        for number, (name, (forge, reason)) in enumerate(HOSTILE.items()):
            place = tmp_path / "images" / str(number)
            forge(Forge(place))
            build = await world.build(f"oci:{place}:latest")
            assert build.failure is not None, name
            assert build.failure.code in {
                "invalid_argument", "unimplemented", "permission_denied"
            }, (name, build.failure)  # fmt: skip
            assert reason in build.failure.message, (name, build.failure.message)
            assert left_behind(world) == [], name
        honest = await world.build(world.image("honest"))
        assert honest.failure is None
        assert left_behind(world) == []
