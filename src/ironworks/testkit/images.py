"""OCI layouts made by us: the demo's sample image, and whatever images tests need.

All is deterministic: the same content gives the same digests, whoever makes it and when.
Source: OCI image specification 1.1, "Image Layout", "Image Manifest", "Image Configuration".
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import zstandard

from ironworks.model.errors import FailedPrecondition

Compression = Literal["", "gzip", "zstd"]

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
_REF_NAME = "org.opencontainers.image.ref.name"
_SAMPLE_MTIME = 1_700_000_000
SAMPLE_PORT = 8080

_PAGE = """#!/bin/sh
read -r up _ </proc/uptime
printf 'Content-Type: text/html; charset=utf-8\\r\\n\\r\\n'
cat <<END
<!doctype html>
<title>Ironworks sample</title>
<h1>It runs.</h1>
<pre>
name    $(hostname)
kernel  $(uname -sr)
uptime  $up s
</pre>
END
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One entry of a layer; `kind` is a type flag of tar, `0` a regular file."""

    name: str
    data: bytes = b""
    kind: bytes = tarfile.REGTYPE
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = _SAMPLE_MTIME
    target: str = ""
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[str, str] = field(default_factory=dict[str, str])


def directory(name: str, mode: int = 0o755) -> File:
    """A directory."""
    return File(name=name, kind=tarfile.DIRTYPE, mode=mode)


def symlink(name: str, target: str) -> File:
    """A symbolic link."""
    return File(name=name, kind=tarfile.SYMTYPE, mode=0o777, target=target)


def hard_link(name: str, target: str) -> File:
    """A second name of `target`."""
    return File(name=name, kind=tarfile.LNKTYPE, target=target)


def whiteout(name: str) -> File:
    """Hides `name` of the layers below."""
    parent, _, last = name.rpartition("/")
    return File(name=f"{parent}/.wh.{last}" if parent else f".wh.{last}")


def opaque(name: str) -> File:
    """Hides all that the layers below have in directory `name`."""
    return File(name=f"{name}/.wh..wh..opq")


def cgi_scripts(scripts: Mapping[str, str], media_type: str) -> list[File]:
    """Shell scripts that the sample's web server runs as `/cgi-bin/<name>.cgi`."""
    header = f"#!/bin/sh\nprintf 'Content-Type: {media_type}\\r\\n\\r\\n'\n"
    files = [
        File(name=f"srv/cgi-bin/{name}.cgi", data=(header + script).encode(), mode=0o755)
        for name, script in scripts.items()
    ]
    return [directory("srv"), directory("srv/cgi-bin"), *files]


def make_tar(files: Iterable[File], tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of entries, in their order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tar_format) as archive:
        for file in files:
            info = tarfile.TarInfo(file.name)
            info.type, info.mode, info.uid, info.gid = file.kind, file.mode, file.uid, file.gid
            info.mtime, info.linkname = file.mtime, file.target
            info.devmajor, info.devminor = file.device
            info.size = len(file.data)
            info.pax_headers = {
                f"SCHILY.xattr.{name}": value for name, value in file.xattrs.items()
            }
            archive.addfile(info, io.BytesIO(file.data))
    return out.getvalue()


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer: a tar, how it is compressed, and what the manifest says of it, if that is a lie."""

    tar: bytes
    compression: Compression = "gzip"
    digest: str = ""
    size_bytes: int = -1
    diff_id: str = ""
    media_type: str = ""

    def blob(self) -> bytes:
        """The bytes that are stored."""
        if self.compression == "gzip":
            return gzip.compress(self.tar, compresslevel=6, mtime=0)
        if self.compression == "zstd":
            return zstandard.ZstdCompressor(level=3).compress(self.tar)
        return self.tar


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image: layers, lowest first, and how to run it, as its `config` is written."""

    layers: Sequence[Layer]
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    architecture: str = "amd64"
    os: str = "linux"


class Layout:
    """An OCI layout in a directory."""

    def __init__(self, root: Path) -> None:
        """Make the directory; images are added to what is there."""
        self.root = root
        self.blobs = root / "blobs" / "sha256"
        self.blobs.mkdir(parents=True, exist_ok=True)
        (root / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')

    def blob(self, data: bytes) -> str:
        """Store bytes; answers their digest."""
        digest = hashlib.sha256(data).hexdigest()
        (self.blobs / digest).write_bytes(data)
        return f"sha256:{digest}"

    def document(self, media_type: str, value: Mapping[str, Any]) -> dict[str, Any]:
        """Store JSON; answers its descriptor."""
        data = json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
        return {"mediaType": media_type, "digest": self.blob(data), "size": len(data)}

    def image(self, image: Image) -> dict[str, Any]:
        """Store an image; answers its manifest's descriptor."""
        layers: list[dict[str, Any]] = []
        diff_ids: list[str] = []
        for layer in image.layers:
            data = layer.blob()
            suffix = f"+{layer.compression}" if layer.compression else ""
            layers.append(
                {
                    "mediaType": layer.media_type or _LAYER_TYPE + suffix,
                    "digest": layer.digest or self.blob(data),
                    "size": len(data) if layer.size_bytes < 0 else layer.size_bytes,
                }
            )
            diff_ids.append(layer.diff_id or f"sha256:{hashlib.sha256(layer.tar).hexdigest()}")
        config = self.document(
            CONFIG_TYPE,
            {
                "architecture": image.architecture,
                "os": image.os,
                "config": dict(image.config),
                "rootfs": {"type": "layers", "diff_ids": diff_ids},
            },
        )
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": config,
            "layers": layers,
        }
        return self.document(MANIFEST_TYPE, manifest)

    def platforms(self, images: Iterable[Image]) -> dict[str, Any]:
        """Store one image for several platforms; answers its index's descriptor."""
        manifests = [
            {
                **self.image(image),
                "platform": {"architecture": image.architecture, "os": image.os},
            }
            for image in images
        ]
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests}
        return self.document(INDEX_TYPE, index)

    def tag(self, **named: Mapping[str, Any]) -> None:
        """Write index.json: name → descriptor."""
        manifests = [
            {**descriptor, "annotations": {_REF_NAME: name}} for name, descriptor in named.items()
        ]
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests}
        (self.root / "index.json").write_text(json.dumps(index, sort_keys=True))


def write_image(root: Path, image: Image, name: str = "latest") -> str:
    """Make a layout with one image; answers its reference, `oci:DIRECTORY:NAME`."""
    layout = Layout(root)
    layout.tag(**{name: layout.image(image)})
    return f"oci:{root}:{name}"


def static_busybox(path: Path = Path("/bin/busybox")) -> bytes:
    """Debian's static busybox.

    Raises:
        FailedPrecondition: it is not installed, or is the one that needs libraries.
    """
    hint = "Install the Debian package busybox-static."
    try:
        data = path.read_bytes()
    except OSError:
        raise FailedPrecondition(f"{path} is not there.", hint=hint) from None
    if b"ld-linux" in data[:4096]:
        raise FailedPrecondition(f"{path} is not linked statically.", hint=hint)
    return data


def sample_image(busybox: bytes, architecture: str) -> Image:
    """The demo's image: busybox serving one page that tells of the VM that serves it."""
    applets = ("sh", "httpd", "hostname", "uname", "cat")
    programs = [
        directory("bin"),
        File(name="bin/busybox", data=busybox, mode=0o755),
        *(symlink(f"bin/{applet}", "busybox") for applet in applets),
        directory("dev"),
        directory("etc"),
        File(name="etc/passwd", data=b"root:x:0:0:root:/:/bin/sh\nwww:x:1000:1000::/:/bin/sh\n"),
        File(name="etc/group", data=b"root:x:0:\nwww:x:1000:\n"),
        directory("proc"),
        directory("sys"),
        directory("tmp", 0o1777),
    ]
    site = [
        directory("srv"),
        directory("srv/cgi-bin"),
        File(name="srv/cgi-bin/index.cgi", data=_PAGE.encode(), mode=0o755),
    ]
    return Image(
        layers=[Layer(tar=make_tar(programs)), Layer(tar=make_tar(site))],
        architecture=architecture,
        config={
            "Entrypoint": ["/bin/httpd", "-f", "-p", str(SAMPLE_PORT), "-h", "/srv"],
            "Env": ["PATH=/bin"],
            "ExposedPorts": {f"{SAMPLE_PORT}/tcp": {}},
            "User": "www",
            "WorkingDir": "/srv",
            "Labels": {"org.opencontainers.image.title": "ironworks-sample"},
        },
    )


def build_sample_layout(root: Path, architecture: str = "amd64") -> str:
    """Make the demo's image below `root`, an existing or new directory; answers its reference.

    Raises:
        FailedPrecondition: the static busybox is not installed.
    """
    return write_image(root, sample_image(static_busybox(), architecture))
