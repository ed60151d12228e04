"""Registries: resolve references, and fetch blobs into a store that tenants share.

The store is one for each registry: a blob in it has come from there, and every tenant whose build
names it is asked for a proof, which is that the same registry gives the blob to this tenant's own
credentials, in a repository whose manifest names it. Another registry's word is none: whoever
writes a manifest can run a registry that says yes. What has come of a blob so far is each tenant's
own; it gets into the store whole, once its bytes are what its digest says.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ironworks.builderd.cgroup import BuildGroups
from ironworks.builderd.registry import plan as plans
from ironworks.builderd.registry.plan import (
    Blob,
    Fetched,
    FetchPlan,
    Place,
    directory_of,
    read_fetched,
)
from ironworks.builderd.sandbox import REGISTRY, OnStep, Sandbox, ask, python_paths
from ironworks.builderd.sources.documents import (
    MAX_DOCUMENT_BYTES,
    choose_platform,
    is_index,
)
from ironworks.builderd.sources.local import blob_path
from ironworks.builderd.types import Descriptor, Pulled, Resolved
from ironworks.model.errors import DeadlineExceeded, Internal, InvalidRequest
from ironworks.runtime.architecture import host_architecture

BLOBS, PARTIAL = "sha256", "partial"
"""Directories of a registry's store: whole blobs; and what has come so far, for each tenant."""
_DEFAULT_TAG = "latest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reachable:
    """What settings say of registries.

    Attributes:
        insecure: Those that are spoken to without TLS.
        private: Those that may be at addresses which are not public.
        mirrors: Registry → registries that have its images too and are asked first.
        stall_seconds: Within this time a registry must send something to speak of.
        answer_seconds: Within this time it must have answered with a manifest.
    """

    insecure: Sequence[str] = ()
    private: Sequence[str] = ()
    mirrors: Mapping[str, Sequence[str]]
    stall_seconds: float = 60.0
    answer_seconds: float = 60.0

    def places(self, location: str, username: str = "", password: str = "") -> tuple[Place, ...]:
        """Where the image may be. No mirror gets the registry's password."""
        name = base(location)
        found: list[Place] = []
        for prefix, mirrors in self.mirrors.items():
            if name == prefix or name.startswith(f"{prefix}/"):
                rest = name.removeprefix(prefix)
                found += [_place(f"{mirror}{rest}") for mirror in mirrors]
        own = replace(_place(name), username=username, password=password)
        return (*found, own)

    def trusted(self) -> tuple[str, ...]:
        """Registries that the operator has named, which may be anywhere."""
        mirrors = [one.partition("/")[0] for named in self.mirrors.values() for one in named]
        return tuple({*self.insecure, *self.private, *mirrors})


def _place(name: str) -> Place:
    registry, _, repository = name.partition("/")
    return Place(registry=registry, repository=repository)


def base(location: str) -> str:
    """The reference without tag and digest."""
    name = location.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return head + slash + last.partition(":")[0]


def _reference(location: str) -> str:
    name, _, digest = location.partition("@")
    return digest or name.rpartition("/")[2].partition(":")[2] or _DEFAULT_TAG


class Registries:
    """Asks registries."""

    def __init__(
        self,
        *,
        store: Path,
        reachable: Reachable,
        file_bytes: int,
        groups: BuildGroups | None = None,
    ) -> None:
        """Nothing is started.

        Args:
            store: Directory with a directory for each registry.
            reachable: What settings say.
            file_bytes: Largest blob.
            groups: Where the program gets its cgroup; None: it has no limits of that kind.
        """
        self._store = store
        self._reachable = reachable
        self._file_bytes = file_bytes
        self._groups = groups
        self._numbers = itertools.count()

    async def resolve(
        self, location: str, *, username: str = "", password: str = ""
    ) -> tuple[Resolved, bytes]:
        """The digest that a reference means for this machine now, and that manifest.

        Raises:
            NotFound, PermissionDenied, Unavailable, InvalidRequest: the registry does not give it.
            Unimplemented: the image is for other platforms.
        """
        plan = self._plan(location, _reference(location), username, password)
        seconds = self._reachable.answer_seconds
        try:
            async with asyncio.timeout(seconds):
                answer = await self._ask(plan, {}, lambda _step, _done, _total: None)
        except TimeoutError:
            raise DeadlineExceeded(
                f"The registry of {location} did not answer within {seconds:g} seconds."
            ) from None
        return _resolved(location, [_decoded(one) for one in answer.documents])

    async def pull(
        self,
        location: str,
        resolved: Resolved,
        manifest: bytes,
        blobs: Sequence[Descriptor],
        *,
        tenant_id: str,
        on_bytes: Callable[[int], None],
        username: str = "",
        password: str = "",
    ) -> Pulled:
        """Fetch the blobs that are not in the store, and prove the right to those that are.

        Raises:
            NotFound, PermissionDenied, Unavailable, InvalidRequest: the registry does not give it.
            DeadlineExceeded: it sends next to nothing.
        """
        plan = self._plan(location, resolved.digest, username, password)
        wanted = {one.digest: Blob(digest=one.digest, size_bytes=one.size_bytes) for one in blobs}
        kept = {place.registry: self._kept(place.registry, wanted) for place in plan.places}
        plan = replace(plan, blobs=tuple(wanted.values()), kept=kept)
        writable: dict[str, Path] = {}
        for place in plan.places:
            partial = self._store / directory_of(place.registry) / PARTIAL / tenant_id
            await asyncio.to_thread(partial.mkdir, parents=True, exist_ok=True, mode=0o700)
            writable[f"{plan.partial}/{directory_of(place.registry)}"] = partial

        def on_step(_step: str, done_bytes: int, _total_bytes: int) -> None:
            on_bytes(done_bytes)

        answer = await self._ask(plan, writable, on_step)
        place = self._store / directory_of(answer.registry)
        await asyncio.to_thread(_take, place, place / PARTIAL / tenant_id, answer.files, wanted)
        return Pulled(manifest=manifest, blobs=place / BLOBS)

    def _kept(self, registry: str, wanted: Mapping[str, Blob]) -> tuple[str, ...]:
        blobs = self._store / directory_of(registry) / BLOBS
        return tuple(digest for digest in wanted if blob_path(blobs, digest).exists())

    def _plan(self, location: str, reference: str, username: str, password: str) -> FetchPlan:
        return FetchPlan(
            image=location,
            places=self._reachable.places(location, username, password),
            reference=reference,
            architecture=host_architecture(),
            insecure=tuple(self._reachable.insecure),
            private=self._reachable.trusted(),
            stall_seconds=self._reachable.stall_seconds,
        )

    async def _ask(self, plan: FetchPlan, writable: Mapping[str, Path], on_step: OnStep) -> Fetched:
        sandbox = Sandbox(
            network=True,
            readable=python_paths(),
            writable=writable,
            file_bytes=self._file_bytes,
        )
        name = f"{os.getpid()}.{next(self._numbers)}.registry"
        answer = await ask(REGISTRY, sandbox, plans.encode(plan), on_step, self._groups, name)
        fetched = read_fetched(answer)
        if fetched.registry not in {place.registry for place in plan.places}:
            raise Internal("A registry answered that nobody asked.")
        return fetched


def _decoded(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error:
        data = b""
    return data[: MAX_DOCUMENT_BYTES + 1]


def _resolved(location: str, documents: Sequence[bytes]) -> tuple[Resolved, bytes]:
    digests = [f"sha256:{hashlib.sha256(one).hexdigest()}" for one in documents]
    asked = location.partition("@")[2]
    if asked and asked != digests[0]:
        raise InvalidRequest(f"The registry answered another image than {asked}.")
    if not is_index(documents[0]):
        return Resolved(digest=digests[0]), documents[0]
    chosen = choose_platform(documents[0]).digest
    if digests[1:] != [chosen]:
        raise InvalidRequest(
            f"The registry answers other bytes than {location} names.",
            hint="Push the image again; if that does not help, do not trust the registry.",
        )
    return Resolved(digest=chosen, index_digest=digests[0]), documents[1]


def _take(place: Path, partial: Path, files: Mapping[str, str], wanted: Mapping[str, Blob]) -> None:
    """Put fetched blobs into the store: whole, on disk, and of the right bytes."""
    (place / BLOBS).mkdir(exist_ok=True, mode=0o700)
    for digest, name in files.items():
        if digest not in wanted or Path(name).name != name:
            raise Internal("A blob was fetched that nobody asked for.")
        path = partial / name
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(fd, "rb") as file:  # noqa: PTH123 - a descriptor
            found = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        if f"sha256:{found}" != digest:
            path.unlink(missing_ok=True)
            raise Internal("A fetched blob is not what its digest says.")
        path.replace(blob_path(place / BLOBS, digest))
