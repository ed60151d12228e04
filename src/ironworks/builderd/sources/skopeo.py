"""Registries and archives, through skopeo.

skopeo runs in the sandbox, without credentials of the host. Blobs of registries land in a store
that belongs to one tenant: a digest in a manifest that somebody wrote himself proves no right to
bytes that another tenant has pulled.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from ironworks.builderd.cgroup import BuildGroups
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
    DeadlineExceeded,
    FailedPrecondition,
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
_REGISTRIES, _LOGIN = "/registries.conf", "/auth.json"
_QUOTED = re.compile(r"\s+")

_REASONS: Sequence[tuple[tuple[str, ...], type[IronError], str, str]] = (
    (
        ("digest did not match", "does not match", "size mismatch", "digest mismatch"),
        InvalidRequest,
        "The registry answers other bytes than {image} names.",
        "Push the image again; if that does not help, do not trust the registry.",
    ),
    (
        ("exceeded maximum allowed size", "larger than"),
        InvalidRequest,
        "The manifest of {image} is larger than an image's may be.",
        "It may not be a container image.",
    ),
    (
        ("fslayers", "schema 1", "unsupported manifest", "unsupported docker", "unknown manifest"),
        InvalidRequest,
        "{image} has a type of manifest that is not known here.",
        "Push it again with a current docker, podman or skopeo.",
    ),
    (
        ("stopped after 10 redirects",),
        Unavailable,
        "The registry of {image} redirects in circles.",
        "Tell whoever runs the registry.",
    ),
    (
        ("http response to https client",),
        FailedPrecondition,
        "The registry of {image} speaks no TLS.",
        "Give it a certificate, or name it in the setting insecure_registries.",
    ),
    (
        ("x509:", "certificate"),
        FailedPrecondition,
        "The certificate of the registry of {image} is not one that this machine trusts.",
        "Install its authority's certificate on the platform's machine.",
    ),
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
        "Check its name, or store a credential: `iron registry login`.",
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
            "bad gateway", "service unavailable", "gateway timeout", "connection reset",
            "internal server error", "http status: 5", "status code 5",
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


def _base(location: str) -> str:
    """The reference without tag and digest."""
    name = location.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return head + slash + last.partition(":")[0]


def registries_conf(insecure: Sequence[str], mirrors: Mapping[str, Sequence[str]]) -> str:
    """What skopeo is told of registries: who speaks without TLS, and who has whose images.

    A mirror is asked first, the registry itself last. Credentials are the registry's, and no mirror
    gets them.
    """
    lines: list[str] = []
    for registry in sorted({*insecure, *mirrors}):
        lines += ["[[registry]]", f"location = {json.dumps(registry)}"]
        lines += [f"insecure = {json.dumps(registry in insecure)}"]
        for mirror in mirrors.get(registry, ()):
            lines += ["[[registry.mirror]]", f"location = {json.dumps(mirror)}"]
            lines += [f"insecure = {json.dumps(mirror.partition('/')[0] in insecure)}"]
    return "\n".join([*lines, ""])


class Skopeo:
    """Pulls images."""

    def __init__(
        self,
        *,
        registries: Path,
        file_bytes: int,
        groups: BuildGroups | None = None,
        answer_seconds: float = _INSPECT_SECONDS,
    ) -> None:
        """Nothing is started.

        Args:
            registries: File with what `registries_conf` says.
            file_bytes: Largest blob.
            groups: Where skopeo gets its cgroup; None: it has no limits of that kind.
            answer_seconds: Time that a registry has to answer with a manifest.
        """
        self._registries = registries
        self._file_bytes = file_bytes
        self._groups = groups
        self._answer_seconds = answer_seconds
        self._numbers = itertools.count()

    async def _run(
        self, sandbox: Sandbox, command: Sequence[str], timeout_seconds: float, late: str
    ) -> Completed:
        """Run skopeo; `late` says what did not happen within `timeout_seconds`."""
        async with AsyncExitStack() as held:
            if self._groups is not None:
                name = f"{os.getpid()}.{next(self._numbers)}.skopeo"
                group = await held.enter_async_context(self._groups.held(name))
                sandbox = replace(sandbox, join_paths=group.join_paths)
            try:
                return await run(
                    sandbox.argv(command), timeout_seconds=timeout_seconds, check=False
                )
            except DeadlineExceeded:
                raise DeadlineExceeded(f"{late} within {timeout_seconds:g} seconds.") from None

    def _command(self, verb: str, login: Path | None, *, prefix: str = "") -> list[str]:
        command = [
            "skopeo", "--insecure-policy", "--registries-conf", _REGISTRIES, "--tmpdir", _TEMPORARY,
            "--override-os", "linux", "--override-arch", host_architecture(), verb,
        ]  # fmt: skip
        return [*command, f"--{prefix}authfile={_LOGIN}" if login else f"--{prefix}no-creds"]

    def _readable(self, login: Path | None) -> dict[str, Path]:
        files = {_REGISTRIES: self._registries}
        return {**files, _LOGIN: login} if login else files

    async def resolve(self, reference: ImageReference, login: Path | None = None) -> Resolved:
        """The digest that a registry's tag means for this machine now.

        Args:
            reference: Names the registry.
            login: File with the tenant's credential for it, as skopeo reads them.

        Raises:
            NotFound, PermissionDenied, Unavailable: see `explain`.
            Unimplemented: the image is for other platforms.
        """
        location = reference.location
        manifest = await self._inspect(location, login)
        digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
        asked = location.partition("@")[2]
        if asked and asked != digest:
            raise InvalidRequest(f"The registry answered another image than {asked}.")
        if not is_index(manifest):
            return Resolved(digest=digest)
        return Resolved(digest=choose_platform(manifest).digest, index_digest=digest)

    async def manifest(
        self, reference: ImageReference, resolved: Resolved, login: Path | None = None
    ) -> bytes:
        """The manifest of a resolved image: what can be known before its layers are fetched.

        Raises:
            InvalidRequest: it is not what its digest says; else as `resolve`.
        """
        data = await self._inspect(f"{_base(reference.location)}@{resolved.digest}", login)
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != resolved.digest:
            raise InvalidRequest(f"The registry answered another image than {resolved.digest}.")
        return data

    async def _inspect(self, location: str, login: Path | None) -> bytes:
        command = [*self._command("inspect", login), "--raw", f"docker://{location}"]
        sandbox = Sandbox(network=True, readable=self._readable(login))
        # skopeo waits by itself where it is told to ask less often.
        late = f"The registry of {location} limits how often it may be asked, or did not answer"
        done = await self._run(sandbox, command, self._answer_seconds, late)
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
        login: Path | None = None,
    ) -> Pulled:
        """Copy an image of a registry into a tenant's store of blobs.

        Raises:
            NotFound, PermissionDenied, Unavailable: see `explain`.
        """
        source = f"{_base(reference.location)}@{resolved.digest}"
        # skopeo renames blobs from the layout to the store: both must be on one mount.
        pull = f"{PULLS}/{scratch.parent.name}/{scratch.name}"
        layout, temporary = store / pull, scratch / "work"
        layout.mkdir(parents=True, exist_ok=True)
        temporary.mkdir(exist_ok=True)
        sandbox = Sandbox(
            network=True,
            readable=self._readable(login),
            writable={"/store": store, _TEMPORARY: temporary},
            file_bytes=self._file_bytes,
        )
        command = self._command("copy", login, prefix="src-")
        command += ["--quiet", "--dest-shared-blob-dir", "/store", f"docker://{source}"]
        command += [f"oci:/store/{pull}:image"]
        try:
            late = f"The registry did not hand over {source}"
            done = await self._run(sandbox, command, timeout_seconds, late)
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
            readable={"/archive.tar": path, **self._readable(None)},
            writable={"/scratch": target, _TEMPORARY: temporary},
            file_bytes=self._file_bytes,
        )
        source = f"{transport.value}:/archive.tar" + (f":{name}" if name else "")
        command = [*self._command("copy", None, prefix="src-"), "--quiet", source]
        late = f"The archive {path} could not be taken apart"
        done = await self._run(sandbox, [*command, "dir:/scratch"], timeout_seconds, late)
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
