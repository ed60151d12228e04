"""Pure decisions on prices and completeness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

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


def explain_missing(missing: int, quarantined: int, declared: Mapping[int, int]) -> dict[int, int]:
    """Missing samples by reason, adding up to `missing` exactly.

    What was declared missing and came late is taken off again, the least telling reasons first.
    """
    reasons = {reason: count for reason, count in declared.items() if count > 0}
    if quarantined:
        key = int(GapReason.QUARANTINED)
        reasons[key] = reasons.get(key, 0) + quarantined
    surplus = sum(reasons.values()) - missing
    for reason in sorted(reasons, reverse=True):
        taken = min(max(surplus, 0), reasons[reason])
        reasons[reason] -= taken
        surplus -= taken
    if surplus < 0:
        key = int(GapReason.UNEXPLAINED)
        reasons[key] = reasons.get(key, 0) - surplus
    return {reason: count for reason, count in reasons.items() if count}
