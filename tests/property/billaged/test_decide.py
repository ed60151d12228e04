from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ironworks.billaged import decide
from ironworks.billaged.types import SeqGap

numbers = st.integers(0, 40)
declared = st.lists(
    st.tuples(numbers, numbers, st.integers(1, 7)).map(
        lambda one: SeqGap(first_seq=min(one[:2]), last_seq=max(one[:2]), reason=one[2])
    ),
    max_size=6,
)


@given(st.sets(numbers), numbers, numbers)
def test_present_and_missing_are_the_whole(present: set[int], first: int, last: int) -> None:
    gaps = decide.missing(first, last, np.array(sorted(present), np.int64))
    absent = [seq for low, high in gaps for seq in range(low, high + 1)]
    assert absent == [seq for seq in range(first, last + 1) if seq not in present]


@given(st.sets(numbers), declared, numbers)
def test_every_missing_sample_has_the_reason_that_was_declared_first(
    present: set[int], losses: list[SeqGap], damaged_until: int
) -> None:
    gaps = decide.missing(0, 40, np.array(sorted(present), np.int64))
    explained = decide.explain(gaps, losses, damaged_until)
    reasons = {
        seq: gap.reason for gap in explained for seq in range(gap.first_seq, gap.last_seq + 1)
    }
    assert sum(gap.last_seq - gap.first_seq + 1 for gap in explained) == len(reasons)
    assert set(reasons) == set(range(41)) - present
    for seq, reason in reasons.items():
        named = [gap.reason for gap in losses if gap.first_seq <= seq <= gap.last_seq]
        unnamed = 7 if seq <= damaged_until else 9
        assert reason == (named[0] if named else unnamed)
