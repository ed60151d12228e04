"""What every benchmark shares: pairs, medians, the spread, the verdict, the record."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ironworks.runtime.process import run

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one benchmark measured.

    Attributes:
        ours: Median of ours, in `unit`.
        reference: Median of the reference; None where the goal is absolute.
        passed: Whether every part of the goal is met.
        details: Further figures, with units in their names.
    """

    ours: float
    reference: float | None
    passed: bool
    details: Mapping[str, object] = field(default_factory=dict[str, object])


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One benchmark: `measure(quick)` does the work."""

    name: str
    unit: str
    goal: str
    measure: Callable[[bool], Awaitable[Outcome]]


def median(values: list[float]) -> float:
    """The median; machines are noisy, means are moved by one bad run."""
    return statistics.median(values)


def spread(values: list[float]) -> dict[str, float]:
    """Least, greatest and all values, so that a reader can judge the noise."""
    return {"min": round(min(values), 3), "max": round(max(values), 3), "runs": len(values)}


async def revision() -> str:
    """The commit that is measured; with `+` when the tree has changes."""
    here = Path(__file__).parent
    head = await run(["git", "rev-parse", "--short=12", "HEAD"], timeout_seconds=10, cwd=here)
    changes = await run(["git", "status", "--porcelain", "-uno"], timeout_seconds=10, cwd=here)
    return head.stdout.decode().strip() + ("+" if changes.stdout.strip() else "")


def record(
    benchmark: Benchmark, outcome: Outcome, *, commit: str, quick: bool
) -> dict[str, object]:
    """The JSON object of a result."""
    ratio = None if not outcome.reference else round(outcome.ours / outcome.reference, 4)
    return {
        "name": benchmark.name,
        "ours": round(outcome.ours, 3),
        "reference": None if outcome.reference is None else round(outcome.reference, 3),
        "ratio": ratio,
        "unit": benchmark.unit,
        "goal": benchmark.goal,
        "pass": outcome.passed,
        "quick": quick,
        "revision": commit,
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        **outcome.details,
    }


def keep(result: Mapping[str, object]) -> Path:
    """Write a result below `benchmarks/results/`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{result['name']}-{str(result['revision']).rstrip('+')}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path
