from __future__ import annotations

import numpy as np
import pytest

from ironworks.billaged.rings import Rings, TickColumns
from ironworks.billaged.types import COLUMNS, RING_SAMPLES
from ironworks.model.errors import ResourceExhausted


def columns(seq: int, rows: list[int], at_ns: int | None = None) -> TickColumns:
    return TickColumns(
        seq=seq,
        at_ns=seq * 100 if at_ns is None else at_ns,
        rows=np.array(rows, np.intp),
        offset_us=np.arange(len(rows), dtype=np.int32),
        absent=np.zeros(len(rows), np.uint32),
        readings=np.full((len(rows), len(COLUMNS)), seq, np.uint64),
    )


def test_samples_come_back_by_number_whatever_their_order() -> None:
    rings = Rings()
    row = rings.allocate()
    for seq in (5, 3, 4):
        assert rings.put(columns(seq, [row])) == 1
    samples = rings.open_samples(row, 0, 1000)
    assert samples.seq.tolist() == [3, 4, 5]
    assert samples.values["cpu_ns"].tolist() == [3, 4, 5]
    assert len(samples) == 3


def test_a_sample_that_is_there_is_skipped() -> None:
    rings = Rings()
    one, two = rings.allocate(), rings.allocate()
    assert rings.put(columns(1, [one])) == 1
    assert rings.put(columns(1, [one, two])) == 1
    assert rings.open_count([one, two]) == 2


def test_time_selects_and_what_is_in_a_window_is_open_no_more() -> None:
    rings = Rings()
    row = rings.allocate()
    for seq in range(10):
        rings.put(columns(seq, [row]))
    assert rings.open_samples(row, 300, 600).seq.tolist() == [3, 4, 5]
    rings.mark(row, np.array([3, 4, 99]), sealed=True)
    assert rings.open_samples(row, 300, 600).seq.tolist() == [5]
    assert not rings.has_open([row], 300, 500)
    assert rings.has_open([row], 300, 501)
    rings.mark(row, np.array([3]), sealed=False)
    assert rings.is_open(row, 3)
    assert not rings.is_open(row, 4)
    assert rings.held(row).tolist() == list(range(10))
    assert rings.open_times(row) == [0, 100, 200, 300, 500, 600, 700, 800, 900]


def test_a_full_ring_refuses_the_whole_tick() -> None:
    rings = Rings()
    full, empty = rings.allocate(), rings.allocate()
    rings.put(columns(0, [full]))
    with pytest.raises(ResourceExhausted):
        rings.put(columns(RING_SAMPLES, [empty, full]))
    assert rings.is_new(empty, RING_SAMPLES)
    rings.mark(full, np.array([0]), sealed=True)
    assert rings.put(columns(RING_SAMPLES, [empty, full])) == 2
    assert rings.is_new(full, 0)


def test_rings_grow_and_are_used_again() -> None:
    rings = Rings()
    rows = [rings.allocate() for _ in range(20)]
    assert sorted(rows) == list(range(20))
    rings.put(columns(7, rows))
    assert rings.open_count(rows) == 20
    rings.release(rows[3])
    assert rings.allocate() == rows[3]
    assert rings.held(rows[3]).tolist() == []
    assert rings.open_count(rows) == 19
