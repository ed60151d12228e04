"""A tick's message as arrays; what is not as it should be is refused here.

Source of the format: `ironworks.billaged.v1.Tick`.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from ironworks.billaged.rings import Rows, TickColumns
from ironworks.billaged.types import ABSENCE_BITS, COLUMNS, COUNTERS
from ironworks.gen.ironworks.billaged.v1 import samples_pb
from ironworks.model.errors import InvalidRequest

_REASONS = (1 << ABSENCE_BITS) - 1
_ALL_BITS = np.uint32((1 << ABSENCE_BITS * COUNTERS) - 1)
_INTERNAL_UNKNOWN = np.uint32(
    int(samples_pb.AbsenceReason.NO_SOURCE)
    << ABSENCE_BITS * (int(samples_pb.Counter.NETWORK_INTERNAL) - 1)
)


def columns_of(tick: samples_pb.Tick, rows: Rows) -> TickColumns:
    """The columns of a tick.

    Args:
        tick: The message.
        rows: The ring of each of its rows.

    Raises:
        InvalidRequest: columns of different length, an absence that belongs to no reading, or no
            number or time.
    """
    if tick.seq < 0 or tick.at_ns <= 0:
        raise InvalidRequest("The tick has no number or no time.")
    if len(rows) and not tick.readings:
        return _of_lists(tick, rows)
    count = len(rows)
    sizes = len(tick.readings), len(tick.offsets), len(tick.absent) or 4 * count
    if sizes != (8 * COUNTERS * count, 4 * count, 4 * count):
        raise _different_length()
    if tick.absent:
        absent = np.frombuffer(tick.absent, "<u4")
        if (absent & ~_ALL_BITS).any():
            raise _stray_absence()
    else:
        absent = np.zeros(count, np.uint32)
    return TickColumns(
        seq=tick.seq,
        at_ns=tick.at_ns,
        rows=rows,
        offset_us=np.frombuffer(tick.offsets, "<i4"),
        absent=absent,
        readings=np.frombuffer(tick.readings, "<u8").reshape(COUNTERS, count).T,
    )


def _of_lists(tick: samples_pb.Tick, rows: Rows) -> TickColumns:
    """A tick as it was written before it had `readings`; a log may still have some."""
    count = len(rows)
    columns: list[list[int]] = [getattr(tick, name) for name in COLUMNS]
    unknown = not columns[-1]
    if unknown:
        # Of before this was read.
        columns[-1] = [0] * count
    if any(len(column) != count for column in (*columns, tick.offset_us)):
        raise _different_length()
    absent = _absences(tick.absences, count)
    if unknown:
        absent |= _INTERNAL_UNKNOWN
    return TickColumns(
        seq=tick.seq,
        at_ns=tick.at_ns,
        rows=rows,
        offset_us=np.array(tick.offset_us, np.int32),
        absent=absent,
        readings=np.array(columns, np.uint64).T,
    )


def _absences(absences: Iterable[samples_pb.Absence], count: int) -> npt.NDArray[np.uint32]:
    absent = np.zeros(count, np.uint32)
    for one in absences:
        bit = int(one.counter) - 1
        if one.row >= count or not 0 <= bit < COUNTERS or not 0 < one.reason <= _REASONS:
            raise _stray_absence()
        absent[one.row] |= np.uint32(int(one.reason) << (ABSENCE_BITS * bit))
    return absent


def _different_length() -> InvalidRequest:
    return InvalidRequest("The tick's columns are of different length.")


def _stray_absence() -> InvalidRequest:
    return InvalidRequest("The tick has an absence that belongs to no reading.")
