"""Registries and archives, through skopeo.

skopeo runs in the sandbox, without credentials of the host. Blobs of registries land in a store
that belongs to one tenant: a digest in a manifest that somebody wrote himself proves no right to
bytes that another tenant has pulled.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from ironworks.builderd.sandbox import Sandbox
from ironworks.builderd.sources.documents import (
    choose_named,
    choose_platform,
    host_architecture,
    is_index,
)
from ironworks.builderd.sources.local import (
    read_blob,
    read_directory,
    read_file,
    unreadable,
)
from ironworks.builderd.types import ImageReference, Pulled, Resolved, Transport
from ironworks.model.errors import (
    Internal,
    InvalidRequest,
    IronError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from ironworks.runtime.process import Completed, run

_INSPECT_SECONDS = 60.0
PULLS = "pulls"
"""Directory of a tenant's store in which pulls that are under way have theirs."""
_TEMPORARY = "/work"
"""Where skopeo, in its sandbox, takes archives apart: on disk, where /tmp is memory."""
_QUOTED = re.compile(r"\s+")

_REASONS: Sequence[tuple[tuple[str, ...], type[IronError], str, str]] = (
    (
        ("no space left on device",),
        ResourceExhausted,
        "There is no room on the disk for image {image}.",
        "Free space in the data directory, then deploy again.",
    ),
    (
        ("manifest unknown", "name unknown", "not found", "repository name not known", "404"),
        NotFound,
        "There is no image {image}.",
        "Check its name and tag.",
    ),
    (
        ("unauthorized", "authentication required", "denied", "forbidden", "401", "403"),
        PermissionDenied,
        "The registry does not hand out {image}: it does not exist, or needs credentials.",
        "Check its name, or use an image that may be pulled without a login.",
    ),
    (
        ("toomanyrequests", "too many requests", "429"),
        Unavailable,
        "The registry of {image} limits how often it may be asked.",
        "Try again later.",
    ),
    (
        (
            "no such host", "connection refused", "i/o timeout", "network is unreachable",
            "deadline exceeded", "tls handshake", "eof", "server misbehaving", "no route to host",
            "bad gateway", "service unavailable", "gateway timeout",
        ),
        Unavailable,
        "The registry of {image} cannot be reached.",
        "Check its name and the platform's network, then try again.",
    ),
    (
        ("no image found in manifest list", "no image found in image index"),
        Unimplemented,
        "{image} has no image for this platform.",
        "Build the image for this platform.",
    ),
    (
        ("invalid reference format",),
        InvalidRequest,
        "{image} is not an image reference.",
        "Write it like registry/repository:tag.",
    ),
)  # fmt: skip


def explain(image: str, said: str) -> IronError:
    """What skopeo's complaint means for the caller."""
    lowered = said.lower()
    context: dict[str, object] = {"skopeo": _QUOTED.sub(" ", said)[-1000:]}
    for marks, kind, message, hint in _REASONS:
        if any(mark in lowered for mark in marks):
            return kind(message.format(image=image), hint=hint, context=context)
    return Internal(f"Image {image} could not be pulled.", context=context)


def _registry_of(location: str) -> str:
    first, slash, _ = location.partition("/")
    return first if slash and ("." in first or ":" in first or first == "localhost") else ""


def _base(location: str) -> str:
    """The reference without tag and digest."""
    name = location.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return head + slash + last.partition(":")[0]


class Skopeo:
    """Pulls images."""

    def __init__(self, *, insecure_registries: Sequence[str], file_bytes: int) -> None:
        self._insecure = frozenset(insecure_registries)
        self._file_bytes = file_bytes

    def _command(self, verb: str, location: str, *, prefix: str = "") -> list[str]:
        command = [
            "skopeo", "--insecure-policy", "--tmpdir", _TEMPORARY, "--override-os", "linux",
            "--override-arch", host_architecture(), verb,
        ]  # fmt: skip
        command += [f"--{prefix}no-creds"]
        if _registry_of(location) in self._insecure:
            command += [f"--{prefix}tls-verify=false"]
        return command

    async def resolve(self, reference: ImageReference) -> Resolved:
        """The digest that a registry's tag means for this machine now.

        Raises:
            NotFound, PermissionDenied, Unavailable: see `explain`.
            Unimplemented: the image is for other platforms.
        """
        location = reference.location
        manifest = await self._inspect(location)
        digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
        asked = location.partition("@")[2]
        if asked and asked != digest:
            raise InvalidRequest(f"The registry answered another image than {asked}.")
        if not is_index(manifest):
            return Resolved(digest=digest)
        return Resolved(digest=choose_platform(manifest).digest, index_digest=digest)

    async def _inspect(self, location: str) -> bytes:
        command = [*self._command("inspect", location), "--raw", f"docker://{location}"]
        done = await run(
            Sandbox(network=True).argv(command), timeout_seconds=_INSPECT_SECONDS, check=False
        )
        if done.status != 0:
            raise explain(location, done.stderr_tail)
        return done.stdout

    async def pull(
        self,
        reference: ImageReference,
        resolved: Resolved,
        *,
        scratch: Path,
        store: Path,
        timeout_seconds: float,
    ) -> Pulled:
        """Copy an image of a registry into a tenant's store of blobs.

        Raises:
            NotFound, PermissionDenied, Unavailable: see `explain`.
        """
        source = f"{_base(reference.location)}@{resolved.digest}"
        # skopeo renames blobs from the layout to the store: both must be on one mount.
        layout, temporary = store / PULLS / scratch.name, scratch / "work"
        layout.mkdir(parents=True)
        temporary.mkdir(exist_ok=True)
        sandbox = Sandbox(
            network=True,
            writable={"/store": store, _TEMPORARY: temporary},
            file_bytes=self._file_bytes,
        )
        command = self._command("copy", reference.location, prefix="src-")
        command += ["--quiet", "--dest-shared-blob-dir", "/store", f"docker://{source}"]
        command += [f"oci:/store/{PULLS}/{scratch.name}:image"]
        try:
            done = await run(sandbox.argv(command), timeout_seconds=timeout_seconds, check=False)
            if done.status != 0:
                raise explain(source, done.stderr_tail)
            # Docker's manifests are rewritten as OCI's on the way: same configuration and layers.
            return await asyncio.to_thread(_read_pulled, layout, store / "sha256")
        finally:
            await asyncio.to_thread(shutil.rmtree, layout, ignore_errors=True)

    async def unpack_archive(
        self, path: Path, transport: Transport, name: str, *, scratch: Path, timeout_seconds: float
    ) -> tuple[Resolved, Pulled]:
        """Take an archive on this machine apart.

        Raises:
            InvalidRequest: it cannot be read, or has no such image.
        """
        target, temporary = scratch / "archive", scratch / "work"
        target.mkdir()
        temporary.mkdir()
        sandbox = Sandbox(
            readable={"/archive.tar": path},
            writable={"/scratch": target, _TEMPORARY: temporary},
            file_bytes=self._file_bytes,
        )
        source = f"{transport.value}:/archive.tar" + (f":{name}" if name else "")
        command = [*self._command("copy", "", prefix="src-"), "--quiet", source]
        done = await run(
            sandbox.argv([*command, "dir:/scratch"]),
            timeout_seconds=timeout_seconds,
            check=False,
        )
        if done.status != 0:
            raise _explain_archive(path, name, done)
        return read_directory(target)


def _read_pulled(layout: Path, blobs: Path) -> Pulled:
    descriptor = choose_named(read_file(layout / "index.json"), "image")
    return Pulled(manifest=read_blob(blobs, descriptor), blobs=blobs)


def _explain_archive(path: Path, name: str, done: Completed) -> IronError:
    lowered = done.stderr_tail.lower()
    context: dict[str, object] = {"skopeo": done.stderr_tail}
    if "no space left" in lowered:
        return explain(str(path), done.stderr_tail)
    if name and ("not found" in lowered or "no descriptor" in lowered or "does not" in lowered):
        return InvalidRequest(f"The archive {path} has no image named {name!r}.", context=context)
    refusal = unreadable(path)
    refusal.context.update(context)
    return refusal
