"""Σ deltas of raw samples = Σ windows, exactly, whatever is lost, absent or comes late."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from ironworks.aggregatord import decode, metering, validate
from ironworks.aggregatord.types import (
    CUMULATIVE,
    MEMORY_HOLD_US,
    READINGS,
    TICK_US,
    Baseline,
    Quantities,
    Summary,
    Window,
)
from ironworks.gen.ironworks.aggregatord.v1.usage_pb import Meter
from ironworks.model.units import GIB, MIB, NS_PER_US
from ironworks.testkit.metering import window

VCPUS, MEMORY_BYTES = 2, 256 * MIB


@dataclass(frozen=True)
class Sample:
    """One sample as it would stand in `raw_samples`; None is an absent reading."""

    seq: int
    offset_us: int
    readings: dict[str, int | None]

    @property
    def at_us(self) -> int:
        return self.seq * TICK_US + self.offset_us


@st.composite
def epochs(draw: st.DrawFn) -> list[list[Sample]]:
    """The windows of one epoch: samples with holes, absences, and counters that only grow."""
    counters = dict.fromkeys(CUMULATIVE, draw(st.integers(0, 10**12)))
    seq = draw(st.integers(0, 10**6))
    made: list[list[Sample]] = []
    for _ in range(draw(st.integers(1, 6))):
        samples: list[Sample] = []
        for _ in range(draw(st.integers(1, 6))):
            seq += draw(st.integers(1, 15))
            readings: dict[str, int | None] = {"memory_bytes": draw(st.integers(0, 10**9))}
            for name in CUMULATIVE:
                counters[name] += draw(st.integers(0, 10**7))
                readings[name] = counters[name]
            absent = draw(st.sets(st.sampled_from(READINGS), max_size=len(READINGS) - 1))
            readings |= dict.fromkeys(absent)
            samples.append(Sample(seq, draw(st.integers(0, TICK_US - 1)), readings))
        made.append(samples)
    return made


def encoded(samples: list[Sample]) -> Window:
    masks = [
        sum(1 << bit for bit, name in enumerate(READINGS) if one.readings[name] is None)
        for one in samples
    ]
    made = decode.window_of(
        window(
            [one.seq for one in samples],
            vcpus=VCPUS,
            memory_limit_bytes=MEMORY_BYTES,
            values={name: [one.readings[name] or 0 for one in samples] for name in READINGS},
            offset_us=[one.offset_us for one in samples],
            absent_mask=masks,
        )
    )
    assert isinstance(made, Window)
    return made


def raw_usage(samples: list[Sample]) -> Quantities:
    """The definition, sample by sample, as slow and plain as can be."""
    elapsed_ns = (samples[-1].at_us - samples[0].at_us) * NS_PER_US
    used: Quantities = {
        Meter.VCPU_PROVISIONED: VCPUS * elapsed_ns,
        Meter.MEMORY_PROVISIONED: MEMORY_BYTES * elapsed_ns,
        Meter.DISK_PROVISIONED: GIB * elapsed_ns,
        Meter.MEMORY_USED: 0,
    }
    meters = (
        Meter.VCPU_USED,
        Meter.DISK_READ,
        Meter.DISK_WRITE,
        Meter.NETWORK_IN,
        Meter.NETWORK_OUT,
        Meter.NETWORK_OUT_INTERNAL,
    )
    for name, meter in zip(CUMULATIVE, meters, strict=True):
        seen = [value for one in samples if (value := one.readings[name]) is not None]
        used[meter] = sum(later - earlier for earlier, later in itertools.pairwise(seen))
    used[Meter.NETWORK_OUT_INTERNET] = used[Meter.NETWORK_OUT] - used[Meter.NETWORK_OUT_INTERNAL]
    remembered = [one for one in samples if one.readings["memory_bytes"] is not None]
    for earlier, later in itertools.pairwise(remembered):
        held_us = min(later.at_us - earlier.at_us, MEMORY_HOLD_US)
        used[Meter.MEMORY_USED] += (earlier.readings["memory_bytes"] or 0) * held_us * NS_PER_US
    return used


def total(summaries: list[Summary]) -> Quantities:
    used: Quantities = {}
    for _, quantities in metering.usage_of(summaries, Baseline()):
        metering.add(used, quantities)
    return used


@given(epochs(), st.data())
def test_windows_add_up_to_the_samples_in_whatever_order_they_come(
    epoch: list[list[Sample]], data: st.DataObject
) -> None:
    summaries = [metering.summarise(encoded(samples)) for samples in epoch]
    shuffled = data.draw(st.permutations(summaries))
    assert total(list(shuffled)) == raw_usage([one for samples in epoch for one in samples])


@given(epochs(), st.data())
def test_any_part_goes_on_where_the_part_before_it_ended(
    epoch: list[list[Sample]], data: st.DataObject
) -> None:
    summaries = [metering.summarise(encoded(samples)) for samples in epoch]
    cut = data.draw(st.integers(0, len(summaries)))
    before = Baseline()
    for summary in summaries[:cut]:
        before = metering.after(before, summary)
    used = total(summaries[:cut])
    for _, quantities in metering.usage_of(summaries[cut:], before):
        metering.add(used, quantities)
    assert used == total(summaries)


@given(epochs())
def test_how_samples_are_cut_into_windows_does_not_matter(epoch: list[list[Sample]]) -> None:
    flat = [one for samples in epoch for one in samples]
    singles = [metering.summarise(encoded([one])) for one in flat]
    assert total(singles) == total([metering.summarise(encoded(flat))])


@given(epochs())
def test_windows_of_one_epoch_are_good_neighbours(epoch: list[list[Sample]]) -> None:
    before = Baseline()
    for samples in epoch:
        made = encoded(samples)
        summary = metering.summarise(made)
        around = validate.Neighbours(tenant_id="", before=before, after={})
        finding = validate.check_neighbours(made, summary, around)
        assert finding is None or finding.reason.name == "CPU_EXCEEDED"
        before = metering.after(before, summary)
