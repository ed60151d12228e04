"""How people write points in time on a command line."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from ironworks.model.errors import InvalidRequest
from ironworks.model.units import NS_PER_SECOND

_RELATIVE = re.compile(r"(?P<count>[0-9]{1,6})(?P<unit>[smhd])")
_END_NS = 292 * 365 * 86400 * NS_PER_SECOND
"""As nanoseconds in 64 bits, with room for a step beyond."""
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_time(text: str, now_ns: int) -> int:
    """UTC nanoseconds of `now`, `90m` (before now), `2026-11-23` or `2026-11-23T11:30:00Z`.

    A time without a zone is UTC.

    Raises:
        InvalidRequest: the text is none of these.
    """
    if text == "now":
        return now_ns
    if match := _RELATIVE.fullmatch(text):
        return _kept(text, now_ns - int(match["count"]) * _SECONDS[match["unit"]] * NS_PER_SECOND)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(
            f"{text!r} is not a time.",
            hint="Write it like 2026-11-23, 2026-11-23T11:30:00Z, 90m, 24h, 7d or now.",
        ) from None
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    since = at - datetime(1970, 1, 1, tzinfo=UTC)
    seconds = since.days * 86400 + since.seconds
    return _kept(text, seconds * NS_PER_SECOND + since.microseconds * 1000)


def _kept(text: str, at_ns: int) -> int:
    if 0 <= at_ns < _END_NS:
        return at_ns
    raise InvalidRequest(f"{text!r} is out of range: times go from 1970 to 2261.")


def month_start(now_ns: int) -> int:
    """First instant of the UTC month of `now_ns`."""
    now = datetime.fromtimestamp(now_ns // NS_PER_SECOND, UTC)
    begin = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return int(begin.timestamp()) * NS_PER_SECOND


def interval(begin: str, end: str, now_ns: int) -> tuple[int, int]:
    """`[from, to)` in UTC nanoseconds; without a begin, from the first of the month.

    Raises:
        InvalidRequest: it is empty or reversed.
    """
    from_ns = parse_time(begin, now_ns) if begin else month_start(now_ns)
    to_ns = parse_time(end, now_ns)
    if from_ns >= to_ns:
        raise InvalidRequest(f"The interval ends at {end!r}, before it begins.")
    return from_ns, to_ns
