"""Layouts and archives on this machine.

Whoever may ask for a build may name a path, so a path is a way to read the host: it is resolved,
and must then lie below one of the directories that the operator set. A path outside of them and one
that does not exist are answered alike.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from ironworks.builderd.flatten.headers import read_entries
from ironworks.builderd.flatten.plan import Limits
from ironworks.builderd.sources.documents import (
    MAX_DOCUMENT_BYTES,
    choose_named,
    choose_platform,
    is_index,
)
from ironworks.builderd.types import Descriptor, ImageReference, Pulled, Resolved, Transport
from ironworks.model.errors import InvalidRequest, NotFound

_MAX_NESTING = 3
_MAX_LISTED = 100_000
_COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\x00", b"\x04\x22\x4d\x18")


def locate(reference: ImageReference, roots: Sequence[Path]) -> Path:
    """The file or directory that a reference names.

    Raises:
        NotFound: it is below none of the roots, or does not exist.
    """
    path = Path(reference.location).resolve()
    if any(path.is_relative_to(root.resolve()) for root in roots) and path.exists():
        return path
    raise NotFound(
        f"There is no image at {reference.location} that may be read.",
        hint="Images on the platform's machine are read below: "
        f"{', '.join(map(str, roots))} (setting local_image_roots).",
    )


def classify(path: Path) -> Transport:
    """What a path is: a layout, an OCI archive or a docker archive.

    Raises:
        InvalidRequest: none of them.
    """
    if path.is_dir():
        if (path / "oci-layout").is_file() and (path / "index.json").is_file():
            return Transport.LAYOUT
        raise InvalidRequest(
            f"The directory {path} is not an OCI layout.",
            hint="It needs the files oci-layout and index.json.",
        )
    names = _listing(path)
    if "oci-layout" in names or "index.json" in names:
        return Transport.OCI_ARCHIVE
    if "manifest.json" in names:
        return Transport.DOCKER_ARCHIVE
    raise InvalidRequest(
        f"The archive {path.name} holds no image.",
        hint="Make it with `docker save`, or `skopeo copy … oci-archive:FILE`.",
    )


def is_compressed(path: Path) -> bool:
    """Whether a file begins like what gzip, zstd, xz or lz4 write.

    Raises:
        InvalidRequest: it cannot be read.
    """
    if path.is_dir():
        return False
    fd = _open_regular(path)
    try:
        return os.pread(fd, 6, 0).startswith(_COMPRESSED)
    finally:
        os.close(fd)


def _listing(path: Path) -> frozenset[str]:
    names: set[str] = set()
    fd = _open_regular(path)
    try:
        size = os.fstat(fd).st_size
        if size < 1024:  # noqa: PLR2004 - two tar blocks
            raise unreadable(path)
        for entry in read_entries(fd, size, Limits()):
            names.add(b"/".join(entry.path).decode(errors="replace"))
            if len(names) > _MAX_LISTED:
                break
    except InvalidRequest as error:
        raise unreadable(path) from error
    finally:
        os.close(fd)
    return frozenset(names)


def unreadable(path: Path) -> InvalidRequest:
    """The refusal of an archive that cannot be read."""
    return InvalidRequest(
        f"The archive {path.name} cannot be read: it is damaged, or not a tar.",
        hint="Make it again with `docker save` or `skopeo copy`.",
    )


def _open_regular(path: Path) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidRequest(
            f"{path.name} of the image cannot be read.", context={"error": str(error)}
        ) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidRequest(f"{path.name} of the image is not a file.")
    return fd


def read_file(path: Path) -> bytes:
    """A document, bounded.

    Raises:
        InvalidRequest: it cannot be read, or is too large.
    """
    fd = _open_regular(path)
    with open(fd, "rb") as file:  # noqa: PTH123 - a descriptor
        data = file.read(MAX_DOCUMENT_BYTES + 1)
    if len(data) > MAX_DOCUMENT_BYTES:
        raise InvalidRequest(f"{path.name} of the image is too large.")
    return data


def blob_path(blobs: Path, digest: str) -> Path:
    """Where a blob of a layout is."""
    return blobs / digest.removeprefix("sha256:")


def read_blob(blobs: Path, descriptor: Descriptor) -> bytes:
    """A document of a layout, compared with its digest.

    Raises:
        InvalidRequest: it is missing, too large, or not what the digest says.
    """
    data = read_file(blob_path(blobs, descriptor.digest))
    if f"sha256:{hashlib.sha256(data).hexdigest()}" != descriptor.digest:
        raise InvalidRequest(
            f"The bytes of {descriptor.digest} are not what the digest says.",
            hint="Build and push the image again.",
        )
    return data


def check_blob(blobs: Path, descriptor: Descriptor) -> Path:
    """The file of a layer, if it is one and has the length it should have.

    Its bytes are compared with the digest when they are unpacked.

    Raises:
        InvalidRequest: it is missing, no file, or of another length.
    """
    path = blob_path(blobs, descriptor.digest)
    fd = _open_regular(path)
    try:
        size_bytes = os.fstat(fd).st_size
    finally:
        os.close(fd)
    if size_bytes != descriptor.size_bytes:
        raise InvalidRequest(
            f"Layer {descriptor.digest} has {size_bytes} bytes, not {descriptor.size_bytes}."
        )
    return path


def drop_damaged(blobs: Path, layers: Sequence[Descriptor]) -> int:
    """Remove kept blobs that are not what they should be; answers how many. Blocks.

    skopeo takes a blob that is there for whole; after a power cut it may not be.
    """
    dropped = 0
    for layer in layers:
        path = blob_path(blobs, layer.digest)
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            continue
        if f"sha256:{found}" != layer.digest:
            path.unlink(missing_ok=True)
            dropped += 1
    return dropped


def resolve_layout(path: Path, name: str) -> tuple[Resolved, Pulled]:
    """What a layout's image is for this machine.

    Raises:
        InvalidRequest: the layout is damaged, or the name is not in it.
        Unimplemented: it has no image for this platform.
    """
    blobs = path / "blobs" / "sha256"
    descriptor = choose_named(read_file(path / "index.json"), name)
    index_digest = ""
    for _ in range(_MAX_NESTING):
        data = read_blob(blobs, descriptor)
        if not is_index(data):
            resolved = Resolved(digest=descriptor.digest, index_digest=index_digest)
            return resolved, Pulled(manifest=data, blobs=blobs)
        index_digest = index_digest or descriptor.digest
        descriptor = choose_platform(data)
    raise InvalidRequest("The image's indexes are nested too deeply.")


def read_directory(path: Path) -> tuple[Resolved, Pulled]:
    """What skopeo wrote with its `dir:` transport."""
    manifest = read_file(path / "manifest.json")
    digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    return Resolved(digest=digest), Pulled(manifest=manifest, blobs=path)
