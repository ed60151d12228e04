"""registry: what assetmanagerd's registry costs with 10,000 assets, through its use cases.

Lists are pages of 100, for several filters. A pass of garbage collection looks at all assets and
deletes a tenth of them, bytes included. Leases are acquired and released by 64 at once, durably,
each with an idempotency key; the rate is per second of CPU of this process, which is what one core
does, and the rate by the clock is beside it. There is no reference: the goals are absolute.
"""

from __future__ import annotations

import asyncio
import resource
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection

from benchmarks.frame import Benchmark, Outcome, median, spread
from ironworks.assetmanagerd import store
from ironworks.assetmanagerd.types import (
    Asset,
    AssetFilter,
    AssetFormat,
    AssetKind,
    AssetState,
)
from ironworks.model.ids import new_id
from ironworks.model.pages import PageSpec
from ironworks.model.units import NS_PER_DAY, NS_PER_MS, NS_PER_SECOND
from ironworks.runtime.clock import SystemClock, SystemEntropy
from ironworks.testkit.assets import ACME, METALD, AssetWorld, asset_world

ASSETS = 10_000
GARBAGE = 1_000
AT_ONCE = 64
GOAL_LIST_MS = 20
GOAL_GC_SECONDS = 2
GOAL_PAIRS = 1_000
_CLOCK, _ENTROPY = SystemClock(), SystemEntropy()
FILTERS: Mapping[str, AssetFilter] = {
    "all": AssetFilter(),
    "kind": AssetFilter(kind=AssetKind.ROOTFS),
    "rare_kind": AssetFilter(kind=AssetKind.KERNEL),
    "state": AssetFilter(states=(AssetState.AVAILABLE,)),
    "rare_state": AssetFilter(states=(AssetState.ARCHIVED,)),
    "label": AssetFilter(labels={"app": "web"}),
    "rare_label": AssetFilter(labels={"batch": "3"}),
    "no_such_label": AssetFilter(labels={"batch": "none"}),
    "source": AssetFilter(source_digest="sha256:77"),
}


def asset(number: int, now_ns: int) -> Asset:
    """One of many: some of another kind, state or age."""
    is_old = number < GARBAGE
    at_ns = now_ns - (8 * NS_PER_DAY if is_old else 0)
    return Asset(
        asset_id=new_id("ast", _CLOCK, _ENTROPY),
        tenant_id=ACME.tenant_id if number % 10 else "",
        kind=AssetKind.KERNEL if number % 2000 == 1 else AssetKind.ROOTFS,
        format=AssetFormat.SQUASHFS,
        state=AssetState.ARCHIVED if number % 1000 == 0 and not is_old else AssetState.AVAILABLE,
        size_bytes=1,
        sha256=f"{number:064x}",
        media_type="application/vnd.ironworks.rootfs.squashfs",
        architecture="amd64",
        source_digest=f"sha256:{number}",
        labels={"app": "web", "batch": str(number // 500)},
        created_at_ns=at_ns,
        updated_at_ns=at_ns,
    )


async def fill(world: AssetWorld, count: int) -> list[str]:
    """Register assets, with their bytes, past validation; answers those that are not garbage."""
    assets = [asset(number, world.clock.now_ns()) for number in range(count)]

    def insert(connection: Connection) -> None:
        for one in assets:
            store.insert_asset(connection, one, "bench")

    await world.database.write(insert)
    for one in assets[:GARBAGE]:
        path = world.kept_file(one.sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    usable = (AssetState.AVAILABLE, AssetState.IN_USE)
    return [one.asset_id for one in assets[GARBAGE:] if one.state in usable]


async def lists(world: AssetWorld, runs: int) -> dict[str, list[float]]:
    """Milliseconds of a page, by filter."""
    taken: dict[str, list[float]] = {}
    for name, query in FILTERS.items():
        for _ in range(runs):
            began_ns = _CLOCK.monotonic_ns()
            await world.registry.page(ACME, query, PageSpec(size=100))
            taken.setdefault(name, []).append((_CLOCK.monotonic_ns() - began_ns) / NS_PER_MS)
    return taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Acquire and Release, together, a second."""

    of_cpu: float
    by_clock: float


def cpu_seconds() -> float:
    """CPU time of this process, kernel included."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def leases(world: AssetWorld, asset_ids: list[str], pairs: int) -> Rate:
    """How many pairs of Acquire and Release there are a second."""

    async def client(number: int) -> None:
        for turn in range(pairs // AT_ONCE):
            wanted = asset_ids[(number * 7919 + turn) % len(asset_ids)]
            lease, _ = await world.leasing.acquire(
                METALD,
                [wanted],
                holder="vm",
                purpose="bench",
                ttl_seconds=60,
                key=f"{number}-{turn}-{new_id('evt', _CLOCK, _ENTROPY)}",
            )
            await world.leasing.release(METALD, lease.lease_id)

    began_ns, used = _CLOCK.monotonic_ns(), cpu_seconds()
    await asyncio.gather(*map(client, range(AT_ONCE)))
    seconds = (_CLOCK.monotonic_ns() - began_ns) / NS_PER_SECOND
    done = pairs // AT_ONCE * AT_ONCE
    return Rate(of_cpu=done / (cpu_seconds() - used), by_clock=done / seconds)


async def collection(world: AssetWorld) -> float:
    """Seconds of a pass over all assets that deletes the old ones and their bytes."""
    began_ns = _CLOCK.monotonic_ns()
    done = await world.registry.collect(dry_run=False)
    seconds = (_CLOCK.monotonic_ns() - began_ns) / NS_PER_SECOND
    if done.collected_count < GARBAGE * 0.9:
        raise AssertionError(f"only {done.collected_count} assets were collected")
    return seconds


async def measure(quick: bool) -> Outcome:  # noqa: FBT001 - the frame's signature
    """Fill a registry, and use it."""
    rounds = 1 if quick else 3
    pages: dict[str, list[float]] = {}
    rates: list[Rate] = []
    passes: list[float] = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="bench-registry-") as directory:
            async with asset_world(Path(directory)) as world:
                asset_ids = await fill(world, ASSETS)
                for name, taken in (await lists(world, 20)).items():
                    pages.setdefault(name, []).extend(taken)
                await leases(world, asset_ids, 10 * AT_ONCE)
                rates.append(await leases(world, asset_ids, 50 * AT_ONCE))
                passes.append(await collection(world))
    slowest = max(median(taken) for taken in pages.values())
    of_cpu = median([rate.of_cpu for rate in rates])
    return Outcome(
        ours=of_cpu,
        reference=None,
        passed=of_cpu >= GOAL_PAIRS and slowest < GOAL_LIST_MS and median(passes) < GOAL_GC_SECONDS,
        details={
            "leases_by_the_clock": round(median([rate.by_clock for rate in rates])),
            "leases_spread": spread([rate.of_cpu for rate in rates]),
            "slowest_list_ms": round(slowest, 2),
            "list_ms": {name: round(median(taken), 2) for name, taken in pages.items()},
            "gc_seconds": round(median(passes), 3),
            "gc_spread": spread(passes),
            "assets": ASSETS,
            "assets_collected": GARBAGE,
        },
    )


BENCHMARK = Benchmark(
    name="registry",
    unit="Acquire+Release/s of CPU",
    goal=f">= {GOAL_PAIRS}; a page < {GOAL_LIST_MS} ms; a pass of GC < {GOAL_GC_SECONDS} s",
    measure=measure,
)
