from __future__ import annotations

import numpy as np
import pytest

from ironworks.billaged.ticks import columns_of
from ironworks.billaged.types import COLUMNS
from ironworks.gen.ironworks.billaged.v1 import samples_pb
from ironworks.model.errors import InvalidRequest
from ironworks.testkit.metering import reading, tick

ROWS = np.array([4, 2], np.intp)


def of_before() -> samples_pb.Tick:
    """The tick in lists, as it stands in logs that were written before it had `readings`."""
    old = samples_pb.Tick(seq=7, at_ns=tick(7, [1]).at_ns, slots=[1, 2], offset_us=[101, 102])
    for name in COLUMNS:
        setattr(old, name, [reading(name, 7)] * 2)
    return old


def test_columns_stand_in_the_order_of_the_counters() -> None:
    made = columns_of(tick(7, [1, 2]), ROWS)
    assert (made.seq, made.rows.tolist(), made.offset_us.tolist()) == (7, [4, 2], [101, 102])
    assert made.readings.tolist() == [[reading(name, 7) for name in COLUMNS]] * 2
    assert not made.absent.any()


def test_a_tick_without_vms_has_no_rows() -> None:
    made = columns_of(tick(7, []), np.empty(0, np.intp))
    assert made.readings.shape == (0, len(COLUMNS))


def test_a_log_of_before_is_read() -> None:
    gone = samples_pb.Absence(
        row=1, counter=samples_pb.Counter.MEMORY, reason=samples_pb.AbsenceReason.GONE
    )
    written = of_before()
    written.absences = [gone]
    old, new = columns_of(written, ROWS), columns_of(tick(7, [1, 2]), ROWS)
    assert old.readings.tolist() == new.readings.tolist()
    assert old.offset_us.tolist() == new.offset_us.tolist()
    assert old.absent.tolist() == [0, 2 << 4]


def test_a_reading_that_was_not_made_then_is_absent() -> None:
    written = of_before()
    written.network_internal_bytes = []
    made = columns_of(written, ROWS)
    assert made.absent.tolist() == [1 << 24, 1 << 24]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cpu_ns", [1]),
        ("offset_us", []),
        ("absences", [samples_pb.Absence(row=3, counter=samples_pb.Counter.CPU)]),
        ("absences", [samples_pb.Absence(row=0, reason=samples_pb.AbsenceReason.GONE)]),
    ],
)
def test_a_malformed_record_of_before_is_refused(name: str, value: object) -> None:
    written = of_before()
    setattr(written, name, value)
    with pytest.raises(InvalidRequest):
        columns_of(written, ROWS)
