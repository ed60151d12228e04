"""The write-ahead log: framed records in segment files, made durable in groups.

A frame is `IWL1`, length (u32), CRC-32 of kind and payload (u32), kind (u8), payload; integers are
little-endian. Appending is memory only; `sync` writes and flushes everything appended, once for all
who wait. A segment begins with a checkpoint, so that older segments can be dropped as soon as no
open window needs them.

Reading back: a frame that is cut off at the end of the last segment was never acknowledged; it is
truncated. Damage elsewhere is skipped up to the next whole frame, and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from ironworks.model.errors import ResourceExhausted
from ironworks.model.units import MIB

MARKER = b"IWL1"
_HEAD = struct.Struct("<4sIIB")
MAX_RECORD_BYTES = 16 * MIB
MAX_PENDING_BYTES = 64 * MIB
_SEGMENT = re.compile(r"(\d{12})\.log")


class Kind(IntEnum):
    """What a record is."""

    CHECKPOINT = 1
    HELLO = 2
    TICK = 3
    EVENTS = 4
    SEALED = 5


@dataclass(frozen=True, slots=True)
class Record:
    """One record and the number of the segment that it is in."""

    segment: int
    kind: int
    payload: bytes


@dataclass(slots=True)
class Scan:
    """What reading the log back has found."""

    records: int = 0
    damaged: int = 0
    truncated_bytes: int = 0


def frame(kind: int, payload: bytes) -> bytes:
    """The bytes of one record."""
    crc = zlib.crc32(payload, zlib.crc32(bytes([kind])))
    return _HEAD.pack(MARKER, len(payload), crc, kind) + payload


def _frame_at(content: bytes, offset: int) -> tuple[int, bytes, int] | None:
    """Kind, payload and end of the frame at `offset`; None if there is no whole one."""
    if offset + _HEAD.size > len(content):
        return None
    marker, length, crc, kind = _HEAD.unpack_from(content, offset)
    end = offset + _HEAD.size + length
    if marker != MARKER or length > MAX_RECORD_BYTES or end > len(content):
        return None
    payload = content[offset + _HEAD.size : end]
    if zlib.crc32(payload, zlib.crc32(bytes([kind]))) != crc:
        return None
    return kind, payload, end


def read_frames(content: bytes, scan: Scan) -> Iterator[tuple[int, bytes, int]]:
    """The whole frames of a segment, as kind, payload and end; damage is skipped and counted.

    What follows the last whole frame is not counted as damage: the caller knows whether it may be
    a tail that was being written.
    """
    offset = 0
    while offset < len(content):
        found = _frame_at(content, offset)
        if found is not None:
            scan.records += 1
            yield found
            offset = found[2]
            continue
        offset = content.find(MARKER, offset + 1)
        while offset >= 0 and _frame_at(content, offset) is None:
            offset = content.find(MARKER, offset + 1)
        if offset < 0:
            return
        scan.damaged += 1


def fsync_directory(directory: Path) -> None:
    """Make names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refused(error: OSError) -> ResourceExhausted:
    return ResourceExhausted(
        f"The metering log cannot be written: {error.strerror}.",
        hint="The data directory must be writable and have room.",
        context={"error": str(error)},
    )


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.fdatasync(descriptor)


class Log:
    """The log in one directory; one process at a time."""

    def __init__(
        self,
        directory: Path,
        *,
        segment_bytes: int,
        max_bytes: int,
        checkpoint: Callable[[], bytes],
    ) -> None:
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._max_bytes = max_bytes
        self._checkpoint = checkpoint
        self._sizes: dict[int, int] = {}
        self._descriptor = -1
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._appended = 0
        self._durable = 0
        self._lock = asyncio.Lock()
        self.scan = Scan()

    @property
    def segment(self) -> int:
        """Number of the segment that the next append goes to."""
        return max(self._sizes, default=0)

    @property
    def segments(self) -> int:
        """How many segments there are."""
        return len(self._sizes)

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return sum(self._sizes.values())

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:012d}.log"

    def replay(self) -> Iterator[Record]:
        """Every record on disk, oldest first; call it once, to its end, then `begin`.

        Raises:
            ResourceExhausted: the directory can neither be found nor made.
        """
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _refused(error) from error
        numbers = sorted(
            int(match[1])
            for path in self._directory.iterdir()
            if (match := _SEGMENT.fullmatch(path.name))
        )
        for number in numbers:
            content = self._path(number).read_bytes()
            good_bytes = 0
            for kind, payload, end in read_frames(content, self.scan):
                good_bytes = end
                yield Record(number, kind, payload)
            if good_bytes < len(content):
                if number == numbers[-1]:
                    self.scan.truncated_bytes = len(content) - good_bytes
                else:
                    self.scan.damaged += 1
            self._sizes[number] = len(content)

    def begin(self) -> None:
        """Start a new segment after the replay; a torn tail is cut off where it is.

        Raises:
            ResourceExhausted: the disk is full or not writable.
        """
        last = self.segment
        if last and self.scan.truncated_bytes:
            size = self._sizes[last] - self.scan.truncated_bytes
            try:
                os.truncate(self._path(last), size)
            except OSError as error:
                raise _refused(error) from error
            self._sizes[last] = size
        self._open(last + 1)

    def _open(self, number: int) -> None:
        """Begin a segment; the one before it stays in use if the disk refuses."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        head = frame(Kind.CHECKPOINT, self._checkpoint())
        descriptor = -1
        try:
            descriptor = os.open(self._path(number), flags, 0o600)
            _write_all(descriptor, head)
            fsync_directory(self._directory)
        except OSError as error:
            if descriptor >= 0:
                os.close(descriptor)
                self._path(number).unlink(missing_ok=True)
            raise _refused(error) from error
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = descriptor
        self._sizes[number] = len(head)

    def ensure_room(self, payload_bytes: int) -> None:
        """Return if a record of this size may be appended.

        Raises:
            ResourceExhausted: the log has reached its bound, or the disk has taken nothing for
                too long.
        """
        if self.size_bytes + self._pending_bytes > self._max_bytes:
            raise ResourceExhausted(
                "The metering log has reached its bound.",
                hint="Is aggregatord reachable? Raise meter_log_max_bytes if it must wait longer.",
            )
        if self._pending_bytes > MAX_PENDING_BYTES or payload_bytes > MAX_RECORD_BYTES:
            raise ResourceExhausted("The metering log cannot be written fast enough.")

    def append(self, kind: Kind, payload: bytes) -> None:
        """Add a record, in memory; `sync` makes it durable. Ask `ensure_room` first."""
        data = frame(kind, payload)
        self._pending.append(data)
        self._pending_bytes += len(data)
        self._appended += 1

    async def sync(self) -> None:
        """Return when everything appended before this call is on disk.

        Raises:
            ResourceExhausted: the disk is full or refuses; what was appended is kept and tried
                again by the next call.
        """
        target = self._appended
        async with self._lock:
            while self._durable < target:
                await self._write_pending()
            # A checkpoint tells the state after everything before it, so nothing may be pending.
            while self._sizes[self.segment] >= self._segment_bytes:
                if not self._pending:
                    # What was asked for is on disk: a disk that is full now is the next call's.
                    with contextlib.suppress(ResourceExhausted):
                        self._open(self.segment + 1)
                    break
                await self._write_pending()

    async def _write_pending(self) -> None:
        data, upto, count = b"".join(self._pending), self._appended, len(self._pending)
        loop = asyncio.get_running_loop()
        writing = loop.run_in_executor(None, self._write, self.segment, data)
        cancelled: asyncio.CancelledError | None = None
        while not writing.done():
            # A thread cannot be called back: nobody else may write before it has ended.
            try:
                await asyncio.wait([writing])
            except asyncio.CancelledError as error:
                cancelled = error
        try:
            writing.result()
        except OSError as error:
            raise cancelled or _refused(error) from error
        del self._pending[:count]
        self._pending_bytes -= len(data)
        self._durable = upto
        if cancelled is not None:
            raise cancelled

    def _write(self, number: int, data: bytes) -> None:
        size = self._sizes[number]
        try:
            _write_all(self._descriptor, data)
        except OSError:
            # Half a record in the middle of a segment would hide what comes after it.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, size)
            raise
        self._sizes[number] = size + len(data)

    def drop_before(self, segment: int) -> int:
        """Remove the segments before `segment`; answers how many."""
        gone = [number for number in self._sizes if number < min(segment, self.segment)]
        for number in gone:
            self._path(number).unlink(missing_ok=True)
            del self._sizes[number]
        return len(gone)

    def close(self) -> None:
        """Close the file; what was not synced is lost, and was not acknowledged."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
