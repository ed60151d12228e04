from __future__ import annotations

import itertools

import pytest

from ironworks.aggregatord import decode, metering, store
from ironworks.aggregatord.judging import PAGE, Candidate, Judge
from ironworks.aggregatord.types import DAY_NS, Interval, UsageFilter, VmEpoch, Window
from ironworks.gen.ironworks.aggregatord.v1 import batch_pb
from ironworks.gen.ironworks.aggregatord.v1.batch_pb import QuarantineReason
from ironworks.gen.ironworks.aggregatord.v1.usage_pb import Meter
from ironworks.model.errors import Unavailable
from ironworks.testkit.aggregator import Aggregator
from ironworks.testkit.metering import EPOCH_AT_NS, reading, window

KEY = VmEpoch("vm_1", 1)
MINE = UsageFilter(tenant_id="tnt_a")
DAY = EPOCH_AT_NS // DAY_NS * DAY_NS
TODAY = Interval(from_ns=DAY, to_ns=DAY + DAY_NS)
NO_CPU = 0b000001


def candidate(raw: batch_pb.Window, position: int = 0) -> Candidate:
    made = decode.window_of(raw)
    assert isinstance(made, Window)
    return Candidate(position=position, window=made, summary=metering.summarise(made))


async def growths(made: Aggregator) -> list[tuple[int, int, int]]:
    """First number, CPU time and batch of each stored window."""
    stored = (await made.warehouse.following({KEY: -1}, 1000))[KEY]
    return [(one.summary.first_seq, one.growth.grown["cpu_ns"], one.version) for one in stored]


async def test_in_order_nothing_is_asked_of_the_engine(
    made: Aggregator, monkeypatch: pytest.MonkeyPatch
) -> None:
    await made.submit([window(range(10))])
    judge = Judge(made.database, made.warehouse, made.clock)
    monkeypatch.setattr(made.engine, "rows", None)
    judgement = await judge.judge("hst_test", [candidate(window(range(10, 20)))])
    [one] = judgement.accepted
    assert one.growth.grown["cpu_ns"] == reading("cpu_ns", 19) - reading("cpu_ns", 9)
    assert judgement.ends[KEY].last_seq == 19
    assert judgement.rewritten == []


async def test_late_windows_of_many_vms_are_looked_up_together(
    made: Aggregator, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm_ids = [f"vm_{number}" for number in range(5)]
    for first in (0, 20):
        await made.submit([window(range(first, first + 5), vm_id=one) for one in vm_ids])
    asked: list[str] = []
    rows = made.engine.rows

    async def counted(sql: str, parameters: dict[str, object]) -> list[list[object]]:
        asked.append(sql)
        return await rows(sql, parameters)

    monkeypatch.setattr(made.engine, "rows", counted)
    late = [candidate(window(range(10, 15), vm_id=one), at) for at, one in enumerate(vm_ids)]
    judgement = await Judge(made.database, made.warehouse, made.clock).judge("hst_test", late)
    assert len(asked) == 2
    assert len(judgement.accepted) == len(judgement.rewritten) == 5
    [grown] = {one.growth.grown["cpu_ns"] for one in judgement.accepted}
    assert grown == reading("cpu_ns", 14) - reading("cpu_ns", 4)


async def test_what_comes_late_is_taken_off_the_window_after_it(made: Aggregator) -> None:
    step = reading("cpu_ns", 10) - reading("cpu_ns", 0)
    for first in (0, 20, 30):
        await made.submit([window(range(first, first + 10))])
    assert await growths(made) == [(0, step * 9 // 10, 1), (20, 2 * step, 2), (30, step, 3)]
    await made.submit([window(range(10, 20))])
    assert await growths(made) == [
        (0, step * 9 // 10, 1),
        (10, step, 4),
        (20, step, 4),
        (30, step, 3),
    ]


@pytest.mark.parametrize("order", list(itertools.permutations((10, 20, 30))))
@pytest.mark.parametrize("crashed", [(10,), (20,), (30,), (10, 30), (30, 20), (30, 20, 10)])
async def test_windows_whose_claim_was_lost_are_counted_once_when_they_come_again(
    made: Aggregator,
    monkeypatch: pytest.MonkeyPatch,
    crashed: tuple[int, ...],
    order: tuple[int, ...],
) -> None:
    step = reading("cpu_ns", 10)

    def crash(*_: object) -> None:
        raise Unavailable("killed")

    await made.submit([window(range(10))])
    for first in crashed:
        with monkeypatch.context() as patched:
            patched.setattr(store, "put_batch", crash)
            with pytest.raises(Unavailable):
                await made.submit([window(range(first, first + 10))])
    for first in order:
        await made.submit([window(range(first, first + 10))])
    assert [(first, cpu) for first, cpu, _ in await growths(made)] == [
        (0, step * 9 // 10),
        (10, step),
        (20, step),
        (30, step),
    ]


async def test_a_reading_that_is_missing_hands_the_difference_on(made: Aggregator) -> None:
    def at(first: int, mask: int = 0) -> batch_pb.Window:
        return window(range(first, first + 10), absent_mask=[mask] * 10)

    step = reading("cpu_ns", 10)
    for raw in (at(0), at(20, NO_CPU), at(30, NO_CPU), at(40)):
        await made.submit([raw])
    assert [cpu for _, cpu, _ in await growths(made)] == [step * 9 // 10, 0, 0, 4 * step]
    await made.submit([at(10)])
    assert await growths(made) == [
        (0, step * 9 // 10, 1),
        (10, step, 5),
        # Its time is shorter now, its CPU time was never read.
        (20, 0, 5),
        (30, 0, 3),
        (40, 3 * step, 5),
    ]


async def test_more_windows_than_a_page_are_walked_over(made: Aggregator) -> None:
    no_disk = 0b001100
    later = [window([seq], absent_mask=[no_disk]) for seq in range(20, 20 + PAGE + 30)]
    await made.submit(later)
    await made.submit([window([3_000])])
    await made.submit([window([1])])
    await made.submit([window([10])])
    used = await made.usage.usage(MINE, TODAY)
    assert {row.meter: row.quantity for row in used}[Meter.DISK_READ] == reading(
        "disk_read_bytes", 2_999
    )


async def test_late_and_early_windows_in_one_batch_add_up(made: Aggregator) -> None:
    await made.submit([window(range(20, 30)), window(range(60, 70))])
    mixed = [window(range(first, first + 10)) for first in (70, 0, 40, 30)]
    assert len((await made.submit(mixed, "bat_mixed")).accepted) == 4
    used = {row.meter: row.quantity for row in await made.usage.usage(MINE, TODAY)}
    assert used[Meter.VCPU_USED] == reading("cpu_ns", 79)
    assert used[Meter.VCPU_PROVISIONED] == 2 * 79 * 100_000_000
    assert [seq for seq, _, _ in await growths(made)] == [0, 20, 30, 40, 60, 70]


async def test_an_operator_s_word_counts_but_no_sample_counts_twice(made: Aggregator) -> None:
    await made.submit([window(range(10))])
    judge = Judge(made.database, made.warehouse, made.clock)
    absurd = candidate(window([10], values={"cpu_ns": [10**15]}))
    judgement = await judge.judge("hst_test", [absurd])
    assert [finding.reason for _, finding in judgement.refused] == [QuarantineReason.CPU_EXCEEDED]
    assert (await judge.judge("hst_test", [absurd], forced=True)).refused == []
    twice = candidate(window([9, 10]))
    judgement = await judge.judge("hst_test", [twice], forced=True)
    assert [finding.reason for _, finding in judgement.refused] == [QuarantineReason.SEQUENCE]


async def test_a_vm_stays_on_its_host(made: Aggregator) -> None:
    await made.submit([window(range(10))])
    judge = Judge(made.database, made.warehouse, made.clock)
    judgement = await judge.judge("hst_other", [candidate(window(range(10, 20)))])
    assert [finding.reason for _, finding in judgement.refused] == [QuarantineReason.IDENTITY]


async def test_within_a_batch_a_new_vm_has_one_tenant(made: Aggregator) -> None:
    outcome = await made.submit([window([1]), window([2], tenant_id="tnt_b")])
    assert [one.window.finding.reason for one in outcome.refused] == [QuarantineReason.IDENTITY]
