from __future__ import annotations

from pathlib import Path

import pytest

from ironworks.aggregatord import store
from ironworks.aggregatord.types import Interval, UsageFilter
from ironworks.gen.ironworks.aggregatord.v1.batch_pb import QuarantineReason
from ironworks.gen.ironworks.billaged.v1 import samples_pb
from ironworks.model.errors import AlreadyExists, InvalidRequest, Unavailable
from ironworks.model.pages import PageSpec
from ironworks.model.units import NS_PER_DAY
from ironworks.testkit.aggregator import Aggregator, aggregator
from ironworks.testkit.metering import EPOCH_AT_NS, batch, reading, window

MINE = UsageFilter(tenant_id="tnt_a")
DAY = Interval(
    from_ns=EPOCH_AT_NS // NS_PER_DAY * NS_PER_DAY,
    to_ns=(EPOCH_AT_NS // NS_PER_DAY + 1) * NS_PER_DAY,
)


async def test_a_batch_is_stored_and_its_samples_are_what_was_sent(made: Aggregator) -> None:
    outcome = await made.submit([window(range(600)), window(range(3), vm_id="vm_2")])
    assert len(outcome.accepted) == 2
    assert not outcome.refused
    rows = await made.engine.rows(
        "SELECT vm_id, count(), min(seq), max(seq), max(cpu_ns), any(tenant_id), any(vcpus)"
        " FROM raw_samples FINAL GROUP BY vm_id ORDER BY vm_id"
    )
    assert rows == [
        ["vm_1", 600, 0, 599, reading("cpu_ns", 599), "tnt_a", 2],
        ["vm_2", 3, 0, 2, reading("cpu_ns", 2), "tnt_a", 2],
    ]


async def test_the_same_batch_twice_is_once(made: Aggregator) -> None:
    request = batch([window(range(10))])
    assert not (await made.ingest.submit(request)).duplicate
    assert (await made.ingest.submit(request)).duplicate
    assert await made.count("raw_samples") == 10
    assert made.ingest.samples_accepted == 10


async def test_the_same_window_in_another_batch_is_skipped(made: Aggregator) -> None:
    await made.submit([window(range(10))])
    outcome = await made.submit([window(range(10)), window(range(10, 12))])
    assert (outcome.windows_duplicate, len(outcome.accepted)) == (1, 1)
    assert await made.count("raw_samples") == 12


async def test_a_batch_of_the_same_id_with_other_content_is_quarantined_and_alarms(
    made: Aggregator,
) -> None:
    await made.submit([window(range(10))], "bat_one")
    forged = window(range(10), values={"cpu_ns": [0] * 10})
    with pytest.raises(AlreadyExists):
        await made.submit([forged], "bat_one")
    with pytest.raises(AlreadyExists):
        await made.submit([forged], "bat_one")
    assert await made.count("quarantine") == 1
    [row] = await made.database.read(
        lambda c: store.quarantined(c, "tnt_a", "", 0, PageSpec(size=10))
    )
    assert row["reason"] == QuarantineReason.CONFLICT
    assert await made.count("raw_samples") == 10
    rows = await made.engine.rows("SELECT max(cpu_ns) FROM raw_samples")
    assert rows == [[reading("cpu_ns", 9)]]


async def test_a_window_of_the_same_id_with_other_content_is_quarantined_alone(
    made: Aggregator,
) -> None:
    await made.submit([window(range(10))])
    forged = window(range(10), values={"cpu_ns": [0] * 10})
    outcome = await made.submit([forged, window(range(10, 20))], "bat_two")
    assert [one.window.finding.reason for one in outcome.refused] == [QuarantineReason.CONFLICT]
    assert len(outcome.accepted) == 1


async def test_what_is_false_is_kept_whole_and_not_billed(made: Aggregator) -> None:
    false = window(range(20), values={"cpu_ns": [seq * 10**12 for seq in range(20)]})
    unreadable = window([1, 2], vm_id="vm_2")
    unreadable.seq = b"x"
    true = window(range(10), vm_id="vm_3")
    outcome = await made.submit([false, unreadable, true])
    assert {one.window.finding.reason for one in outcome.refused} == {
        QuarantineReason.CPU_EXCEEDED,
        QuarantineReason.MALFORMED,
    }
    rows = await made.engine.rows("SELECT vm_id, base64Decode(payload_base64) = '' FROM quarantine")
    assert sorted(rows) == [["vm_1", 0], ["vm_2", 0]]
    used = await made.usage.usage(MINE, DAY, by_vm=True)
    assert {row.vm_id for row in used} == {"vm_3"}
    [first, *_] = await made.usage.completeness(MINE, DAY)
    assert (first.vm_id, first.expected, first.received, first.quarantined) == ("vm_1", 20, 0, 20)


async def test_windows_of_one_vm_in_one_batch_are_judged_in_order(made: Aggregator) -> None:
    back = window([20, 21], values={"cpu_ns": [5, 6]})
    outcome = await made.submit([back, window(range(10)), window(range(10, 20))])
    assert [one.window.window_id for one in outcome.accepted] == ["win_vm_1_1_0", "win_vm_1_1_10"]
    [refused] = outcome.refused
    assert refused.window.finding.reason is QuarantineReason.COUNTER_WENT_BACK


async def test_a_late_window_fits_between_those_around_it(made: Aggregator) -> None:
    await made.submit([window(range(10))])
    await made.submit([window(range(20, 30))])
    too_much = window(range(10, 20), values={"cpu_ns": [reading("cpu_ns", 25)] * 10})
    outcome = await made.submit([too_much], "bat_x")
    assert [one.window.finding.reason for one in outcome.refused] == [
        QuarantineReason.COUNTER_WENT_BACK
    ]
    late = window(range(10, 20))
    late.window_id = "win_honest"
    assert len((await made.submit([late])).accepted) == 1


async def test_samples_that_another_window_has_are_refused(made: Aggregator) -> None:
    await made.submit([window(range(10))])
    again = window(range(5, 15))
    outcome = await made.submit([again])
    assert [one.window.finding.reason for one in outcome.refused] == [QuarantineReason.SEQUENCE]


async def test_a_vm_cannot_change_its_tenant(made: Aggregator) -> None:
    await made.submit([window(range(10))])
    outcome = await made.submit([window(range(10, 20), tenant_id="tnt_b")])
    assert [one.window.finding.reason for one in outcome.refused] == [QuarantineReason.IDENTITY]


async def test_a_new_epoch_may_begin_at_zero(made: Aggregator) -> None:
    await made.submit([window(range(10, 20))])
    assert len((await made.submit([window(range(5), boot_epoch=2)])).accepted) == 1


async def test_events_are_stored_once(made: Aggregator) -> None:
    event = samples_pb.LifecycleEvent(
        vm_id="vm_1",
        tenant_id="tnt_a",
        boot_epoch=1,
        type=samples_pb.LifecycleEventType.STARTED,
        at_ns=EPOCH_AT_NS,
        vcpus=2,
    )
    await made.ingest.submit(batch([], batch_id="bat_1", events=[event]))
    await made.ingest.submit(batch([], batch_id="bat_2", events=[event]))
    assert await made.count("lifecycle_events") == 1


async def test_a_batch_that_cannot_be_read_changes_nothing(made: Aggregator) -> None:
    request = batch([window(range(10))])
    request.content_sha256 = b"\0" * 32
    with pytest.raises(InvalidRequest):
        await made.ingest.submit(request)
    assert await made.count("raw_samples") == 0


async def test_a_death_between_the_data_and_the_claim_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = batch([window(range(10))])
    async with aggregator(tmp_path) as first:
        await first.clock.advance(60)

        async def dies(_: object) -> None:
            raise Unavailable("killed before the claim")

        monkeypatch.setattr(first.database, "write", dies)
        with pytest.raises(Unavailable):
            await first.ingest.submit(request)
    async with aggregator(tmp_path) as second:
        await second.clock.advance(60)
        assert await second.count("raw_samples") == 10
        outcome = await second.ingest.submit(request)
        assert not outcome.duplicate
        assert len(outcome.accepted) == 1
        assert await second.count("raw_samples") == 10
        assert await second.count("window_usage") == 1
