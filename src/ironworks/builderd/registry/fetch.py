"""Fetch what a plan names: manifests, then blobs, each from where an earlier try broke off."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import http.client
import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ironworks.builderd.flatten.progress import Progress, Say
from ironworks.builderd.registry.client import Client
from ironworks.builderd.registry.guard import Guard
from ironworks.builderd.registry.plan import Blob, Fetched, FetchPlan, Place, directory_of
from ironworks.model.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from ironworks.model.units import NS_PER_SECOND
from ironworks.runtime.clock import SystemClock

_CHUNK_BYTES = 1 << 18
_AT_ONCE = 4
_LEAST_BYTES_PER_SECOND = 1024


def fetch(plan: FetchPlan, say: Say) -> Fetched:
    """Ask one place after the other until one has all that is asked for.

    Raises:
        IronError: what the last of them refused.
    """
    guard = Guard(
        insecure=frozenset(one.lower() for one in plan.insecure),
        private=frozenset(one.lower() for one in plan.private),
        timeout_seconds=plan.stall_seconds,
    )
    *mirrors, last = plan.places
    for place in mirrors:
        # A mirror that has not all of it is as good as none.
        with suppress(NotFound, PermissionDenied, Unavailable, DeadlineExceeded):
            return _from(place, plan, guard, say)
    return _from(last, plan, guard, say)


def _from(place: Place, plan: FetchPlan, guard: Guard, say: Say) -> Fetched:
    client = Client(place, guard, plan.image)
    documents = [client.manifest(plan.reference)]
    if not plan.blobs:
        chosen = _chosen(documents[0], plan.architecture)
        documents += [client.manifest(chosen)] if chosen else []
        told = tuple(base64.b64encode(one).decode() for one in documents)
        return Fetched(registry=place.registry, documents=told)
    found = f"sha256:{hashlib.sha256(documents[0]).hexdigest()}"
    if found != plan.reference:
        raise _other_bytes(plan.image)
    progress = Progress(say)
    progress.begin("fetching layers", sum(blob.size_bytes for blob in plan.blobs))
    kept = frozenset(plan.kept.get(place.registry, ()))
    fetching = _Fetching(
        client=client,
        image=plan.image,
        directory=Path(plan.partial) / directory_of(place.registry),
        progress=progress,
        stall_seconds=plan.stall_seconds,
    )
    # Nobody waits for its threads: when one blob fails, the process ends.
    pool = ThreadPoolExecutor(_AT_ONCE)
    waiting = {
        pool.submit(fetching.prove if blob.digest in kept else fetching.fetch, blob): blob.digest
        for blob in plan.blobs
    }
    names = {waiting[one]: one.result() for one in as_completed(waiting)}
    return Fetched(
        registry=place.registry, files={digest: name for digest, name in names.items() if name}
    )


def _chosen(document: bytes, architecture: str) -> str:
    """Digest of the image of an index that is for this machine; empty: none, or no index."""
    with suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raw = cast("dict[str, Any]", json.loads(document))
        for entry in raw.get("manifests", ()):
            wanted = cast("dict[str, object]", entry.get("platform"))
            if wanted and (wanted["os"], wanted["architecture"]) == ("linux", architecture):
                digest = entry["digest"]
                hexadecimal = str(digest).removeprefix("sha256:")
                return f"sha256:{hexadecimal}" if hexadecimal.isalnum() else ""
    return ""


def _other_bytes(image: str) -> InvalidRequest:
    return InvalidRequest(
        f"The registry answers other bytes than {image} names.",
        hint="Push the image again; if that does not help, do not trust the registry.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fetching:
    """Fetches blobs of one repository; `directory` has what has come of them so far."""

    client: Client
    image: str
    directory: Path
    progress: Progress
    stall_seconds: float

    def prove(self, blob: Blob) -> str:
        """That the registry gives us the blob: its first byte."""
        headers = {"Range": "bytes=0-0"}
        with self.client.opened(f"/blobs/{blob.digest}", headers) as response:
            if not response.read(1) and blob.size_bytes:
                raise _other_bytes(self.image)
        self.progress.add(blob.size_bytes)
        return ""

    def fetch(self, blob: Blob) -> str:
        """Name of the file that has the blob, whole."""
        fd, path = self._opened(blob)
        try:
            went_on = self._download(fd, blob)
            if went_on and not _is(fd, blob):
                # What an earlier try left is damaged, as by a power cut.
                os.ftruncate(fd, 0)
                self._download(fd, blob)
            if not _is(fd, blob):
                raise _other_bytes(self.image)
        except InvalidRequest:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
        return path.name

    def _opened(self, blob: Blob) -> tuple[int, Path]:
        path = self.directory / blob.digest.removeprefix("sha256:")
        fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Another build of this tenant fetches it just now.
            os.close(fd)
            fd, name = tempfile.mkstemp(dir=self.directory, prefix=f"{path.name}.")
            return fd, Path(name)
        return fd, path

    def _download(self, fd: int, blob: Blob) -> bool:
        """Get what is missing; answers whether it went on with what was there."""
        had = os.fstat(fd).st_size
        if had >= blob.size_bytes > 0:
            self.prove(blob)
            return True
        headers = {"Range": f"bytes={had}-"} if had else {}
        with self.client.opened(f"/blobs/{blob.digest}", headers) as response:
            found = response.headers.get("Content-Range", "")
            goes_on = response.status == http.HTTPStatus.PARTIAL_CONTENT and had > 0
            if goes_on and not found.startswith(f"bytes {had}-"):
                raise _other_bytes(self.image)
            if not goes_on:
                os.ftruncate(fd, 0)
                had = 0
            self.progress.add(had)
            self._receive(response, fd, had, blob)
        return goes_on

    def _receive(
        self, response: http.client.HTTPResponse, fd: int, position: int, blob: Blob
    ) -> None:
        clock = SystemClock()
        began_ns, began_at = clock.monotonic_ns(), position
        while chunk := response.read1(_CHUNK_BYTES):
            if position + len(chunk) > blob.size_bytes:
                raise _other_bytes(self.image)
            view = memoryview(chunk)
            while view:
                written = os.pwrite(fd, view, position)
                position += written
                view = view[written:]
            self.progress.add(len(chunk))
            passed_seconds = (clock.monotonic_ns() - began_ns) / NS_PER_SECOND
            if passed_seconds >= self.stall_seconds:
                if position - began_at < _LEAST_BYTES_PER_SECOND * passed_seconds:
                    raise DeadlineExceeded(
                        f"The registry of {self.image} sent {position - began_at} bytes within "
                        f"{passed_seconds:.0f} seconds, which is next to nothing.",
                        hint="Try again later: what has come is kept.",
                    )
                began_ns, began_at = clock.monotonic_ns(), position
        if position < blob.size_bytes:
            raise Unavailable(
                f"The registry of {self.image} broke off.",
                hint="Try again: what has come is kept.",
            )


def _is(fd: int, blob: Blob) -> bool:
    """Whether a file has the blob's bytes."""
    with open(fd, "rb", closefd=False) as file:
        file.seek(0)
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" == blob.digest
