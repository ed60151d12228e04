"""Reach images wherever they are, as one tenant: with its credentials, and never with another's.

Registries are asked with retries (100, 200, 400 ms), and one that fails is left alone for a while.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import structlog

from ironworks.builderd import tenants
from ironworks.builderd.cgroup import build_groups
from ironworks.builderd.policy import source_of
from ironworks.builderd.sources.documents import read_manifest
from ironworks.builderd.sources.local import (
    classify,
    drop_damaged,
    is_compressed,
    locate,
    resolve_layout,
)
from ironworks.builderd.sources.registry import BLOBS, PARTIAL, Reachable, Registries
from ironworks.builderd.sources.skopeo import Skopeo
from ironworks.builderd.types import (
    BuilderSettings,
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
from ironworks.storage.sql import Database

_T = TypeVar("_T")
_log = structlog.stdlib.get_logger()
_MAX_BREAKERS = 1000
_YOUNG_NS = 60 * 1_000_000_000
"""A blob that was used so lately is not evicted: another builderd here may be about to read it."""
_ABANDONED_NS = 86_400 * 1_000_000_000
"""What has come of a blob is kept so long for a pull that goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """What a tenant says to a registry; empty: nothing."""

    username: str = ""
    password: str = field(default="", repr=False)


class Reach:
    """Sources of images."""

    def __init__(
        self, *, database: Database, vault: Vault, settings: BuilderSettings, clock: Clock
    ) -> None:
        """Nothing is started."""
        self._database = database
        self._vault = vault
        self._settings = settings
        self._clock = clock
        self._breakers: dict[str, Breaker] = {}
        self._used: Counter[str] = Counter()
        groups = build_groups(settings, clock)
        self._registries = Registries(
            store=self.blobs_dir,
            reachable=Reachable(
                insecure=settings.insecure_registries,
                private=settings.private_registries,
                mirrors=settings.registry_mirrors,
                stall_seconds=settings.registry_stall_seconds,
            ),
            file_bytes=settings.max_packed_bytes,
            groups=groups,
        )
        self._skopeo = Skopeo(file_bytes=settings.max_packed_bytes, groups=groups)

    @property
    def blobs_dir(self) -> Path:
        """Where each registry's blobs are."""
        return self._settings.builder_dir / "blobs"

    async def login(self, tenant_id: str, reference: ImageReference) -> Login:
        """The tenant's credential for a registry, if it has one."""
        if reference.transport is not Transport.REGISTRY:
            return Login()
        known = await self._database.read(
            lambda connection: tenants.list_credentials(connection, tenant_id)
        )
        credential = tenants.fitting(known, source_of(reference))
        if credential is None:
            return Login()
        password, now_ns = self._vault.decrypt(credential), self._clock.now_ns()
        await self._database.write(
            lambda connection: tenants.use_credential(connection, credential, now_ns)
        )
        return Login(username=credential.username, password=password)

    async def resolve(
        self, tenant_id: str, reference: ImageReference, scratch: Path, login: Login
    ) -> tuple[Resolved, Pulled]:
        """What a reference means; of a registry's image the manifest alone is here already.

        Raises:
            IronError: there is no such image, or none for this platform.
        """
        if reference.transport is Transport.REGISTRY:
            resolved, manifest = await self._ask(
                reference,
                lambda: self._registries.resolve(
                    reference.location, username=login.username, password=login.password
                ),
            )
            return resolved, Pulled(manifest=manifest)
        path, kind = await self._local(tenant_id, reference, scratch)
        if kind is Transport.LAYOUT:
            return await asyncio.to_thread(resolve_layout, path, reference.name)
        return await self._skopeo.unpack_archive(
            path,
            kind,
            reference.name,
            scratch=scratch,
            timeout_seconds=self._settings.build_timeout_seconds,
        )

    async def _local(
        self, tenant_id: str, reference: ImageReference, scratch: Path
    ) -> tuple[Path, Transport]:
        kind = reference.transport
        if kind is Transport.UPLOAD:
            path = await self._uploaded(tenant_id, reference.location)
        else:
            path = await asyncio.to_thread(locate, reference, self._settings.image_roots())
        if kind in (Transport.OCI_ARCHIVE, Transport.DOCKER_ARCHIVE) and not path.is_file():
            raise NotFound(f"There is no archive at {reference.location}.")
        if await asyncio.to_thread(is_compressed, path):
            path = await self._skopeo.inflate(
                path, scratch=scratch, timeout_seconds=self._settings.build_timeout_seconds
            )
        if kind in (Transport.PATH, Transport.LAYOUT, Transport.UPLOAD):
            found = await asyncio.to_thread(classify, path)
            return path, kind if kind is Transport.LAYOUT else found
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

    def read(self, pulled: Pulled) -> Manifest:
        """What an image is made of.

        Raises:
            InvalidRequest: it is damaged, or beyond the bounds.
        """
        return read_manifest(
            pulled.manifest,
            max_layers=self._settings.max_image_layers,
            max_packed_bytes=self._settings.max_packed_bytes,
        )

    async def pull(
        self,
        tenant_id: str,
        reference: ImageReference,
        resolved: Resolved,
        pulled: Pulled,
        *,
        login: Login,
        on_bytes: Callable[[int], None],
    ) -> Pulled:
        """Have the blobs of a registry's image here, if the registry gives them to this tenant.

        Raises:
            NotFound, PermissionDenied, Unavailable: the registry does not give them.
        """
        manifest = self.read(pulled)
        blobs = [manifest.config, *manifest.layers]
        for store in await asyncio.to_thread(lambda: list(self.blobs_dir.glob(f"*/{BLOBS}"))):
            if dropped := await asyncio.to_thread(drop_damaged, store, blobs):
                _log.warning("damaged_blobs_dropped", blobs=dropped)

        async def once() -> Pulled:
            return await self._registries.pull(
                reference.location,
                resolved,
                pulled.manifest,
                blobs,
                tenant_id=tenant_id,
                on_bytes=on_bytes,
                username=login.username,
                password=login.password,
            )

        here = await self._ask(reference, once)
        await asyncio.to_thread(self._touch, here, [blob.digest for blob in blobs])
        await asyncio.to_thread(self.evict)
        return here

    async def _ask(self, reference: ImageReference, attempt: Callable[[], Awaitable[_T]]) -> _T:
        registry = source_of(reference).partition("/")[0]
        if registry not in self._breakers and len(self._breakers) >= _MAX_BREAKERS:
            self._breakers.pop(next(iter(self._breakers)))
        breaker = self._breakers.setdefault(registry, Breaker())
        return await call(
            attempt, clock=self._clock, breaker=breaker, callee=f"the registry {registry}"
        )

    # --- the store --------------------------------------------------------------------------------

    @contextmanager
    def using(self, digests: Sequence[str]) -> Generator[None]:
        """Blobs that a build reads are not evicted meanwhile."""
        names = [digest.removeprefix("sha256:") for digest in digests]
        self._used.update(names)
        try:
            yield
        finally:
            self._used.subtract(names)
            self._used += Counter()

    def _touch(self, pulled: Pulled, digests: Sequence[str]) -> None:
        now_ns = self._clock.now_ns()
        for digest in digests:
            with suppress(OSError):
                os.utime(pulled.blobs / digest.removeprefix("sha256:"), ns=(now_ns, now_ns))

    def evict(self) -> int:
        """Remove what pulls abandoned, and the least lately used blobs until the rest has its size.

        Answers how many blobs were whole. Blocks.
        """
        found = _files(self.blobs_dir.glob(f"*/{BLOBS}/*"))
        now_ns, removed = self._clock.now_ns(), 0
        for used_at_ns, _, path in _files(self.blobs_dir.glob(f"*/{PARTIAL}/*/*")):
            if used_at_ns < now_ns - _ABANDONED_NS:
                path.unlink(missing_ok=True)
        excess = sum(size for _, size, _ in found) - self._settings.max_cache_bytes
        for used_at_ns, size, path in found:
            if excess <= 0:
                break
            if self._used[path.name] or used_at_ns > now_ns - _YOUNG_NS:
                continue
            path.unlink(missing_ok=True)
            excess -= size
            removed += 1
        return removed


def _files(paths: Iterable[Path]) -> list[tuple[int, int, Path]]:
    """Time, size and path of each, the oldest first."""
    found: list[tuple[int, int, Path]] = []
    for path in paths:
        with suppress(OSError):
            stat = path.stat()
            found.append((stat.st_mtime_ns, stat.st_size, path))
    return sorted(found)
