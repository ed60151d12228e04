"""Points in time on a command line."""

from __future__ import annotations

import pytest

from ironworks.cli.times import interval, month_start, parse_time
from ironworks.model.errors import InvalidRequest

NOW_NS = 1_795_433_424_000_000_000  # 2026-11-23T11:30:24Z


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("now", 1_795_433_424),
        ("90m", 1_795_433_424 - 5400),
        ("7d", 1_795_433_424 - 7 * 86400),
        ("2026-11-23", 1_795_392_000),
        ("2026-11-23T11:30:24", 1_795_433_424),
        ("2026-11-23T11:30:24Z", 1_795_433_424),
        ("2026-11-23T12:30:24+01:00", 1_795_433_424),
        ("1970-01-01", 0),
    ],
)
def test_what_people_write(text: str, seconds: int) -> None:
    assert parse_time(text, NOW_NS) == seconds * 1_000_000_000


def test_fractions_are_exact() -> None:
    assert parse_time("2026-11-23T11:30:24.000001Z", NOW_NS) == NOW_NS + 1000


@pytest.mark.parametrize("text", ["", "tomorrow", "7w", "-1h", "2026-13-01", "9999999d"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a time"):
        parse_time(text, NOW_NS)


@pytest.mark.parametrize("text", ["3000-01-01", "0001-01-01", "1969-12-31", "999999d"])
def test_a_time_that_no_number_on_the_wire_can_say(text: str) -> None:
    with pytest.raises(InvalidRequest, match="out of range"):
        parse_time(text, NOW_NS)


def test_the_month_begins_at_its_first_instant() -> None:
    assert month_start(NOW_NS) == parse_time("2026-11-01", NOW_NS)
    assert interval("", "now", NOW_NS) == (month_start(NOW_NS), NOW_NS)


def test_an_interval_has_a_length() -> None:
    with pytest.raises(InvalidRequest, match="before it begins"):
        interval("2026-11-24", "2026-11-23", NOW_NS)
    with pytest.raises(InvalidRequest, match="before it begins"):
        interval("now", "now", NOW_NS)
