"""Firecracker's metrics: lines of JSON whose counters are deltas since the line before.

A line comes when metrics are flushed: on request, every 60 seconds, at start and end. What is lost
when the FIFO is full is the newest line, or the rest of it; the next one is then glued to a torn
one, and is found again by how every line begins.

Source: Firecracker's docs/metrics.md and src/vmm/src/logger/metrics.rs.
"""

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self, cast

from ironworks.metald.drivers.driver import BlockCounters

MAX_LINE_BYTES = 256 * 1024
"""A line has 5 to 10 KB; what is longer is no line."""
_BEGINNING = b'{"utc_timestamp_ms"'
_BLOCK = ("read_bytes", "write_bytes", "read_count", "write_count")
_NET = ("rx_bytes_count", "tx_bytes_count")
_STATE = struct.Struct("<6Q")


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Cumulative since the VMM started."""

    read_bytes: int = 0
    written_bytes: int = 0
    read_operations: int = 0
    write_operations: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0

    @property
    def block(self) -> BlockCounters:
        """Those of the disks."""
        return BlockCounters(
            read_bytes=self.read_bytes,
            written_bytes=self.written_bytes,
            read_operations=self.read_operations,
            write_operations=self.write_operations,
        )

    def plus(self, deltas: tuple[int, ...]) -> "Counters":
        """The sum with the deltas of one line, in the order of the fields."""
        values = [mine + delta for mine, delta in zip(self.values, deltas, strict=True)]
        return Counters.of(values)

    @property
    def values(self) -> tuple[int, ...]:
        """In the order of the fields."""
        return (
            self.read_bytes,
            self.written_bytes,
            self.read_operations,
            self.write_operations,
            self.received_bytes,
            self.sent_bytes,
        )

    @classmethod
    def of(cls, values: list[int] | tuple[int, ...]) -> Self:
        """Of values in the order of the fields."""
        read, written, reads, writes, received, sent = values
        return cls(
            read_bytes=read,
            written_bytes=written,
            read_operations=reads,
            write_operations=writes,
            received_bytes=received,
            sent_bytes=sent,
        )


def _sum_of(line: Mapping[str, object], group: str, field: str) -> int:
    """A field of `block` or `net`: of the sum, or where there is none, of the devices' own.

    The sum already has its devices' counts in it: adding both would count twice.
    """
    names = [group] if group in line else [name for name in line if name.startswith(f"{group}_")]
    total = 0
    for name in names:
        part = line[name]
        value = cast("Mapping[str, object]", part).get(field) if isinstance(part, dict) else None
        total += value if isinstance(value, int) and value > 0 else 0
    return total


def deltas_of(line: Mapping[str, object]) -> tuple[int, ...]:
    """What one line adds, in the order of `Counters`' fields."""
    block = [_sum_of(line, "block", field) for field in _BLOCK]
    net = [_sum_of(line, "net", field) for field in _NET]
    return (*block, *net)


class MetricsReader:
    """Takes a stream of bytes; adds up the whole lines in it."""

    def __init__(self, counters: Counters | None = None) -> None:
        """Begin with what was counted before."""
        self.counters = counters or Counters()
        self.lines = 0
        """Whole lines that were read."""
        self.torn = 0
        """Lines of which something was lost."""
        self._rest = b""
        self._overlong = False

    def feed(self, data: bytes) -> None:
        """Take in more of the stream."""
        *whole, rest = (self._rest + data).split(b"\n")
        for line in whole:
            if self._overlong:
                self._overlong = False
                self._take_last(line)
            elif line.strip():
                self._take(line)
        if len(rest) > MAX_LINE_BYTES:
            self._overlong, rest = True, b""
            self.torn += 1
        self._rest = rest

    def _take(self, line: bytes) -> None:
        if not self._add(line):
            self.torn += 1
            self._take_last(line)

    def _take_last(self, line: bytes) -> None:
        """A line of which the beginning is torn: what is whole stands at its end."""
        at = line.rfind(_BEGINNING)
        if at > 0:
            self._add(line[at:])

    def _add(self, line: bytes) -> bool:
        try:
            content: object = json.loads(line)
        except ValueError:
            return False
        if not isinstance(content, dict):
            return False
        self.counters = self.counters.plus(deltas_of(cast("Mapping[str, object]", content)))
        self.lines += 1
        return True


class CountersFile:
    """Keeps the counters beyond this metald, in a file that is overwritten in place."""

    def __init__(self, path: Path) -> None:
        """Open or make the file.

        Raises:
            OSError: it cannot be made.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(path, flags, 0o600)

    def read(self) -> Counters:
        """What was written last; zeros if nothing was."""
        content = os.pread(self._descriptor, _STATE.size, 0)
        return Counters.of(_STATE.unpack(content)) if len(content) == _STATE.size else Counters()

    def write(self, counters: Counters) -> None:
        """Keep these; not brought to the disk, for a VMM does not outlive its host either."""
        mask = (1 << 64) - 1
        os.pwrite(self._descriptor, _STATE.pack(*(value & mask for value in counters.values)), 0)

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
