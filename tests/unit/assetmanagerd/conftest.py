from __future__ import annotations

import hashlib
import struct
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ironworks.assetmanagerd.app import Registry
from ironworks.assetmanagerd.bytes.local import LocalBytes
from ironworks.assetmanagerd.intake import DigestLocks, Intake
from ironworks.assetmanagerd.leasing import Leasing
from ironworks.assetmanagerd.types import Asset, AssetKind, AssetSettings, Facts, Who
from ironworks.storage.migrate import upgrade
from ironworks.storage.sql import Database, sqlite_url
from ironworks.testkit.clock import FakeClock, FakeEntropy

ACME = Who(actor="builderd", tenant_id="tnt_acme", is_service=True)
EVIL = Who(actor="builderd", tenant_id="tnt_evil", is_service=True)
METALD = Who(actor="metald", tenant_id="tnt_acme", is_service=True)
PLATFORM = Who(actor="metald", is_service=True)


def squashfs(payload: bytes = b"") -> bytes:
    """A superblock that could be one, and some bytes."""
    body = payload.ljust(4096, b"\0")
    used = 96 + len(body)
    return (
        b"hsqs"
        + struct.pack("<IIIIHH", 3, 0, 131072, 0, 5, 17)
        + struct.pack("<HHHH", 0, 1, 4, 0)
        + struct.pack("<8Q", 0, used, 96, (1 << 64) - 1, 96, 96, (1 << 64) - 1, (1 << 64) - 1)
        + body
    )


def facts(body: bytes, **more: object) -> Facts:
    values: dict[str, object] = {
        "kind": AssetKind.ROOTFS,
        "sha256": hashlib.sha256(body).hexdigest(),
        "size_bytes": len(body),
    }
    return Facts(**{**values, **more})  # type: ignore[arg-type]


@dataclass(kw_only=True)
class World:
    """assetmanagerd without its server, on a clock of the test."""

    settings: AssetSettings
    clock: FakeClock
    database: Database
    files: LocalBytes
    registry: Registry
    intake: Intake
    leasing: Leasing

    def stage(self, body: bytes, name: str = "staged") -> str:
        (self.files.staging / name).write_bytes(body)
        return name

    async def asset(self, body: bytes | None = None, who: Who = ACME, **more: object) -> Asset:
        body = squashfs() if body is None else body
        asset, _ = await self.intake.register(who, facts(body, **more), self.stage(body), "")
        return asset

    def jail(self, name: str = "vm_1") -> Path:
        path = self.settings.data_dir / "jails" / name / "root"
        path.mkdir(parents=True)
        return path


def make_world(data_dir: Path) -> World:
    settings = AssetSettings(data_dir=data_dir, min_free_bytes=0)
    clock, entropy = FakeClock(), FakeEntropy()
    files = LocalBytes(settings.asset_dir, min_free_bytes=0)
    files.open()
    database = Database(sqlite_url(data_dir / "assets.db"))
    upgrade(database.engine, "ironworks.assetmanagerd.migrations")
    locks = DigestLocks()
    parts = {"database": database, "files": files, "settings": settings, "clock": clock}
    return World(
        settings=settings,
        clock=clock,
        database=database,
        files=files,
        registry=Registry(**parts, locks=locks, entropy=entropy),  # type: ignore[arg-type]
        intake=Intake(**parts, locks=locks, entropy=entropy),  # type: ignore[arg-type]
        leasing=Leasing(**parts, entropy=entropy),  # type: ignore[arg-type]
    )


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path)
    yield made
    made.database.close()


async def chunked(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
