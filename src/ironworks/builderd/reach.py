"""Reach images wherever they are, as one tenant: with its credentials, into its own store of blobs.

No tenant's blobs are another's: a digest in a manifest that somebody wrote himself proves no right
to bytes that another tenant has pulled. Registries are asked with retries (100, 200, 400 ms), and
one that fails is left alone for a while.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import structlog

from ironworks.builderd import tenants
from ironworks.builderd.cgroup import build_groups
from ironworks.builderd.policy import source_of
from ironworks.builderd.sources.documents import read_manifest
from ironworks.builderd.sources.local import classify, drop_damaged, locate, resolve_layout
from ironworks.builderd.sources.skopeo import PULLS, Skopeo, registries_conf
from ironworks.builderd.types import (
    BuilderSettings,
    Descriptor,
    ImageReference,
    Manifest,
    Pulled,
    Resolved,
    Transport,
)
from ironworks.builderd.vault import Vault
from ironworks.model.errors import NotFound
from ironworks.runtime.clock import Clock
from ironworks.runtime.resilience import Breaker, call
from ironworks.runtime.tasks import Tasks
from ironworks.storage.sql import Database

_T = TypeVar("_T")
_log = structlog.stdlib.get_logger()
_MAX_BREAKERS = 1000
_PROGRESS_SECONDS = 0.5
_YOUNG_NS = 60 * 1_000_000_000
"""A blob that was used so lately is not evicted: another builderd here may be about to read it."""


class Reach:
    """Sources of images."""

    def __init__(
        self, *, database: Database, vault: Vault, settings: BuilderSettings, clock: Clock
    ) -> None:
        """Write down for skopeo what the settings say of registries. Blocks."""
        self._database = database
        self._vault = vault
        self._settings = settings
        self._clock = clock
        self._breakers: dict[str, Breaker] = {}
        self._used: Counter[tuple[str, str]] = Counter()
        registries = settings.builder_dir / f"registries.{settings.worker_name}.conf"
        registries.write_text(
            registries_conf(settings.insecure_registries, settings.registry_mirrors)
        )
        self._skopeo = Skopeo(
            registries=registries,
            file_bytes=settings.max_packed_bytes,
            groups=build_groups(settings, clock),
        )

    @property
    def blobs_dir(self) -> Path:
        """Where each tenant has the blobs that were pulled for it."""
        return self._settings.builder_dir / "blobs"

    @asynccontextmanager
    async def login(
        self, tenant_id: str, reference: ImageReference, scratch: Path
    ) -> AsyncGenerator[Path | None]:
        """The file with the tenant's credential for a registry, if it has one; gone afterwards."""
        if reference.transport is not Transport.REGISTRY:
            yield None
            return
        known = await self._database.read(
            lambda connection: tenants.list_credentials(connection, tenant_id)
        )
        credential = tenants.fitting(known, source_of(reference))
        if credential is None:
            yield None
            return
        path, now_ns = scratch / "login.json", self._clock.now_ns()
        await asyncio.to_thread(self._vault.write_login, credential, path)
        try:
            await self._database.write(
                lambda connection: tenants.use_credential(connection, credential, now_ns)
            )
            yield path
        finally:
            path.unlink(missing_ok=True)

    async def resolve(
        self, tenant_id: str, reference: ImageReference, scratch: Path, login: Path | None
    ) -> tuple[Resolved, Pulled | None]:
        """What a reference means, and the image itself where it is here already.

        Raises:
            IronError: there is no such image, or none for this platform.
        """
        if reference.transport is Transport.REGISTRY:
            return await self._ask(reference, lambda: self._skopeo.resolve(reference, login)), None
        path, kind = await self._local(tenant_id, reference)
        if kind is Transport.LAYOUT:
            return await asyncio.to_thread(resolve_layout, path, reference.name)
        return await self._skopeo.unpack_archive(
            path,
            kind,
            reference.name,
            scratch=scratch,
            timeout_seconds=self._settings.build_timeout_seconds,
        )

    async def _local(self, tenant_id: str, reference: ImageReference) -> tuple[Path, Transport]:
        if reference.transport is Transport.UPLOAD:
            path = await self._uploaded(tenant_id, reference.location)
            return path, await asyncio.to_thread(classify, path)
        path = await asyncio.to_thread(locate, reference, self._settings.image_roots())
        kind = reference.transport
        if kind in (Transport.PATH, Transport.LAYOUT):
            found = await asyncio.to_thread(classify, path)
            return path, found if kind is Transport.PATH else kind
        if not path.is_file():
            raise NotFound(f"There is no archive at {reference.location}.")
        return path, kind

    async def _uploaded(self, tenant_id: str, upload_id: str) -> Path:
        upload = await self._database.read(
            lambda connection: tenants.read_upload(connection, tenant_id, upload_id)
        )
        path = self._settings.uploads_dir / f"{upload_id}.tar"
        if upload is None or not upload.complete or not path.exists():
            raise NotFound(
                f"There is no finished upload {upload_id}.", hint="Upload the image again."
            )
        return path

    async def manifest(
        self, reference: ImageReference, resolved: Resolved, login: Path | None
    ) -> Manifest:
        """What a registry's image is made of, before any of it is fetched."""
        data = await self._ask(reference, lambda: self._skopeo.manifest(reference, resolved, login))
        return read_manifest(
            data,
            max_layers=self._settings.max_image_layers,
            max_packed_bytes=self._settings.max_packed_bytes,
        )

    async def pull(
        self,
        tenant_id: str,
        reference: ImageReference,
        resolved: Resolved,
        *,
        layers: Sequence[Descriptor],
        scratch: Path,
        login: Path | None,
        timeout_seconds: float,
        on_bytes: Callable[[int], None],
    ) -> Pulled:
        """Copy an image of a registry into the tenant's store.

        Raises:
            NotFound, PermissionDenied, Unavailable: the registry does not give it.
        """
        store = self.blobs_dir / tenant_id

        async def once() -> Pulled:
            return await self._skopeo.pull(
                reference,
                resolved,
                scratch=scratch,
                store=store,
                timeout_seconds=timeout_seconds,
                login=login,
            )

        async def watch() -> None:
            arriving = store / PULLS / scratch.parent.name / scratch.name
            while True:
                await self._clock.sleep(_PROGRESS_SECONDS)
                on_bytes(await asyncio.to_thread(_arrived, store, arriving, layers))

        dropped = await asyncio.to_thread(drop_damaged, store / "sha256", layers)
        if dropped:
            _log.warning("damaged_blobs_dropped", tenant=tenant_id, blobs=dropped)
        async with Tasks() as watching:
            watching.start(watch(), name=f"progress {scratch.name}")
            pulled = await self._ask(reference, once)
        on_bytes(sum(layer.size_bytes for layer in layers))
        await asyncio.to_thread(self._touch, pulled.blobs, layers)
        await asyncio.to_thread(self.evict, tenant_id)
        return pulled

    async def _ask(self, reference: ImageReference, attempt: Callable[[], Awaitable[_T]]) -> _T:
        registry = source_of(reference).partition("/")[0]
        if registry not in self._breakers and len(self._breakers) >= _MAX_BREAKERS:
            self._breakers.pop(next(iter(self._breakers)))
        breaker = self._breakers.setdefault(registry, Breaker())
        return await call(attempt, clock=self._clock, breaker=breaker)

    # --- the store --------------------------------------------------------------------------------

    @contextmanager
    def using(self, tenant_id: str, digests: Sequence[str]) -> Generator[None]:
        """Blobs that a build reads are not evicted meanwhile."""
        keys = [(tenant_id, digest.removeprefix("sha256:")) for digest in digests]
        self._used.update(keys)
        try:
            yield
        finally:
            self._used.subtract(keys)
            self._used += Counter()

    def _touch(self, blobs: Path, layers: Sequence[Descriptor]) -> None:
        now_ns = self._clock.now_ns()
        for layer in layers:
            with suppress(OSError):
                os.utime(blobs / layer.digest.removeprefix("sha256:"), ns=(now_ns, now_ns))

    def evict(self, tenant_id: str) -> int:
        """Remove the least lately used blobs until the store has its size; answers how many.

        Blocks.
        """
        found: list[tuple[int, int, Path]] = []
        for path in (self.blobs_dir / tenant_id / "sha256").glob("*"):
            with suppress(OSError):
                stat = path.stat()
                found.append((stat.st_mtime_ns, stat.st_size, path))
        excess = sum(size for _, size, _ in found) - self._settings.max_cache_bytes_per_tenant
        young_ns, removed = self._clock.now_ns() - _YOUNG_NS, 0
        for used_at_ns, size, path in sorted(found):
            if excess <= 0:
                break
            if self._used[tenant_id, path.name] or used_at_ns > young_ns:
                continue
            path.unlink(missing_ok=True)
            excess -= size
            removed += 1
        return removed

    def evict_all(self) -> int:
        """`evict` for every tenant."""
        return sum(self.evict(path.name) for path in self.blobs_dir.glob("*"))


def _arrived(store: Path, arriving: Path, layers: Sequence[Descriptor]) -> int:
    """Bytes of layers that are here: whole ones in the store, parts where skopeo writes them."""
    done = 0
    for layer in layers:
        if (store / "sha256" / layer.digest.removeprefix("sha256:")).exists():
            done += layer.size_bytes
    for path in arriving.glob("oci-put-blob*"):
        with suppress(OSError):
            done += path.stat().st_size
    return min(done, sum(layer.size_bytes for layer in layers))
