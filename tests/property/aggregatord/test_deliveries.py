"""Any stream of windows, however it is delivered, ends in the same rows; and all sums agree.

A stream is cut into windows once and delivered in order, one window a batch. Then it is shuffled,
repeated, split over batches, delayed and sent again with restarts in between: raw rows, rollups,
gaps and the windows' own growth must be the same, row by row. Σ deltas of raw samples = Σ windows =
Σ five-minute rates = Σ hours = Σ days, per VM and meter, exactly.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ironworks.aggregatord.types import CUMULATIVE, DAY_NS, READINGS, Interval, UsageFilter
from ironworks.gen.ironworks.aggregatord.v1 import batch_pb
from ironworks.gen.ironworks.billaged.v1.samples_pb import GapReason
from ironworks.model.units import MIB, NS_PER_SECOND
from ironworks.testkit.aggregator import Aggregator, aggregator, conserved
from ironworks.testkit.metering import EPOCH_AT_NS, TICK_NS, window

MIDNIGHT_NS = EPOCH_AT_NS // DAY_NS * DAY_NS
MINUTE_TICKS = 600
BATCH_WINDOWS = 250
MINE = UsageFilter(tenant_id="tnt_a")


_T = TypeVar("_T")


class Chance:
    """Repeatable chance."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def number(self, low: int, high: int) -> int:
        """From `low` to `high`, both included."""
        return int(self._random.integers(low, high + 1))

    def happens(self, share: float) -> bool:
        """So often."""
        return bool(self._random.random() < share)

    def some(self, of: Sequence[_T], count: int) -> list[_T]:
        """Some different ones, in order."""
        return [of[index] for index in sorted(self._random.permutation(len(of))[:count])]

    def one(self, of: Sequence[_T]) -> _T:
        """Any one."""
        return of[self.number(0, len(of) - 1)]


class Vm:
    """A VM whose every minute is a window of a few samples, with all that may lack in it."""

    def __init__(self, vm_id: str, chance: Chance) -> None:
        self.vm_id = vm_id
        self._chance = chance
        self._seq = 0
        self._covered = -1
        self._last = dict.fromkeys(CUMULATIVE, 0)
        self.mask = chance.one([0, 0, 0b001100])
        """Some VMs have no disk."""

    def minute(self, number: int) -> batch_pb.Window:
        """The window of a minute."""
        chance = self._chance
        first = number * MINUTE_TICKS
        seq = chance.some(range(first, first + MINUTE_TICKS), chance.number(1, 4))
        values: dict[str, list[int]] = {name: [] for name in READINGS}
        masks: list[int] = []
        for _ in seq:
            for name in CUMULATIVE:
                self._last[name] += chance.number(0, 1000)
                values[name].append(self._last[name])
            values["memory_bytes"].append(chance.number(0, 200) * MIB)
            masks.append(
                self.mask | (1 << chance.number(0, len(READINGS) - 1) if chance.happens(0.2) else 0)
            )
        gaps: list[tuple[int, int, GapReason]] = []
        expected = self._covered + 1
        for one in seq:
            if one > expected:
                gaps.append((expected, one - 1, chance.one(list(GapReason)[1:6])))
            expected = one + 1
        self._covered = seq[-1]
        return window(
            seq,
            vm_id=self.vm_id,
            start_at_ns=MIDNIGHT_NS,
            values=values,
            absent_mask=masks,
            gaps=gaps,
            offset_us=[chance.number(0, 90_000) for _ in seq],
        )


def stream(seed: int, minutes: Sequence[int], vms: int = 2) -> list[batch_pb.Window]:
    """All windows of some minutes, in the order of time."""
    chance = Chance(seed)
    made = [Vm(f"vm_{number}", chance) for number in range(vms)]
    return [vm.minute(minute) for minute in minutes for vm in made]


async def rows_of(made: Aggregator) -> list[Any]:
    """Every row that was stored or computed."""
    await made.rollup.catch_up()
    queries = [
        "SELECT * FROM raw_samples FINAL ORDER BY vm_id, boot_epoch, seq",
        "SELECT * EXCEPT version FROM windows FINAL ORDER BY vm_id, boot_epoch, first_seq",
        "SELECT * FROM gaps FINAL ORDER BY vm_id, boot_epoch, first_seq",
        *[
            f"SELECT * EXCEPT version FROM {table} FINAL ORDER BY ALL"  # noqa: S608
            for table in ("five_minute_rates", "hourly_usage", "daily_usage", "billing_records")
        ],
    ]
    everything = Interval(from_ns=MIDNIGHT_NS, to_ns=MIDNIGHT_NS + DAY_NS)
    return [
        *[await made.engine.rows(query) for query in queries],
        await made.usage.completeness(MINE, everything),
        await made.usage.gaps(MINE, everything, 10_000, ("", 0, 0)),
    ]


async def delivered(
    windows: Sequence[batch_pb.Window], batches: Sequence[Sequence[int]], restarts: int = 0
) -> list[Any]:
    """The rows after some batches of windows, by position, and restarts in between."""
    with tempfile.TemporaryDirectory() as directory:
        done = 0
        part = len(batches) // (restarts + 1) + 1
        for life in range(restarts + 1):
            async with aggregator(Path(directory)) as made:
                await made.clock.advance((MIDNIGHT_NS + DAY_NS - EPOCH_AT_NS) / NS_PER_SECOND)
                for batch in batches[done : done + part]:
                    chosen = [windows[index] for index in batch]
                    outcome = await made.submit(chosen, f"bat_{done}")
                    assert not outcome.refused, outcome.refused
                    done += 1
                    if done % 3 == 0:
                        await made.rollup.catch_up()
                if life == restarts:
                    await conserved(made)
                    return await rows_of(made)
    raise AssertionError


@settings(max_examples=3)
@given(st.integers(0, 2**32), st.data())
def test_however_windows_are_delivered_the_rows_are_the_same(
    seed: int, data: st.DataObject
) -> None:
    minutes = sorted(data.draw(st.sets(st.integers(0, 130), min_size=2, max_size=6)))
    windows = stream(seed, minutes)
    expected = asyncio.run(delivered(windows, [[index] for index in range(len(windows))]))
    order = data.draw(st.permutations(range(len(windows))))
    again = data.draw(st.lists(st.sampled_from(order), max_size=4, unique=True))
    batches: list[list[int]] = []
    rest = list(order)
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        batches.append(rest[:size])
        rest = rest[size:]
    batches.append(again)
    restarts = data.draw(st.integers(0, 1))
    assert asyncio.run(delivered(windows, batches, restarts)) == expected


assert TICK_NS * MINUTE_TICKS == 60 * NS_PER_SECOND
