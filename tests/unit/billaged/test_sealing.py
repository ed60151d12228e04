from __future__ import annotations

import numpy as np

from ironworks.billaged import decide, sealing
from ironworks.billaged.state import MeterState
from ironworks.billaged.types import VmKey
from ironworks.gen.ironworks.aggregatord.v1 import batch_pb
from ironworks.gen.ironworks.billaged.v1 import samples_pb
from ironworks.gen.ironworks.billaged.v1.samples_pb import AbsenceReason, Counter, GapReason
from ironworks.model.units import MIB
from ironworks.testkit.metering import EPOCH_AT_NS, attachment, content_of, hello, numbers_of, tick

MINUTE = decide.minute_of(EPOCH_AT_NS)


def state_with(vms: int) -> MeterState:
    state = MeterState()
    state.apply_hello(hello())
    attached = [attachment(slot, f"vm_{slot}", 0) for slot in range(1, vms + 1)]
    state.apply_tick(1, tick(0, range(1, vms + 1), attached=attached), segment=1)
    return state


def windows(plans: list[sealing.Plan]) -> list[batch_pb.Window]:
    return [window for plan in plans if plan.request for window in content_of(plan.request).windows]


def gaps(window: batch_pb.Window) -> list[tuple[int, int, GapReason]]:
    return [(gap.first_seq, gap.last_seq, gap.reason) for gap in window.gaps]


def unreadable() -> list[samples_pb.Absence]:
    return [
        samples_pb.Absence(row=0, counter=Counter(number), reason=AbsenceReason.GONE)
        for number in range(1, 8)
    ]


def test_runs_of_numbers() -> None:
    assert sealing.runs_of(np.array([], np.int64)) == []
    assert sealing.runs_of(np.array([1, 2, 3, 7, 9, 10])) == [[1, 3], [7, 7], [9, 10]]


def test_a_minute_of_a_vm_is_a_window_and_sealing_closes_it() -> None:
    state = state_with(2)
    for seq in range(1, 605):
        state.apply_tick(seq + 1, tick(seq, [1, 2]), segment=1)
    plans = sealing.plan(state, [MINUTE])
    assert [
        (one.vm_id, one.sample_count) for one in sorted(windows(plans), key=lambda w: w.vm_id)
    ] == [
        ("vm_1", 600),
        ("vm_2", 600),
    ]
    assert sealing.plan(state, [MINUTE])[0].request == plans[0].request, "planning changes nothing"
    state.apply_sealed(plans[0].record)
    assert sealing.plan(state, [MINUTE]) == []
    assert list(state.open_minutes) == [MINUTE + 1]
    assert state.events == {}
    assert [one.first_seq for one in sealing.plan(state, [MINUTE + 1])[0].windows] == [600, 600]


def test_what_is_missing_is_told_once_with_its_reason() -> None:
    state = state_with(1)
    loss = samples_pb.TickLoss(first_seq=1, last_seq=2, reason=GapReason.SAMPLER_LATE)
    state.apply_tick(2, tick(3, [1], losses=[loss]), segment=1)
    state.apply_tick(3, tick(6, [1]), segment=1)
    [plan] = sealing.plan(state, [MINUTE])
    [window] = windows([plan])
    assert gaps(window) == [(1, 2, GapReason.SAMPLER_LATE), (4, 5, GapReason.UNEXPLAINED)]
    state.apply_sealed(plan.record)
    state.apply_tick(4, tick(7, [1]), segment=1)
    assert gaps(windows(sealing.plan(state, [MINUTE]))[0]) == []


def test_only_the_vms_asked_for_are_sealed() -> None:
    state = state_with(2)
    [plan] = sealing.plan(state, [MINUTE], [VmKey("vm_2", 1), VmKey("vm_unknown", 1)])
    assert [one.vm_id for one in plan.windows] == ["vm_2"]
    state.apply_sealed(plan.record)
    assert state.is_open(VmKey("vm_1", 1), 0)


def test_a_resize_within_the_minute_makes_two_windows() -> None:
    state = state_with(1)
    larger = attachment(9, "vm_1", 1, memory_bytes=512 * MIB)
    state.apply_tick(2, tick(1, [9], attached=[larger]), segment=1)
    found = {
        one.memory_limit_bytes: numbers_of(one.seq)
        for one in windows(sealing.plan(state, [MINUTE]))
    }
    assert found == {256 * MIB: [0], 512 * MIB: [1]}


def test_samples_without_any_reading_are_a_gap_and_not_samples() -> None:
    state = state_with(1)
    state.apply_tick(2, tick(1, [1], absences=unreadable()), segment=1)
    state.apply_tick(3, tick(2, [1]), segment=1)
    [window] = windows(sealing.plan(state, [MINUTE]))
    assert numbers_of(window.seq) == [0, 2]
    assert gaps(window) == [(1, 1, GapReason.UNREADABLE)]


def test_a_window_of_which_nothing_could_be_read_is_told_by_the_next() -> None:
    state = state_with(1)
    [first] = sealing.plan(state, [MINUTE])
    state.apply_sealed(first.record)
    state.apply_tick(2, tick(1, [1], absences=unreadable()), segment=1)
    [silent] = sealing.plan(state, [MINUTE])
    assert silent.windows == ()
    assert silent.request is not None
    [event] = content_of(silent.request).events
    assert (event.vm_id, event.type) == ("vm_1", samples_pb.LifecycleEventType.HEARTBEAT)
    state.apply_sealed(silent.record)
    assert state.open_minutes == {}
    state.apply_tick(3, tick(2, [1]), segment=1)
    [window] = windows(sealing.plan(state, [MINUTE]))
    assert gaps(window) == [(1, 1, GapReason.UNREADABLE)]


def test_many_windows_are_many_batches_and_every_vm_is_in_one() -> None:
    state = state_with(sealing.MAX_WINDOWS + 5)
    plans = sealing.plan(state, [MINUTE])
    assert [len(plan.windows) for plan in plans] == [sealing.MAX_WINDOWS, 5]
    assert len({one.vm_id for plan in plans for one in plan.windows}) == sealing.MAX_WINDOWS + 5


def test_the_windows_of_a_stored_batch_can_be_read_back() -> None:
    [plan] = sealing.plan(state_with(2), [MINUTE])
    assert plan.request is not None
    assert set(sealing.sealed_windows(plan.request)) == set(plan.windows)
