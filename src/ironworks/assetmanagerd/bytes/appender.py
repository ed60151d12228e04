"""Bytes of a stream on their way to the disk: written and hashed while the next ones arrive."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from ironworks.assetmanagerd.bytes.disk import Hasher
from ironworks.assetmanagerd.bytes.staging import Staging

FLUSH_BYTES = 4 * 1024 * 1024
"""Bytes that are written at once; twice as many are in memory at most."""


class Appender:
    """Appends to one staged file, in a thread, behind the stream.

    `hasher` has taken all that is in the file, and takes what is appended once it is written.
    """

    def __init__(self, staging: Staging, name: str, hasher: Hasher) -> None:
        self._staging = staging
        self._name = name
        self._hasher = hasher
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._writing: asyncio.Future[None] | None = None
        self.offset_bytes = hasher.size_bytes
        """Where the next bytes go, once all that was taken is written."""

    async def take(self, chunk: bytes) -> None:
        """Take the next bytes; waits while too many are not written."""
        self._waiting.append(chunk)
        self._waiting_bytes += len(chunk)
        self.offset_bytes += len(chunk)
        if self._waiting_bytes >= FLUSH_BYTES:
            await self._turn()

    async def _turn(self) -> None:
        """Wait for what is being written, then begin to write what waits.

        After a failure nothing more is written, each call fails: what is in the file is a beginning
        of what was taken, always.
        """
        if self._writing is not None:
            # Whoever is cancelled here leaves a thread behind that writes: it is waited for later.
            await asyncio.shield(self._writing)
            self._writing = None
        if self._waiting:
            chunks, self._waiting, self._waiting_bytes = self._waiting, [], 0
            loop = asyncio.get_running_loop()
            self._writing = loop.run_in_executor(None, self._write, chunks)

    def _write(self, chunks: list[bytes]) -> None:
        self._staging.append(self._name, self._hasher.size_bytes, chunks)
        for chunk in chunks:
            self._hasher.update(chunk)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Write all that was taken."""
        await self._turn()
        await self._turn()
