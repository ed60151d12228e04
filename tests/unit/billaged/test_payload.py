from __future__ import annotations

import hashlib

import numpy as np

from ironworks.billaged import payload
from ironworks.billaged.rings import Samples
from ironworks.billaged.types import COLUMNS, Provision, SeqGap, VmKey
from ironworks.gen.ironworks.billaged.v1 import samples_pb
from ironworks.gen.ironworks.billaged.v1.samples_pb import AbsenceReason, Counter, GapReason
from ironworks.testkit.metering import content_of, numbers_of

TIMEOUT, NO_SOURCE = int(AbsenceReason.TIMEOUT), int(AbsenceReason.NO_SOURCE)


def samples(count: int, absent: list[int] | None = None) -> Samples:
    seq = np.arange(10, 10 + count, dtype=np.int64)
    return Samples(
        seq=seq,
        at_ns=seq * 100_000_000,
        offset_us=np.full(count, -3, np.int32),
        absent=np.array(absent or [0] * count, np.uint32),
        values={name: seq.astype(np.uint64) * 7 for name in COLUMNS},
    )


def parts(of: Samples) -> payload.WindowParts:
    return payload.WindowParts(
        key=VmKey("vm_1", 3),
        provision=Provision(
            tenant_id="tnt_a", deployment_id="dep_1", vcpus=2, memory_bytes=1024, disk_bytes=5
        ),
        samples=of,
        gaps=[SeqGap(first_seq=8, last_seq=9, reason=int(GapReason.AGENT_DOWN))],
        attached_seq=8,
        tick_ns=100_000_000,
    )


def test_columns_are_differences_that_add_up_again_even_across_the_width() -> None:
    column = np.array([(1 << 64) - 1, 3, 2, 2], np.uint64)
    assert numbers_of(payload.differences(column, "<u8")) == [(1 << 64) - 1, 3, 2, 2]
    assert payload.differences(np.array([-5, 7], np.int32), "<u4") == (
        (2**32 - 5).to_bytes(4, "little") + (12).to_bytes(4, "little")
    )


def test_a_window_says_all_that_is_known() -> None:
    window = payload.window("hst", parts(samples(3)))
    assert (window.vm_id, window.boot_epoch, window.sample_count) == ("vm_1", 3, 3)
    assert (window.vcpus, window.memory_limit_bytes, window.disk_limit_bytes) == (2, 1024, 5)
    assert numbers_of(window.seq) == [10, 11, 12]
    assert numbers_of(window.cpu_ns) == [70, 77, 84]
    assert [(one.first_seq, one.last_seq, one.reason) for one in window.gaps] == [
        (8, 9, GapReason.AGENT_DOWN)
    ]
    assert window.attached_seq == 8


def test_absences_become_masks_and_runs() -> None:
    cpu_late, disk_none = TIMEOUT, NO_SOURCE << 8
    of = samples(4, [disk_none, disk_none | cpu_late, disk_none | cpu_late, disk_none])
    window = payload.window("hst", parts(of))
    assert list(window.absent_mask) == [0b100, 0b101, 0b101, 0b100]
    runs = [(run.counter, run.reason, run.first_seq, run.last_seq) for run in window.absences]
    assert runs == [
        (Counter.CPU, AbsenceReason.TIMEOUT, 11, 12),
        (Counter.DISK_READ, AbsenceReason.NO_SOURCE, 10, 13),
    ]


def test_the_same_content_makes_the_same_batch_in_any_order() -> None:
    one, two = payload.window("hst", parts(samples(2))), payload.window("hst", parts(samples(3)))
    two.window_id = "win_other"
    told = samples_pb.LifecycleEvent(vm_id="vm_1", tenant_id="tnt_a", at_ns=5)
    first, second = (
        payload.batch("hst", [one, two], [told]),
        payload.batch("hst", [two, one], [told]),
    )
    assert first.to_binary() == second.to_binary()
    content = content_of(first)
    assert len(content.windows) == 2
    assert first.content_sha256 == hashlib.sha256(content.to_binary()).digest()
    assert payload.batch("hst", [one], [told]).batch_id != first.batch_id
    assert payload.batch("hst", [one, two], []).batch_id != first.batch_id
