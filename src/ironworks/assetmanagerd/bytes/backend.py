"""Where bytes are kept for good: one interface, a directory or a bucket behind it.

    staging/  →  keep  →  kept bytes, named by their SHA-256  →  local  →  a file that can be linked

A name is a SHA-256 and, behind a dot, what tells these bytes from the same ones that were kept and
removed before. Backends are interchangeable: one conformance suite runs on each of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ironworks.assetmanagerd.bytes.staging import Staging


def object_name(sha256: str, asset_id: str) -> str:
    """A name that no bytes have had before, for those that come with a new asset."""
    return f"{sha256}.{asset_id.rpartition('_')[2]}"


class Backend(Protocol):
    """Bytes that stay, named by their SHA-256; see `digest`.

    All methods may raise `Unavailable` or `DeadlineExceeded` where the bytes are behind a network
    that fails: that says nothing about the bytes.
    """

    async def open(self) -> None:
        """Make what must be there before the first call; forget what a crash left half done."""
        ...

    async def keep(self, path: Path, name: str, size_bytes: int) -> None:
        """Make a local file, read to be what `name` says, kept bytes; durable when this returns.

        The file is gone then. What was kept under this name is replaced: these bytes have just
        been read, it has not.

        Raises:
            ResourceExhausted: there is no room.
            DataLoss: what was written is not what is there now.
        """
        ...

    async def check(self, name: str, size_bytes: int) -> None:
        """Answer if such bytes seem to be there, without reading them.

        Raises:
            DataLoss: they are gone, or have another length.
        """
        ...

    async def problem(self, name: str, size_bytes: int) -> str:
        """What is wrong with kept bytes, having read all of them; empty if nothing."""
        ...

    def local(self, name: str, size_bytes: int) -> AbstractAsyncContextManager[Path]:
        """A read-only file of this host with these bytes, verified when it came to this host.

        It stays at its path at least until the context ends.

        Raises:
            DataLoss: they are gone or damaged.
            ResourceExhausted: there is no room for them on this host.
        """
        ...

    async def remove(self, name: str) -> None:
        """Remove kept bytes, if they are there; durable when this returns."""
        ...

    def objects(self) -> AsyncIterator[str]:
        """Names of all that is kept."""
        ...

    async def leftovers(self) -> int:
        """Remove what interrupted work left and nobody will finish; answers how many."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetBytes:
    """All bytes of assetmanagerd: on their way in, and kept."""

    staging: Staging
    kept: Backend
