"""The outbox: batches as files, from sealing until aggregatord has acknowledged them.

A file is `IWB1`, the SHA-256 of what follows, and a serialised SubmitBatchRequest. It appears whole
or not at all, and its name says its place in the order and its id.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from ironworks.billaged.log import fsync_directory
from ironworks.billaged.types import SealedWindow
from ironworks.gen.ironworks.aggregatord.v1.batch_pb import SubmitBatchRequest
from ironworks.model.errors import DataLoss, ResourceExhausted, Unavailable

_log = structlog.stdlib.get_logger()
_MAGIC = b"IWB1"
_NAME = re.compile(r"(\d{12})-(bat_[0-9a-z]{26})\.batch")
_HASH_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A batch on disk that is not acknowledged."""

    number: int
    batch_id: str
    size_bytes: int
    sealed_at_ns: int
    windows: tuple[SealedWindow, ...] = ()


class Outbox:
    """All batches that wait."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._aside = directory / "refused"
        self._waiting: dict[str, Waiting] = {}
        self._held: set[str] = set()
        self._next_number = 1

    def open(self, windows_of: Callable[[SubmitBatchRequest], tuple[SealedWindow, ...]]) -> None:
        """Find the batches of an earlier run; remove what was being written.

        Raises:
            ResourceExhausted: the directory cannot be written.
        """
        try:
            self._aside.mkdir(parents=True, exist_ok=True)
            for path in self._directory.glob("*.tmp"):
                path.unlink()
        except OSError as error:
            raise _refused(error) from error
        for path in sorted(self._directory.glob("*.batch")):
            match = _NAME.fullmatch(path.name)
            if match is None:
                continue
            number, batch_id, status = int(match[1]), match[2], path.stat()
            self._add(number, batch_id, status.st_size, status.st_mtime_ns)
            try:
                windows = windows_of(self.load(batch_id))
            except DataLoss as error:
                _log.error("batch_damaged", error=error.message, batch_id=batch_id)
            else:
                self._add(number, batch_id, status.st_size, status.st_mtime_ns, windows)

    def _add(
        self,
        number: int,
        batch_id: str,
        size_bytes: int,
        sealed_at_ns: int,
        windows: tuple[SealedWindow, ...] = (),
    ) -> None:
        self._next_number = max(self._next_number, number + 1)
        self._waiting[batch_id] = Waiting(
            number=number,
            batch_id=batch_id,
            size_bytes=size_bytes,
            sealed_at_ns=sealed_at_ns,
            windows=windows,
        )

    @property
    def waiting(self) -> tuple[Waiting, ...]:
        """What may be sent, oldest first."""
        ready = [one for one in self._waiting.values() if one.batch_id not in self._held]
        return tuple(sorted(ready, key=lambda one: one.number))

    @property
    def size_bytes(self) -> int:
        """Bytes of all that waits."""
        return sum(one.size_bytes for one in self._waiting.values())

    def _path(self, one: Waiting) -> Path:
        return self._directory / f"{one.number:012d}-{one.batch_id}.batch"

    async def put(
        self, request: SubmitBatchRequest, windows: tuple[SealedWindow, ...], now_ns: int
    ) -> None:
        """Store a batch; it is on disk when this returns, and may be sent after `release`.

        Raises:
            ResourceExhausted: the disk is full or refuses.
        """
        body = request.to_binary()
        content = _MAGIC + hashlib.sha256(body).digest() + body
        number = self._next_number
        self._next_number += 1
        path = self._directory / f"{number:012d}-{request.batch_id}.batch"
        try:
            await asyncio.to_thread(_write, path, content)
        except OSError as error:
            path.with_suffix(".tmp").unlink(missing_ok=True)
            raise _refused(error) from error
        self._held.add(request.batch_id)
        self._add(number, request.batch_id, len(content), now_ns, windows)

    def release(self, batch_id: str) -> None:
        """Let a batch be sent: the record that seals it is durable."""
        self._held.discard(batch_id)

    def load(self, batch_id: str) -> SubmitBatchRequest:
        """The batch as it is to be sent.

        Raises:
            DataLoss: the file is damaged, and moved aside; or it is gone, and forgotten.
            Unavailable: it cannot be read now.
        """
        one = self._waiting[batch_id]
        try:
            content = self._path(one).read_bytes()
        except FileNotFoundError:
            self.acknowledge(batch_id)
            raise DataLoss(
                "A waiting batch was removed from the disk.",
                hint="Its samples are lost and will be shown as a gap.",
                context={"batch_id": batch_id},
            ) from None
        except OSError as error:
            if error.errno != errno.EIO:
                raise Unavailable(f"A batch cannot be read: {error.strerror}.") from error
            content = b""
        body = content[len(_MAGIC) + _HASH_BYTES :]
        digest = content[len(_MAGIC) : len(_MAGIC) + _HASH_BYTES]
        if not content.startswith(_MAGIC) or hashlib.sha256(body).digest() != digest:
            self.set_aside(batch_id)
            raise DataLoss(
                "A waiting batch is damaged on disk.",
                hint="Its samples are lost and will be shown as a gap; check the disk.",
                context={"batch_id": batch_id},
            )
        return SubmitBatchRequest.from_binary(body)

    def acknowledge(self, batch_id: str) -> None:
        """Forget a batch that aggregatord has; unknown ones are ignored."""
        one = self._waiting.pop(batch_id, None)
        if one is not None:
            self._path(one).unlink(missing_ok=True)

    def set_aside(self, batch_id: str) -> None:
        """Keep a batch, but send it no more."""
        one = self._waiting.pop(batch_id)
        path = self._path(one)
        path.replace(self._aside / path.name)
        _log.error("batch_set_aside", batch_id=batch_id, path=str(self._aside / path.name))

    def discard(self, batch_id: str) -> None:
        """Remove a batch that was never sealed: its samples are still in the log."""
        self.acknowledge(batch_id)


def _refused(error: OSError) -> ResourceExhausted:
    return ResourceExhausted(
        f"A batch cannot be stored: {error.strerror}.",
        hint="The data directory must be writable and have room.",
        context={"error": str(error)},
    )


def _write(path: Path, content: bytes) -> None:
    beside = path.with_suffix(".tmp")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    fsync_directory(path.parent)
