"""The rings: the last 1,200 samples of every VM.

All VMs of a host share one grid of ticks, so sequence number k stands at position k modulo 1,200 of
every ring, and a tick of a thousand VMs is stored with one assignment a column. The readings of a
sample stand side by side: a tick touches each VM's memory once, not once a reading.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ironworks.billaged.types import COLUMNS, RING_SAMPLES, ColumnName
from ironworks.model.errors import ResourceExhausted

Ints = npt.NDArray[np.int64]
Rows = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]
EMPTY = -1
_FIRST_ROWS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class TickColumns:
    """One tick: row i of every column belongs to ring `rows[i]`.

    `absent` has the absence reasons of the readings, four bits each; 0 where all are present.
    `readings` has a column for each of `COLUMNS`.
    """

    seq: int
    at_ns: int
    rows: Rows
    offset_us: npt.NDArray[np.int32]
    absent: npt.NDArray[np.uint32]
    readings: npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Samples of one VM, ascending by sequence number; what a window is made of."""

    seq: Ints
    at_ns: Ints
    offset_us: npt.NDArray[np.int32]
    absent: npt.NDArray[np.uint32]
    values: Mapping[ColumnName, npt.NDArray[np.uint64]]

    def __len__(self) -> int:
        return len(self.seq)

    def where(self, keep: Mask | slice) -> Samples:
        """The samples that `keep` selects."""
        return Samples(
            seq=self.seq[keep],
            at_ns=self.at_ns[keep],
            offset_us=self.offset_us[keep],
            absent=self.absent[keep],
            values={name: column[keep] for name, column in self.values.items()},
        )


class Rings:
    """All rings of a host."""

    def __init__(self) -> None:
        self._free: list[int] = []
        self._seq: Ints = np.empty((0, RING_SAMPLES), np.int64)
        self._at_ns: Ints = np.empty((0, RING_SAMPLES), np.int64)
        self._offset_us = np.empty((0, RING_SAMPLES), np.int32)
        self._absent = np.empty((0, RING_SAMPLES), np.uint32)
        self._sealed: Mask = np.empty((0, RING_SAMPLES), np.bool_)
        self._values = np.empty((0, RING_SAMPLES, len(COLUMNS)), np.uint64)

    def allocate(self) -> int:
        """An empty ring; answers its row."""
        if not self._free:
            self._grow()
        row = self._free.pop()
        self._seq[row] = EMPTY
        self._sealed[row] = True
        return row

    def release(self, row: int) -> None:
        """Give a ring back."""
        self._seq[row] = EMPTY
        self._sealed[row] = True
        self._free.append(row)

    def _grow(self) -> None:
        old = len(self._seq)
        new = max(_FIRST_ROWS, 2 * old)

        def grown(matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
            # Pages that are never touched cost nothing.
            larger = np.zeros((new, *matrix.shape[1:]), matrix.dtype)
            larger[:old] = matrix
            return larger

        self._seq, self._at_ns = grown(self._seq), grown(self._at_ns)
        self._offset_us, self._absent = grown(self._offset_us), grown(self._absent)
        self._sealed = grown(self._sealed)
        self._seq[old:], self._sealed[old:] = EMPTY, True
        self._values = grown(self._values)
        self._free = list(range(new - 1, old - 1, -1))

    def put(self, tick: TickColumns) -> int:
        """Store a tick; samples that are there already are skipped. Answers how many were new.

        Raises:
            ResourceExhausted: a sample that is in no window yet would be overwritten; nothing of
                the tick is stored then.
        """
        position = tick.seq % RING_SAMPLES
        new = self._seq[tick.rows, position] != tick.seq
        rows = tick.rows[new]
        if not self._sealed[rows, position].all():
            raise ResourceExhausted("A ring is full: its windows could not be closed.")
        self._seq[rows, position] = tick.seq
        self._at_ns[rows, position] = tick.at_ns
        self._offset_us[rows, position] = tick.offset_us[new]
        self._absent[rows, position] = tick.absent[new]
        self._sealed[rows, position] = False
        self._values[rows, position] = tick.readings[new]
        return len(rows)

    def is_new(self, row: int, seq: int) -> bool:
        """Whether a sample is not in the ring."""
        return int(self._seq[row, seq % RING_SAMPLES]) != seq

    def is_open(self, row: int, seq: int) -> bool:
        """Whether a sample is in the ring and in no window."""
        return not self.is_new(row, seq) and not self._sealed[row, seq % RING_SAMPLES]

    def has_open(self, rows: Iterable[int], from_ns: int, to_ns: int) -> bool:
        """Whether any of `rows` has samples of this time which are in no window."""
        return any(len(self._open(row, from_ns, to_ns)) for row in rows)

    def open_samples(self, row: int, from_ns: int, to_ns: int) -> Samples:
        """The samples of this time that are in no window."""
        found = self._open(row, from_ns, to_ns)
        return self._samples(row, found[np.argsort(self._seq[row, found], kind="stable")])

    def _open(self, row: int, from_ns: int, to_ns: int) -> Rows:
        at_ns = self._at_ns[row]
        return np.flatnonzero(~self._sealed[row] & (at_ns >= from_ns) & (at_ns < to_ns))

    def sample(self, row: int, seq: int) -> Samples:
        """One sample, whether it is in a window or not; none if the ring does not hold it."""
        position = seq % RING_SAMPLES
        held = [] if seq < 0 or self.is_new(row, seq) else [position]
        return self._samples(row, np.array(held, np.intp))

    def _samples(self, row: int, positions: Rows) -> Samples:
        return Samples(
            seq=self._seq[row, positions],
            at_ns=self._at_ns[row, positions],
            offset_us=self._offset_us[row, positions],
            absent=self._absent[row, positions],
            values=dict(zip(COLUMNS, self._values[row, positions].T, strict=True)),
        )

    def open_count(self, rows: Iterable[int]) -> int:
        """How many samples of these rings are in no window."""
        wanted = np.fromiter(rows, np.intp)
        return int((~self._sealed[wanted]).sum())

    def open_times(self, row: int) -> list[int]:
        """The distinct grid instants of samples that are in no window."""
        return [int(at_ns) for at_ns in np.unique(self._at_ns[row][~self._sealed[row]])]

    def held(self, row: int) -> Ints:
        """Every sequence number in the ring, ascending."""
        seq = self._seq[row]
        return np.sort(seq[seq != EMPTY])

    def mark(self, row: int, seq: Ints, *, sealed: bool) -> None:
        """Say that these samples are in a window, or (a batch could not be written) are not."""
        position = seq % RING_SAMPLES
        same = self._seq[row, position] == seq
        self._sealed[row, position[same]] = sealed
