from __future__ import annotations

import numpy as np

from ironworks.billaged import decide
from ironworks.billaged.types import SeqGap, VmKey
from ironworks.gen.ironworks.billaged.v1.samples_pb import GapReason

LATE, DOWN, DAMAGED, UNKNOWN = (
    int(GapReason.SAMPLER_LATE),
    int(GapReason.AGENT_DOWN),
    int(GapReason.LOG_DAMAGED),
    int(GapReason.UNEXPLAINED),
)


def gap(first: int, last: int, reason: int) -> SeqGap:
    return SeqGap(first_seq=first, last_seq=last, reason=reason)


def test_a_minute_closes_when_the_grace_after_its_last_tick_is_over() -> None:
    minutes = {10: 600, 11: 1200}
    assert decide.closed_by_ticks(minutes, 620, 20) == []
    assert decide.closed_by_ticks(minutes, 621, 20) == [10]
    assert decide.closed_by_ticks(minutes, 5000, 20) == [10, 11]


def test_missing_intervals() -> None:
    assert decide.missing(1, 3, np.array([1, 2, 3], np.int64)) == []
    assert decide.missing(1, 9, np.array([2, 3, 6, 12], np.int64)) == [(1, 1), (4, 5), (7, 9)]
    assert decide.missing(5, 4, np.array([], np.int64)) == []
    assert decide.missing(5, 6, np.array([], np.int64)) == [(5, 6)]
    assert decide.missing(5, 8, np.array([1, 2, 6], np.int64)) == [(5, 5), (7, 8)]


def test_declared_losses_explain_and_the_rest_is_unexplained() -> None:
    explained = decide.explain([(10, 20)], [gap(12, 13, LATE), gap(15, 99, DOWN)], -1)
    assert explained == [
        gap(10, 11, UNKNOWN),
        gap(12, 13, LATE),
        gap(14, 14, UNKNOWN),
        gap(15, 20, DOWN),
    ]


def test_where_two_declarations_overlap_the_earlier_holds() -> None:
    assert decide.explain([(1, 9)], [gap(4, 5, LATE), gap(1, 9, DOWN)], -1) == [
        gap(1, 3, DOWN),
        gap(4, 5, LATE),
        gap(6, 9, DOWN),
    ]


def test_a_damaged_log_explains_what_nobody_else_does() -> None:
    assert decide.explain([(1, 6)], [gap(2, 2, LATE)], 4) == [
        gap(1, 1, DAMAGED),
        gap(2, 2, LATE),
        gap(3, 4, DAMAGED),
        gap(5, 6, UNKNOWN),
    ]


def test_names_follow_from_contents() -> None:
    key = VmKey("vm_1", 1)
    one = decide.window_id("hst", key, 5)
    assert one == decide.window_id("hst", key, 5)
    assert len({one, decide.window_id("hst", key, 6), decide.window_id("hst2", key, 5)}) == 3
    assert decide.batch_id("hst", ["a", "b"]) == decide.batch_id("hst", ["b", "a"])
    assert decide.batch_id("hst", ["a", "b"]) != decide.batch_id("hst", ["a"])
