"""Each backend, and a way to do harm to what it keeps."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest

from ironworks.assetmanagerd.bytes.backend import Backend
from ironworks.assetmanagerd.bytes.bucket import BucketBackend
from ironworks.assetmanagerd.bytes.cache import HostCache
from ironworks.assetmanagerd.bytes.local import LocalBackend
from ironworks.runtime.clock import SystemClock
from ironworks.storage.objects import ObjectStore
from ironworks.testkit.seaweed import Seaweed


async def nothing_is_leased() -> frozenset[str]:
    return frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A backend, and its own storage behind its back."""

    kept: Backend
    directory: Path
    objects: ObjectStore | None = None

    def file(self, body: bytes, name: str = "staged") -> tuple[Path, str]:
        """A file with these bytes, and their SHA-256."""
        path = self.directory / name
        path.write_bytes(body)
        return path, hashlib.sha256(body).hexdigest()

    async def keep(self, body: bytes) -> str:
        """Bytes that are kept; answers their SHA-256."""
        path, sha256 = self.file(body)
        await self.kept.keep(path, sha256, len(body))
        assert not path.exists()
        return sha256

    async def harm(self, sha256: str, body: bytes) -> None:
        """Put other bytes where those were."""
        if self.objects is not None:
            path, _ = self.file(body, "harm")
            await self.objects.put(f"sha256/{sha256}", path, len(body))
            return
        path = self.directory / "kept" / "objects" / "sha256" / sha256[:2] / sha256
        path.chmod(0o644)
        path.write_bytes(body)
        path.chmod(0o444)

    async def lose(self, sha256: str) -> None:
        """Take the bytes away."""
        if self.objects is not None:
            await self.objects.delete(f"sha256/{sha256}")
        else:
            (self.directory / "kept" / "objects" / "sha256" / sha256[:2] / sha256).unlink()


@pytest.fixture(params=["directory", "bucket"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "directory":
        made = Place(kept=LocalBackend(tmp_path / "kept"), directory=tmp_path)
    else:
        server: Seaweed = request.getfixturevalue("s3")
        clock = SystemClock()
        objects = ObjectStore(server.bucket(), clock)
        cache = HostCache(
            tmp_path / "cache", limit_bytes=1 << 30, leased=nothing_is_leased, clock=clock
        )
        kept = BucketBackend(objects, cache)
        made = Place(kept=kept, directory=tmp_path, objects=objects)
    await made.kept.open()
    return made
