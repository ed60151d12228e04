"""Pure decisions on prices and completeness."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from ironworks.aggregatord.types import DAY_NS, HOUR_NS, Interval, PriceVersion
from ironworks.gen.ironworks.billaged.v1.samples_pb import GapReason


def version_at(
    at_ns: int,
    assignments: Sequence[tuple[int, str]],
    versions: Mapping[str, Sequence[PriceVersion]],
) -> PriceVersion | None:
    """The prices in force at a time; None if the plan has none yet.

    Args:
        at_ns: The time.
        assignments: From when which plan, oldest first, the first from 0.
        versions: The versions of each plan.
    """
    plan = [plan_id for from_ns, plan_id in assignments if from_ns <= at_ns][-1]
    begun = [one for one in versions.get(plan, ()) if one.effective_at_ns <= at_ns]
    return max(begun, key=lambda one: (one.effective_at_ns, one.version)) if begun else None


def price_timeline(
    interval: Interval,
    assignments: Sequence[tuple[int, str]],
    versions: Mapping[str, Sequence[PriceVersion]],
) -> list[tuple[Interval, PriceVersion]]:
    """The interval cut where prices change; pieces without prices are left out."""
    starts = {from_ns for from_ns, _ in assignments}
    starts |= {one.effective_at_ns for plan in versions.values() for one in plan}
    cuts = sorted(at for at in starts if interval.from_ns < at < interval.to_ns)
    edges = [interval.from_ns, *cuts, interval.to_ns]
    pieces: list[tuple[Interval, PriceVersion]] = []
    for from_ns, to_ns in pairwise(edges):
        version = version_at(from_ns, assignments, versions)
        if version is None:
            continue
        if pieces and pieces[-1][1] is version:
            pieces[-1] = (Interval(from_ns=pieces[-1][0].from_ns, to_ns=to_ns), version)
        else:
            pieces.append((Interval(from_ns=from_ns, to_ns=to_ns), version))
    return pieces


def day_of(at_ns: int) -> int:
    """Beginning of the UTC day, nanoseconds."""
    return at_ns // DAY_NS * DAY_NS


def is_settled(at_ns: int, now_ns: int, grace_hours: int) -> bool:
    """Whether the UTC day of a time is settled: what comes for it now is an adjustment."""
    return day_of(at_ns) + DAY_NS + grace_hours * HOUR_NS <= now_ns


def percentile_95(values: Sequence[int], count: int) -> int:
    """Of `count` values the one below which 95% lie; those that are not given are 0.

    The smallest value that at least 95% do not exceed (nearest rank), as billing by bursts has it.
    """
    if not count:
        return 0
    rank = -(-95 * count // 100)
    idle = count - len(values)
    return 0 if rank <= idle else sorted(values)[rank - idle - 1]


class Missing(NamedTuple):
    """Samples that are missing, and why: a `GapReason`."""

    first_seq: int
    last_seq: int
    reason: int


def apart(spans: Iterable[Missing]) -> list[Missing]:
    """The same in order; where two overlap, the one that begins earlier holds."""
    found: list[Missing] = []
    for one in sorted(spans):
        first_seq = max(one.first_seq, found[-1].last_seq + 1 if found else one.first_seq)
        if first_seq <= one.last_seq:
            found.append(one._replace(first_seq=first_seq))
    return found


def explained(
    holes: Iterable[tuple[int, int]], declared: Sequence[Sequence[Missing]]
) -> list[Missing]:
    """Every missing sample with exactly one reason, in order.

    Args:
        holes: Intervals that are missing, ascending, apart from each other.
        declared: What is said to be missing; what stands in an earlier list holds. Of samples that
            are there it says nothing: they came late.
    """
    left = [Missing(first, last, int(GapReason.UNEXPLAINED)) for first, last in holes]
    found: list[Missing] = []
    for some in declared:
        told, left = _told(left, apart(some))
        found += told
    return sorted(found + left)


def left_of(holes: Sequence[Missing], taken: Sequence[Missing]) -> list[Missing]:
    """What of these holes is not in any of the spans."""
    return _told(holes, apart(taken))[1]


def _told(
    holes: Sequence[Missing], declared: Sequence[Missing]
) -> tuple[list[Missing], list[Missing]]:
    """What of the holes was declared, and what is left of them; both ascending, apart."""
    told: list[Missing] = []
    left: list[Missing] = []
    begin = 0
    for hole in holes:
        seq = hole.first_seq
        while begin < len(declared) and declared[begin].last_seq < seq:
            begin += 1
        for one in declared[begin:]:
            if one.first_seq > hole.last_seq:
                break
            first_seq, last_seq = max(one.first_seq, seq), min(one.last_seq, hole.last_seq)
            if seq < first_seq:
                left.append(hole._replace(first_seq=seq, last_seq=first_seq - 1))
            told.append(Missing(first_seq, last_seq, one.reason))
            seq = last_seq + 1
        if seq <= hole.last_seq:
            left.append(hole._replace(first_seq=seq))
    return told, left
