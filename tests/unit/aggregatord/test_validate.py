from __future__ import annotations

import pytest

from ironworks.aggregatord import decode, metering, validate
from ironworks.aggregatord.types import Baseline, Window
from ironworks.aggregatord.validate import Neighbours
from ironworks.gen.ironworks.aggregatord.v1 import batch_pb
from ironworks.gen.ironworks.aggregatord.v1.batch_pb import QuarantineReason as Reason
from ironworks.model.units import GIB, MIB, NS_PER_DAY, NS_PER_SECOND
from ironworks.testkit.metering import EPOCH_AT_NS, reading, window

NOW_NS = EPOCH_AT_NS + 60 * NS_PER_SECOND
ALONE = Neighbours(tenant_id="", before=Baseline(), after={})
SECOND = 10
"""Ticks."""


def decoded(raw: batch_pb.Window) -> Window:
    made = decode.window_of(raw)
    assert isinstance(made, Window)
    return made


def alone(raw: batch_pb.Window, now_ns: int = NOW_NS) -> Reason | None:
    finding = validate.check_window(decoded(raw), now_ns, 7)
    return finding.reason if finding else None


def beside(raw: batch_pb.Window, around: Neighbours) -> Reason | None:
    made = decoded(raw)
    finding = validate.check_neighbours(made, metering.summarise(made), around)
    return finding.reason if finding else None


def test_an_honest_window_passes() -> None:
    raw = window(range(600))
    assert alone(raw) is None
    assert beside(raw, ALONE) is None


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (window([3, 3]), Reason.SEQUENCE),
        (window([4, 3]), Reason.SEQUENCE),
        (window([1, 2], absent_mask=[0, 0b10000000]), Reason.MALFORMED),
        (window([1, 2], absent_mask=[0, 0b1111111]), Reason.MALFORMED),
        (window([1, 2], values={"cpu_ns": [5, 4]}), Reason.COUNTER_WENT_BACK),
        (window([1, 2], values={"network_receive_bytes": [5, 4]}), Reason.COUNTER_WENT_BACK),
        (window([1, 2], values={"disk_read_bytes": [1, 1 << 63]}), Reason.MALFORMED),
        (window([1, 2], values={"memory_bytes": [1, 2 * GIB]}), Reason.MEMORY_EXCEEDED),
        (window([0, 620]), Reason.CLOCK),
        (window([1, 2], offset_us=[0, -200_000]), Reason.CLOCK),
        (window([1, 2], offset_us=[0, 61_000_000]), Reason.CLOCK),
        (window([1, 2], offset_us=[110_000, 5]), Reason.CLOCK),
    ],
)
def test_a_window_that_cannot_be_true_is_found(raw: batch_pb.Window, reason: Reason) -> None:
    assert alone(raw) is reason


def test_the_host_s_clock_must_be_sane() -> None:
    raw = window([1, 2])
    assert alone(raw, EPOCH_AT_NS - 299 * NS_PER_SECOND) is None
    assert alone(raw, EPOCH_AT_NS - NS_PER_DAY) is Reason.CLOCK
    assert alone(raw, EPOCH_AT_NS + 7 * NS_PER_DAY) is None
    assert alone(raw, EPOCH_AT_NS + 8 * NS_PER_DAY) is Reason.CLOCK


def test_a_reading_that_is_absent_is_not_judged() -> None:
    backwards = window([1, 2, 3], values={"cpu_ns": [5, 0, 6]}, absent_mask=[0, 1, 0])
    assert alone(backwards) is None


def test_emulation_may_use_memory_beside_the_guest_s() -> None:
    limit_bytes = 256 * MIB
    most = limit_bytes + limit_bytes // 4 + GIB
    assert alone(window([1], values={"memory_bytes": [most]})) is None
    assert alone(window([1], values={"memory_bytes": [most + 1]})) is Reason.MEMORY_EXCEEDED


def test_cpu_time_is_bounded_by_vcpus_and_the_vmm_s_allowance() -> None:
    most = 3 * NS_PER_SECOND + validate.CPU_SLACK_NS
    seq = [0, SECOND]
    assert beside(window(seq, values={"cpu_ns": [0, most]}), ALONE) is None
    over = window(seq, values={"cpu_ns": [0, most + 1]})
    assert beside(over, ALONE) is Reason.CPU_EXCEEDED


def test_bytes_are_bounded_by_what_devices_can_carry() -> None:
    most = validate.MAX_NETWORK_BYTES_PER_SECOND + validate.RATE_SLACK_BYTES
    seq = [0, SECOND]
    assert beside(window(seq, values={"network_transmit_bytes": [0, most]}), ALONE) is None
    over = window(seq, values={"network_transmit_bytes": [0, most + 1]})
    assert beside(over, ALONE) is Reason.RATE_EXCEEDED


def test_growth_is_judged_from_the_end_of_the_window_before() -> None:
    raw = window([SECOND], values={"cpu_ns": [10 * NS_PER_SECOND]})
    recent = Baseline(last_us=0, last={"cpu_ns": 0})
    assert beside(raw, Neighbours(tenant_id="", before=recent, after={})) is Reason.CPU_EXCEEDED
    idle = Baseline(last_us=0, last={"cpu_ns": 9 * NS_PER_SECOND})
    assert beside(raw, Neighbours(tenant_id="", before=idle, after={})) is None


def test_counters_must_fit_between_the_windows_around() -> None:
    raw = window([100, 101])
    cpu = reading("cpu_ns", 100)
    behind = Neighbours(tenant_id="", before=Baseline(last={"cpu_ns": cpu + 1}), after={})
    ahead = Neighbours(tenant_id="", before=Baseline(), after={"cpu_ns": cpu})
    assert beside(raw, behind) is Reason.COUNTER_WENT_BACK
    assert beside(raw, ahead) is Reason.COUNTER_WENT_BACK
    unknown = Neighbours(
        tenant_id="", before=Baseline(last={"cpu_ns": None}), after={"cpu_ns": None}
    )
    assert beside(raw, unknown) is None


def test_a_vm_stays_with_its_tenant_and_a_number_with_one_window() -> None:
    raw = window([1, 2])
    other = Neighbours(tenant_id="tnt_b", before=Baseline(), after={})
    taken = Neighbours(tenant_id="tnt_a", before=Baseline(), after={}, interval_free=1)
    free = Neighbours(tenant_id="tnt_a", before=Baseline(), after={}, interval_free=2)
    assert beside(raw, other) is Reason.IDENTITY
    assert beside(raw, taken) is Reason.SEQUENCE
    assert beside(raw, free) is None
