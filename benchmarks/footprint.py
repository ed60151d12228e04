"""footprint: memory of the whole idle platform, and of each VM record that metald keeps.

PSS (proportional set size, `smaps_rollup`) shares what processes share; summed over supervisor, six
services and Envoy it is what the platform really takes from the machine. There is no reference: the
goal is absolute.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from benchmarks.frame import Benchmark, Outcome, median, spread
from ironworks.machine.platform import PlatformFile
from ironworks.machine.temporary import temporary_platform

GOAL_MIB = 800
GOAL_KIB_PER_VM = 256
SETTLE_SECONDS = 10
KIB_PER_MIB = 1024


def pss_kib(pid: int) -> int:
    """PSS of a process, in KiB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def tree(pid: int) -> list[int]:
    """The process and all below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += tree(int(child))
    return found


def measure_once(platform: PlatformFile) -> dict[str, float]:
    """PSS in MiB of each part."""
    parts = {"supervisor": pss_kib(platform.pid) / KIB_PER_MIB}
    for name, pid in platform.pids.items():
        parts[name] = sum(pss_kib(one) for one in tree(pid)) / KIB_PER_MIB
    return parts


async def measure(quick: bool) -> Outcome:  # noqa: FBT001 - the frame's signature
    """Start a platform, let it settle, sum."""
    samples: list[dict[str, float]] = []
    async with temporary_platform("bench") as platform:
        for _ in range(2 if quick else 6):
            await asyncio.sleep(SETTLE_SECONDS)
            samples.append(measure_once(platform))
    totals = [sum(sample.values()) for sample in samples]
    total = median(totals)
    return Outcome(
        ours=total,
        reference=None,
        passed=total <= GOAL_MIB,
        details={
            "spread": spread(totals),
            "parts_mib": {name: round(value, 1) for name, value in samples[-1].items()},
        },
    )


BENCHMARK = Benchmark(
    name="footprint",
    unit="MiB PSS",
    goal=f"whole idle platform <= {GOAL_MIB} MiB; <= {GOAL_KIB_PER_VM} KiB more per VM record",
    measure=measure,
)
