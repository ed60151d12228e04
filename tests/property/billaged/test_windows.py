"""However ticks come (repeated, resent, rows shuffled, through crashes), the batches are the same.

Time is compressed: fifteen ticks make a minute, and three are the grace.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TypeAlias

from hypothesis import given
from hypothesis import strategies as st

from ironworks.billaged import decide, sealing
from ironworks.billaged.state import MeterState
from ironworks.gen.ironworks.aggregatord.v1 import batch_pb
from ironworks.gen.ironworks.billaged.v1 import samples_pb
from ironworks.gen.ironworks.billaged.v1.samples_pb import GapReason, TickLoss
from ironworks.model.units import NS_PER_SECOND
from ironworks.testkit.metering import (
    EPOCH_AT_NS,
    attachment,
    content_of,
    hello,
    numbers_of,
    tick,
)

TICK_APART_NS = 4 * NS_PER_SECOND
GRACE = 3


Record: TypeAlias = tuple[int, samples_pb.Tick] | str | None


@dataclass(frozen=True)
class Host:
    """What happens on a host: ticks missed, and when each VM begins and ends."""

    ticks: int
    missed: frozenset[int]
    lives: tuple[tuple[int, int], ...]

    def stream(self, order: tuple[int, ...]) -> list[samples_pb.Tick]:
        """The sampler's messages; rows of a tick stand in the order that `order` says."""
        made: list[samples_pb.Tick] = []
        attached: set[int] = set()
        losses: list[TickLoss] = []
        for seq in range(self.ticks):
            if seq in self.missed:
                late = GapReason.SAMPLER_LATE
                losses.append(TickLoss(first_seq=seq, last_seq=seq, reason=late))
                continue
            slots = [slot for slot in order if self.lives[slot][0] <= seq <= self.lives[slot][1]]
            new = [slot for slot in slots if slot not in attached]
            attached.update(new)
            made.append(
                tick(
                    seq,
                    slots,
                    attached=[attachment(slot, f"vm_{slot}", seq) for slot in new],
                    losses=losses,
                    at_ns=EPOCH_AT_NS + seq * TICK_APART_NS,
                )
            )
            losses = []
        return made


@st.composite
def hosts(draw: st.DrawFn) -> Host:
    ticks = draw(st.integers(1, 50))
    instants = st.integers(0, ticks - 1)
    lives = draw(st.lists(st.tuples(instants, instants), min_size=1, max_size=4))
    return Host(
        ticks=ticks,
        missed=draw(st.frozensets(instants, max_size=5)),
        lives=tuple((min(life), max(life)) for life in lives),
    )


class Collector:
    """billaged without disk and network: a log of records, of which a crash loses the newest."""

    def __init__(self) -> None:
        self.durable: list[Record] = []
        self.pending: list[Record] = []
        self.batches: list[batch_pb.SubmitBatchRequest] = []
        self.state = MeterState()
        self._keep(None)

    def _keep(self, record: Record) -> None:
        self.pending.append(record)
        self._apply(record)

    def _apply(self, record: Record) -> None:
        """A tick with its ordinal, a seal as JSON, or (None) a hello."""
        if record is None:
            self.state.apply_hello(hello())
        elif isinstance(record, str):
            self.state.apply_sealed(json.loads(record))
        else:
            self.state.apply_tick(*record, segment=1)

    def sync(self) -> None:
        self.durable += self.pending
        self.pending = []

    def crash(self) -> None:
        self.pending = []
        self.state = MeterState()
        for record in self.durable:
            self._apply(record)
        self._keep(None)

    def take(self, ordinal: int, message: samples_pb.Tick) -> None:
        self._keep((ordinal, message))
        open_minutes = {at: one.last_seq for at, one in self.state.open_minutes.items()}
        self.seal(decide.closed_by_ticks(open_minutes, self.state.newest_seq, GRACE))

    def seal(self, minutes: list[int]) -> None:
        for plan in sealing.plan(self.state, minutes) if minutes else []:
            self._keep(json.dumps(plan.record))
            self.sync()
            if plan.request is not None:
                self.batches.append(plan.request)

    def finish(self) -> dict[str, bytes]:
        self.seal(sorted(self.state.open_minutes))
        return {one.batch_id: one.content_sha256 for one in self.batches}


def undisturbed(host: Host) -> Collector:
    made = Collector()
    for ordinal, message in enumerate(host.stream(tuple(range(len(host.lives)))), 1):
        made.take(ordinal, message)
    return made


@given(hosts(), st.data())
def test_crashes_and_repeats_and_other_orders_make_the_same_batches(
    host: Host, data: st.DataObject
) -> None:
    expected = undisturbed(host).finish()
    order = tuple(data.draw(st.permutations(range(len(host.lives)))))
    stream = host.stream(order)
    made = Collector()
    position, trouble = 0, data.draw(st.integers(0, 8))
    while position < len(stream):
        made.take(position + 1, stream[position])
        position += 1
        if not trouble:
            continue
        what = data.draw(st.sampled_from(["nothing", "sync", "crash", "resend"]))
        trouble -= what != "nothing"
        if what == "sync":
            made.sync()
        elif what == "crash":
            made.crash()
            position = made.state.ordinal
        elif what == "resend":
            position = data.draw(st.integers(0, position))
    assert made.finish() == expected


@given(hosts())
def test_every_sample_is_in_one_window_and_every_other_in_one_gap(host: Host) -> None:
    made = undisturbed(host)
    made.finish()
    seen: dict[str, list[int]] = {}
    missing: dict[str, list[int]] = {}
    for request in made.batches:
        for window in content_of(request).windows:
            seen.setdefault(window.vm_id, []).extend(numbers_of(window.seq))
            for gap in window.gaps:
                assert gap.reason == GapReason.SAMPLER_LATE
                missing.setdefault(gap.vm_id, []).extend(range(gap.first_seq, gap.last_seq + 1))
    for slot, (first, last) in enumerate(host.lives):
        taken = [seq for seq in range(first, last + 1) if seq not in host.missed]
        assert sorted(seen.get(f"vm_{slot}", [])) == taken
        lost = [seq for seq in range(first, last + 1) if seq in host.missed]
        # What is missed before the first sample or after the last belongs to no life of the VM.
        inside = [seq for seq in lost if taken and taken[0] < seq < taken[-1]]
        assert sorted(missing.get(f"vm_{slot}", [])) == inside


@given(hosts())
def test_no_minute_stays_open_and_nothing_is_remembered_that_was_shipped(host: Host) -> None:
    made = undisturbed(host)
    made.finish()
    assert made.state.open_minutes == {}
    assert made.state.events == {}
    assert sealing.plan(made.state, [decide.minute_of(EPOCH_AT_NS)]) == []
