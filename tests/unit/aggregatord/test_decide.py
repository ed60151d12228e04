from __future__ import annotations

import dataclasses

import pytest

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


def test_reasons_add_up_to_what_is_missing() -> None:
    late, down, unknown, quarantined = (
        int(GapReason.SAMPLER_LATE),
        int(GapReason.AGENT_DOWN),
        int(GapReason.UNEXPLAINED),
        int(GapReason.QUARANTINED),
    )
    assert decide.explain_missing(5, 0, {late: 2, down: 3}) == {late: 2, down: 3}
    assert decide.explain_missing(6, 0, {late: 2}) == {late: 2, unknown: 4}
    assert decide.explain_missing(7, 4, {late: 2}) == {late: 2, quarantined: 4, unknown: 1}
    assert decide.explain_missing(1, 0, {late: 1, unknown: 3}) == {late: 1}
    assert decide.explain_missing(0, 0, {late: 2}) == {}


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
