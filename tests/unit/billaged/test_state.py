from __future__ import annotations

import pytest

from ironworks.billaged.state import STALE_TICKS, MeterState
from ironworks.billaged.types import VmKey
from ironworks.gen.ironworks.billaged.v1 import samples_pb
from ironworks.gen.ironworks.billaged.v1.samples_pb import (
    GapReason,
    LifecycleEventType,
)
from ironworks.model.errors import InvalidRequest
from ironworks.model.units import MIB
from ironworks.testkit.metering import attachment, hello, tick

ONE = VmKey("vm_1", 1)


def running() -> MeterState:
    state = MeterState()
    state.apply_hello(hello())
    state.apply_tick(1, tick(0, [1], attached=[attachment(1, "vm_1", 0)]), segment=1)
    return state


def told(state: MeterState) -> list[tuple[str, LifecycleEventType]]:
    return [(event.vm_id, event.type) for event in state.events.values()]


def test_a_vm_starts_with_its_first_sample_and_stops_with_its_last() -> None:
    state = running()
    assert told(state) == [("vm_1", LifecycleEventType.STARTED)]
    state.apply_tick(2, tick(1, [1], detached=[1]), segment=1)
    assert told(state)[1:] == [("vm_1", LifecycleEventType.STOPPED)]
    assert state.ended == [ONE]
    with pytest.raises(InvalidRequest, match="not announced"):
        state.apply_tick(3, tick(2, [1]), segment=1)


def test_what_came_already_changes_nothing() -> None:
    state = running()
    assert state.apply_tick(2, tick(1, [1]), segment=1)
    assert not state.apply_tick(2, tick(1, [1]), segment=1)
    assert not state.apply_tick(1, tick(0, [1], attached=[attachment(1, "vm_1", 0)]), segment=1)
    assert (state.samples_received, state.samples_duplicate) == (2, 2)
    assert len(state.events) == 1


def test_a_new_run_begins_its_ordinals_anew_and_what_it_missed_is_declared() -> None:
    state = running()
    state.apply_hello(hello([attachment(7, "vm_1", 50)], run_id="run2"))
    assert state.ordinal == 0
    state.apply_tick(1, tick(50, [7], attached=[attachment(7, "vm_1", 50)]), segment=1)
    [loss] = state.vms[ONE].losses
    assert (loss.first_seq, loss.last_seq, loss.reason) == (1, 49, GapReason.AGENT_DOWN)
    assert told(state) == [("vm_1", LifecycleEventType.STARTED)], "it ran all the time"


def test_a_vm_that_ended_while_metald_was_down_is_forgotten_in_the_end() -> None:
    state = running()
    windows = [
        {"vm_id": vm_id, "boot_epoch": 1, "runs": [[0, 1]], "unreadable": [], "covered_seq": 1}
        for vm_id in ("vm_1", "vm_2")
    ]
    other = attachment(1, "vm_2", 1)
    state.apply_hello(hello([other], run_id="run2"))
    state.apply_tick(1, tick(1, [1], attached=[other]), segment=1)
    state.apply_sealed({"windows": windows, "events": []})
    assert ONE in state.vms, "the next metald may be about to find it"
    state.apply_tick(2, tick(STALE_TICKS + 1, [1]), segment=1)
    state.apply_sealed({"windows": [], "events": []})
    assert set(state.vms) == {VmKey("vm_2", 1)}


def test_the_same_run_that_comes_again_keeps_its_place() -> None:
    state = running()
    state.apply_hello(hello([attachment(1, "vm_1", 0)]))
    assert state.ordinal == 1
    state.apply_tick(2, tick(1, [1]), segment=1)
    assert state.vms[ONE].losses == []


def test_a_host_that_booted_again_has_ended_all_its_vms() -> None:
    state = running()
    state.apply_hello(hello(host_boot_id="boot2", run_id="run2"))
    assert state.vms[ONE].ended
    assert state.newest_seq == 0


def test_a_resize_holds_from_its_sample_on() -> None:
    state = running()
    larger = attachment(2, "vm_1", 5, memory_bytes=512 * MIB)
    state.apply_tick(2, tick(5, [2], attached=[larger]), segment=1)
    record = state.vms[ONE]
    assert record.provision_at(4).memory_bytes == 256 * MIB
    assert record.provision_at(5).memory_bytes == 512 * MIB
    assert told(state)[1:] == [("vm_1", LifecycleEventType.RESIZED)]


def test_a_pause_and_its_end_are_told_once_and_survive_a_restart() -> None:
    state = running()

    def attached_again(ordinal: int, seq: int, *, paused: bool) -> None:
        again = attachment(ordinal, "vm_1", seq)
        again.paused = paused
        state.apply_tick(ordinal, tick(seq, [ordinal], attached=[again]), segment=1)

    attached_again(2, 5, paused=True)
    attached_again(3, 6, paused=True)
    assert told(state)[1:] == [("vm_1", LifecycleEventType.PAUSED)]
    state.restore(state.checkpoint())
    attached_again(4, 7, paused=True)
    attached_again(5, 8, paused=False)
    assert told(state)[2:] == [("vm_1", LifecycleEventType.RESUMED)]


def test_losses_that_touch_are_one() -> None:
    state = running()
    late = GapReason.SAMPLER_LATE
    for ordinal, first, last in ((2, 1, 2), (3, 3, 4), (4, 9, 9)):
        loss = samples_pb.TickLoss(first_seq=first, last_seq=last, reason=late)
        state.apply_tick(ordinal, tick(last + 1, [1], losses=[loss]), segment=1)
    assert [(gap.first_seq, gap.last_seq) for gap in state.losses] == [(1, 4), (9, 9)]


@pytest.mark.parametrize(
    "change",
    [
        {"readings": bytes(8)},
        {"offsets": b""},
        {"slots": [1, 1]},
        {"slots": [9]},
        {"at_ns": 0},
        {"seq": -1},
        {"absent": bytes(8)},
        {"absent": b"\0\0\0\x10"},
        {"attached": [samples_pb.VmAttachment(slot=4, vm_id="vm_x")]},
        {"attached": [samples_pb.VmAttachment(slot=4, tenant_id="tnt_x")]},
    ],
)
def test_a_malformed_tick_is_refused(change: dict[str, object]) -> None:
    state = running()
    bad = tick(1, [1])
    for name, value in change.items():
        setattr(bad, name, value)
    with pytest.raises(InvalidRequest):
        state.apply_tick(2, bad, segment=1)
    assert state.apply_tick(2, tick(1, [1]), segment=1), "a good one is taken afterwards"


def test_a_hello_must_say_who() -> None:
    for missing in ("host_id", "host_boot_id", "run_id"):
        greeting = hello()
        setattr(greeting, missing, "")
        with pytest.raises(InvalidRequest):
            MeterState().apply_hello(greeting)


def test_a_checkpoint_holds_everything_but_the_samples() -> None:
    state = running()
    loss = samples_pb.TickLoss(first_seq=1, last_seq=2, reason=GapReason.SAMPLER_LATE)
    larger = attachment(2, "vm_1", 3, memory_bytes=512 * MIB)
    state.apply_tick(2, tick(3, [2], attached=[larger], losses=[loss]), segment=1)
    restored = MeterState()
    restored.restore(state.checkpoint())
    assert restored.checkpoint() == state.checkpoint()
    assert restored.apply_tick(3, tick(4, [2]), segment=2)
    assert not restored.apply_event(next(iter(state.events.values())))


def test_a_checkpoint_read_after_the_samples_keeps_them() -> None:
    state = running()
    state.restore(state.checkpoint())
    assert state.is_open(ONE, 0)
