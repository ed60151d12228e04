from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ironworks.aggregatord import decide
from ironworks.aggregatord.app import default_plan
from ironworks.aggregatord.types import DAY_NS, HOUR_NS, Interval, PriceVersion
from ironworks.gen.ironworks.billaged.v1.samples_pb import GapReason


def version(number: int, effective_at_ns: int, plan: str = "pln_a") -> PriceVersion:
    return dataclasses.replace(
        default_plan()[0],
        price_version_id=f"{plan}/{number}",
        price_plan_id=plan,
        version=number,
        effective_at_ns=effective_at_ns,
    )


def names(pieces: list[tuple[Interval, PriceVersion]]) -> list[tuple[int, int, str]]:
    return [(one.from_ns, one.to_ns, which.price_version_id) for one, which in pieces]


def test_prices_change_where_versions_and_assignments_say() -> None:
    versions = {
        "pln_a": [version(1, 0), version(2, 20), version(3, 90)],
        "pln_b": [version(1, 0, "pln_b"), version(2, 60, "pln_b")],
    }
    assignments = [(0, "pln_a"), (50, "pln_b")]
    assert names(decide.price_timeline(Interval(from_ns=10, to_ns=80), assignments, versions)) == [
        (10, 20, "pln_a/1"),
        (20, 50, "pln_a/2"),
        (50, 60, "pln_b/1"),
        (60, 80, "pln_b/2"),
    ]
    unchanged = Interval(from_ns=20, to_ns=50)
    assert names(decide.price_timeline(unchanged, assignments, versions)) == [(20, 50, "pln_a/2")]


def test_before_the_first_version_nothing_is_priced() -> None:
    versions = {"pln_a": [version(1, 30)]}
    whole = Interval(from_ns=10, to_ns=80)
    assert names(decide.price_timeline(whole, [(0, "pln_a")], versions)) == [(30, 80, "pln_a/1")]
    assert decide.version_at(10, [(0, "pln_a")], versions) is None


def test_a_cut_that_changes_nothing_is_none() -> None:
    versions = {"pln_a": [version(1, 0)], "pln_b": [version(1, 0, "pln_b")]}
    assignments = [(0, "pln_a"), (40, "pln_a")]
    whole = Interval(from_ns=10, to_ns=80)
    assert names(decide.price_timeline(whole, assignments, versions)) == [(10, 80, "pln_a/1")]


def test_days_are_utc() -> None:
    assert decide.day_of(3 * DAY_NS + 5) == 3 * DAY_NS


def test_every_missing_sample_has_one_reason() -> None:
    late, down, unknown = GapReason.SAMPLER_LATE, GapReason.AGENT_DOWN, GapReason.UNEXPLAINED
    quarantined = GapReason.QUARANTINED
    holes = [(0, 9), (20, 24), (30, 30)]
    first = [decide.Missing(3, 21, quarantined)]
    second = [decide.Missing(2, 4, late), decide.Missing(4, 7, down), decide.Missing(23, 23, down)]
    assert decide.explained(holes, [first, second]) == [
        (0, 1, unknown),
        (2, 2, late),
        (3, 9, quarantined),
        (20, 21, quarantined),
        (22, 22, unknown),
        (23, 23, down),
        (24, 24, unknown),
        (30, 30, unknown),
    ]


def test_what_is_declared_of_samples_that_are_there_says_nothing() -> None:
    assert decide.explained([], [[decide.Missing(0, 9, GapReason.AGENT_DOWN)]]) == []
    assert decide.left_of([decide.Missing(0, 9, 1)], [decide.Missing(3, 4, 0)]) == [
        (0, 2, 1),
        (5, 9, 1),
    ]


SPANS = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 12), st.integers(1, 8)).map(
        lambda one: decide.Missing(one[0], one[0] + one[1], one[2])
    ),
    max_size=8,
)


@given(SPANS, SPANS, SPANS)
def test_reasons_cover_the_holes_exactly(
    spans: list[decide.Missing], first: list[decide.Missing], second: list[decide.Missing]
) -> None:
    holes = [(one.first_seq, one.last_seq) for one in decide.apart(spans)]
    missing = [seq for low, high in holes for seq in range(low, high + 1)]
    found = decide.explained(holes, [first, second])
    told = [(seq, one.reason) for one in found for seq in range(one[0], one[1] + 1)]
    assert [seq for seq, _ in told] == missing
    for seq, reason in told:
        some = next(
            (some for some in (first, second) if any(one[0] <= seq <= one[1] for one in some)), None
        )
        reasons = {one.reason for one in some or [] if one[0] <= seq <= one[1]}
        assert reason in (reasons or {GapReason.UNEXPLAINED})


def test_a_day_is_settled_when_its_grace_period_has_ended() -> None:
    end_ns = 2 * DAY_NS + 48 * HOUR_NS
    assert not decide.is_settled(2 * DAY_NS - 1, end_ns - 1, 48)
    assert decide.is_settled(DAY_NS, end_ns, 48)
    assert not decide.is_settled(2 * DAY_NS, end_ns, 48)


@pytest.mark.parametrize(
    ("values", "count", "expected"),
    [
        ([], 0, 0),
        ([], 100, 0),
        ([7], 1, 7),
        (list(range(1, 101)), 100, 95),
        ([9] * 5, 100, 0),
        ([9] * 6, 100, 9),
        ([5, 1, 3], 20, 3),
        ([5, 1], 21, 1),
    ],
)
def test_of_a_hundred_rates_five_are_free(values: list[int], count: int, expected: int) -> None:
    assert decide.percentile_95(values, count) == expected


@given(st.lists(st.integers(0, 10**12), max_size=40), st.integers(0, 60))
def test_the_95th_percentile_is_numpys(values: list[int], idle: int) -> None:
    count = len(values) + idle
    every = [*values, *[0] * idle] or [0]
    expected = np.percentile(every, 95, method="inverted_cdf")
    assert decide.percentile_95(values, count) == expected
