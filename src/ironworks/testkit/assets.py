"""assetmanagerd without its server, on a clock of the test."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy import Engine

from ironworks.assetmanagerd.app import Registry
from ironworks.assetmanagerd.bytes.backend import AssetBytes, Backend
from ironworks.assetmanagerd.bytes.disk import digest
from ironworks.assetmanagerd.bytes.local import LocalBackend
from ironworks.assetmanagerd.bytes.locks import DigestLocks
from ironworks.assetmanagerd.bytes.staging import Staging
from ironworks.assetmanagerd.bytes.state_file import crc64
from ironworks.assetmanagerd.intake import Intake
from ironworks.assetmanagerd.leasing import Leasing
from ironworks.assetmanagerd.repair import Repair
from ironworks.assetmanagerd.types import Asset, AssetKind, AssetSettings, Facts, Who
from ironworks.assetmanagerd.watch import Watches
from ironworks.runtime.clock import SystemEntropy
from ironworks.storage.migrate import upgrade
from ironworks.storage.schema import current_revision, newest_revision
from ironworks.storage.sql import Database, sqlite_url
from ironworks.testkit.clock import FakeClock

ACME = Who(actor="builderd", tenant_id="tnt_acme", is_service=True)
EVIL = Who(actor="builderd", tenant_id="tnt_evil", is_service=True)
METALD = Who(actor="metald", tenant_id="tnt_acme", is_service=True)
PLATFORM = Who(actor="metald", is_service=True)


def squashfs(payload: bytes = b"") -> bytes:
    """A superblock that could be one, and some bytes."""
    body = payload.ljust(4096, b"\0")
    used, absent = 96 + len(body), (1 << 64) - 1
    return (
        b"hsqs"
        + struct.pack("<IIIIHH", 3, 0, 131072, 0, 5, 17)
        + struct.pack("<HHHH", 0, 1, 4, 0)
        + struct.pack("<8Q", 0, used, 96, absent, 96, 96, absent, absent)
        + body
    )


def firecracker_state(architecture: str = "amd64", version: str = "8.0.0") -> bytes:
    """The state file of a snapshot, as Firecracker up to 1.14 writes it."""
    magic = {"amd64": 0x0710_1984_8664_0000, "arm64": 0x0710_1984_AAAA_0000}[architecture]
    body = struct.pack("<QQ", magic, len(version)) + version.encode() + bytes(range(200))
    return body + crc64(body).to_bytes(8, "little")


def facts(body: bytes, kind: AssetKind = AssetKind.ROOTFS) -> Facts:
    """What is true of these bytes."""
    return Facts(kind=kind, sha256=hashlib.sha256(body).hexdigest(), size_bytes=len(body))


@dataclass(kw_only=True)
class AssetWorld:
    """All parts of assetmanagerd but its server."""

    settings: AssetSettings
    clock: FakeClock
    database: Database
    files: AssetBytes
    registry: Registry
    intake: Intake
    leasing: Leasing
    repair: Repair
    watches: Watches

    def stage(self, body: bytes, name: str = "staged") -> str:
        """Put bytes where builderd would."""
        (self.files.staging.path / name).write_bytes(body)
        return name

    async def asset(
        self,
        body: bytes | None = None,
        who: Who = ACME,
        *,
        platform: bool = False,
        name: str = "staged",
    ) -> Asset:
        """A validated asset."""
        body = squashfs() if body is None else body
        claim = replace(facts(body), platform=platform)
        asset, _ = await self.intake.register(who, claim, self.stage(body, name), "")
        return asset

    def kept_file(self, name: str) -> Path:
        """Where the bytes are, or would be; only while a directory keeps them."""
        return LocalBackend(self.settings.asset_dir).path(name)

    def has(self, sha256: str) -> bool:
        """Whether such bytes are kept; only while a directory keeps them."""
        return any(self.kept_file(sha256).parent.glob(f"{sha256}*"))

    async def kept(self) -> list[str]:
        """SHA-256 of all bytes that are kept."""
        return [digest(name) async for name in self.files.kept.objects()]

    def jail(self, name: str = "vm_1") -> Path:
        """A VM's directory."""
        path = self.settings.data_dir / "jails" / name / "root"
        path.mkdir(parents=True)
        return path


@asynccontextmanager
async def asset_world(
    data_dir: Path, kept: Backend | None = None, database_url: str = "", **limits: int
) -> AsyncGenerator[AssetWorld]:
    """A fresh assetmanagerd below `data_dir`, or the one that was there before.

    Args:
        data_dir: Its data directory.
        kept: Where its bytes are; None: below the data directory.
        database_url: Where its registry is; empty: below the data directory.
        limits: Settings.
    """
    settings = AssetSettings(data_dir=data_dir, min_free_bytes=0).model_copy(update=limits)
    clock, entropy, locks = FakeClock(), SystemEntropy(), DigestLocks()
    files = AssetBytes(
        staging=Staging(settings.staging_dir, min_free_bytes=settings.min_free_bytes),
        kept=kept or LocalBackend(settings.asset_dir),
    )
    files.staging.open()
    await files.kept.open()
    database = Database(database_url or sqlite_url(data_dir / "assets.db"), order_by="asset_events")
    ensure_migrated(database.engine)
    registry = Registry(
        database=database,
        files=files,
        settings=settings,
        clock=clock,
        entropy=entropy,
    )
    intake = Intake(
        database=database,
        files=files,
        locks=locks,
        settings=settings,
        clock=clock,
        entropy=entropy,
    )
    leasing = Leasing(
        database=database, files=files, settings=settings, clock=clock, entropy=entropy
    )
    try:
        yield AssetWorld(
            settings=settings,
            clock=clock,
            database=database,
            files=files,
            registry=registry,
            intake=intake,
            leasing=leasing,
            repair=Repair(
                database=database, files=files, locks=locks, settings=settings, clock=clock
            ),
            watches=Watches(database),
        )
    finally:
        database.close()


def ensure_migrated(engine: Engine) -> None:
    """Bring a registry up to date; a database that was made from a template is."""
    package = "ironworks.assetmanagerd.migrations"
    if current_revision(engine) != newest_revision(package):
        upgrade(engine, package)


async def chunked(*chunks: bytes) -> AsyncIterator[bytes]:
    """A stream of bytes."""
    for chunk in chunks:
        yield chunk
