"""Archives that clients send, in pieces if need be.

The bytes lie in `uploads/<upload>.tar`; how far one has come is the file's length, so nothing is
lost when a stream or builderd ends in the middle. An upload is whole once its digest has been
compared.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection

from ironworks.builderd import tenants
from ironworks.builderd.tenants import Upload
from ironworks.builderd.types import BuilderSettings
from ironworks.model.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    ResourceExhausted,
)
from ironworks.model.ids import new_id
from ironworks.model.units import NS_PER_SECOND
from ironworks.runtime.clock import Clock, Entropy
from ironworks.storage.sql import Database

MAX_CHUNK_BYTES = 1 << 20
_MAX_KEY_CHARS = 128
_SHA256 = re.compile("[0-9a-f]{64}")
_HASHED_BYTES = 4 << 20
_SWEPT = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a client says before it sends bytes; see `builderd.v1.UploadImageStart`."""

    sha256: str
    size_bytes: int
    offset_bytes: int
    key: str


class Uploads:
    """Use cases over uploads."""

    def __init__(
        self, *, database: Database, settings: BuilderSettings, clock: Clock, entropy: Entropy
    ) -> None:
        self._database = database
        self._settings = settings
        self._clock = clock
        self._entropy = entropy
        self._busy: set[str] = set()

    def _path(self, upload_id: str) -> Path:
        return self._settings.uploads_dir / f"{upload_id}.tar"

    def _expiry_ns(self) -> int:
        return self._clock.now_ns() + self._settings.upload_ttl_seconds * NS_PER_SECOND

    async def receive(self, tenant_id: str, start: Start, chunks: AsyncIterator[bytes]) -> Upload:
        """Take bytes until the stream ends; answers the whole upload.

        Raises:
            InvalidRequest: the claim is impossible, or the bytes are not what it says.
            FailedPrecondition: the bytes begin elsewhere than those that are here end, or another
                stream sends them just now; also if the stream ended before the archive.
            ResourceExhausted: over the tenant's limit, or no room on the disk.
        """
        upload = await self._begin(tenant_id, start)
        if upload.complete:
            return await self._keep(upload, complete=True)
        if upload.upload_id in self._busy:
            raise FailedPrecondition(
                "Another stream sends this upload just now.", hint="Wait until it has ended."
            )
        self._busy.add(upload.upload_id)
        try:
            await self._take(upload, start.offset_bytes, chunks)
            return await self._finish(upload)
        finally:
            self._busy.discard(upload.upload_id)

    async def _begin(self, tenant_id: str, start: Start) -> Upload:
        if not _SHA256.fullmatch(start.sha256):
            raise InvalidRequest("sha256 must be 64 hexadecimal digits.")
        if start.size_bytes < 1 or start.offset_bytes < 0:
            raise InvalidRequest("size_bytes must be 1 or more, offset_bytes 0 or more.")
        if start.size_bytes > self._settings.max_packed_bytes:
            raise InvalidRequest(
                f"An archive may have at most {self._settings.max_packed_bytes} bytes."
            )
        if not 1 <= len(start.key) <= _MAX_KEY_CHARS:
            raise InvalidRequest(f"idempotency_key must have 1 to {_MAX_KEY_CHARS} characters.")
        fresh = Upload(
            upload_id=new_id("upl", self._clock, self._entropy),
            tenant_id=tenant_id,
            key=start.key,
            sha256=start.sha256,
            size_bytes=start.size_bytes,
            complete=False,
            expires_at_ns=self._expiry_ns(),
        )

        def work(connection: Connection) -> Upload:
            known = tenants.find_upload(connection, tenant_id, start.key)
            if known is not None:
                return known
            tenants.begin_upload(connection, fresh, self._settings.max_upload_bytes_per_tenant)
            return fresh

        upload = await self._database.write(work)
        if (upload.sha256, upload.size_bytes) != (start.sha256, start.size_bytes):
            raise AlreadyExists("The key was used for another archive.", hint="Use another key.")
        return upload

    async def _take(self, upload: Upload, offset: int, chunks: AsyncIterator[bytes]) -> None:
        self._settings.uploads_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(self._path(upload.upload_id), os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            here = os.fstat(fd).st_size
            if offset != here:
                raise FailedPrecondition(
                    f"{here} bytes of the archive are here, and the stream begins at {offset}.",
                    hint="Ask GetImageUpload where to begin.",
                )
            async for chunk in chunks:
                if not 1 <= len(chunk) <= MAX_CHUNK_BYTES:
                    raise InvalidRequest(f"A chunk must have 1 to {MAX_CHUNK_BYTES} bytes.")
                if here + len(chunk) > upload.size_bytes:
                    raise InvalidRequest(f"More than the claimed {upload.size_bytes} bytes came.")
                await asyncio.to_thread(self._write, fd, chunk, here)
                here += len(chunk)
            await asyncio.to_thread(os.fsync, fd)
        finally:
            os.close(fd)
        if here < upload.size_bytes:
            raise FailedPrecondition(
                f"The stream ended after {here} of {upload.size_bytes} bytes.",
                hint="Send the rest, from where GetImageUpload says.",
            )

    def _write(self, fd: int, chunk: bytes, offset: int) -> None:
        stats = os.statvfs(self._settings.uploads_dir)
        if stats.f_bavail * stats.f_frsize < self._settings.min_free_bytes + len(chunk):
            raise ResourceExhausted("There is no room on the disk for this archive.")
        os.pwrite(fd, chunk, offset)

    async def _finish(self, upload: Upload) -> Upload:
        path = self._path(upload.upload_id)
        if await asyncio.to_thread(_sha256, path) == upload.sha256:
            return await self._keep(upload, complete=True)
        path.unlink(missing_ok=True)
        await self._database.write(
            lambda connection: tenants.drop_upload(connection, upload.upload_id)
        )
        raise InvalidRequest(
            "The archive's bytes are not what its SHA-256 says.", hint="Upload it again."
        )

    async def _keep(self, upload: Upload, *, complete: bool) -> Upload:
        expires_at_ns = self._expiry_ns()

        def work(connection: Connection) -> Upload | None:
            tenants.keep_upload(connection, upload.upload_id, expires_at_ns, complete=complete)
            return tenants.read_upload(connection, upload.tenant_id, upload.upload_id)

        kept = await self._database.write(work)
        if kept is None:
            raise NotFound("The upload has expired.", hint="Upload the image again.")
        return kept

    async def find(self, tenant_id: str, key: str) -> tuple[Upload, int]:
        """An upload, and how many of its bytes are here.

        Raises:
            NotFound: there is none with this key.
        """
        upload = await self._database.read(
            lambda connection: tenants.find_upload(connection, tenant_id, key)
        )
        if upload is None:
            raise NotFound("There is no upload with this key.")
        path = self._path(upload.upload_id)
        return upload, path.stat().st_size if path.exists() else 0

    async def touch(self, tenant_id: str, upload_id: str) -> None:
        """A build uses an upload, which is therefore kept longer.

        Raises:
            NotFound: the tenant has no finished upload with this id.
        """
        upload = await self._database.read(
            lambda connection: tenants.read_upload(connection, tenant_id, upload_id)
        )
        if upload is None or not upload.complete:
            raise NotFound(
                f"There is no finished upload {upload_id}.", hint="Upload the image again."
            )
        await self._keep(upload, complete=True)

    async def used_bytes(self, tenant_id: str) -> int:
        """Bytes that a tenant's uploads take."""
        return await self._database.read(
            lambda connection: tenants.upload_bytes(connection, tenant_id)
        )

    async def sweep(self) -> int:
        """Remove what has expired; answers how many uploads."""
        now_ns = self._clock.now_ns()
        expired = await self._database.read(
            lambda connection: tenants.expired_uploads(connection, now_ns, _SWEPT)
        )
        for upload_id in expired:
            if upload_id in self._busy:
                continue
            self._path(upload_id).unlink(missing_ok=True)
            await self._database.write(
                lambda connection, upload_id=upload_id: tenants.drop_upload(connection, upload_id)
            )
        return len(expired)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASHED_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
