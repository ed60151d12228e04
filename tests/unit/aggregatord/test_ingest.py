from __future__ import annotations

from pathlib import Path

import pytest

from ironworks.aggregatord import quarantine_store, store
from ironworks.aggregatord.ingest import Ingest
from ironworks.aggregatord.tenants import Tenants
from ironworks.aggregatord.types import AggregatordSettings, Interval, UsageFilter
from ironworks.aggregatord.vms import Claim, Vms
from ironworks.gen.ironworks.aggregatord.v1 import batch_pb
from ironworks.gen.ironworks.aggregatord.v1.batch_pb import QuarantineReason
from ironworks.gen.ironworks.aggregatord.v1.usage_pb import Meter
from ironworks.gen.ironworks.billaged.v1 import samples_pb
from ironworks.gen.ironworks.gatewayd.v1 import hosts_pb, tenants_pb
from ironworks.gen.ironworks.metald.v1 import vm_pb
from ironworks.model.errors import (
    AlreadyExists,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from ironworks.model.pages import PageSpec
from ironworks.model.units import NS_PER_DAY
from ironworks.runtime.identity import Caller
from ironworks.testkit.aggregator import Aggregator, aggregator
from ironworks.testkit.metering import EPOCH_AT_NS, batch, reading, window

LATE = samples_pb.GapReason.SAMPLER_LATE
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
        lambda c: quarantine_store.quarantined(c, "tnt_a", "", 0, PageSpec(size=10))
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
        assert await second.count("windows") == 1


async def test_a_host_brings_its_own_batches_only(made: Aggregator) -> None:
    bound = Caller(kind="service", subject="billaged", host_id="hst_1")
    await made.ingest.check_host(bound, "hst_1")
    with pytest.raises(PermissionDenied, match="ships for hst_1"):
        await made.ingest.check_host(bound, "hst_2")


async def test_this_machine_s_billaged_ships_for_the_host_it_named_first(
    made: Aggregator,
) -> None:
    own = Caller(kind="service", subject="billaged")
    await made.ingest.check_host(own, "hst_1")
    await made.ingest.check_host(own, "hst_1")
    with pytest.raises(PermissionDenied):
        await made.ingest.check_host(own, "hst_2")


@pytest.mark.parametrize("days", [-1, 1])
async def test_a_clock_that_jumps_a_day_is_quarantined(made: Aggregator, days: int) -> None:
    await made.clock.advance(3 * 86_400)
    await made.submit([window(range(10))])
    jumped = window(range(10, 20), start_at_ns=EPOCH_AT_NS + days * NS_PER_DAY)
    outcome = await made.submit([jumped])
    [refused] = outcome.refused
    assert refused.window.finding.reason is QuarantineReason.CLOCK
    assert "set by" in refused.window.finding.detail
    honest = window(range(20, 30))
    assert len((await made.submit([honest])).accepted) == 1


NAN = 0x7FF8 << 48


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (window([1, 2], values={"cpu_ns": [NAN, NAN]}), QuarantineReason.MALFORMED),
        (window([1, 2], values={"memory_bytes": [NAN, NAN]}), QuarantineReason.MEMORY_EXCEEDED),
        (
            window([1, 2], values={"disk_read_bytes": [(1 << 64) - 5, (1 << 64) - 4]}),
            QuarantineReason.MALFORMED,
        ),
        (window([1, 2], vm_id="'; DROP"), QuarantineReason.IDENTITY),
        (window([1, 2], tenant_id="nobody"), QuarantineReason.IDENTITY),
        (window([1, 2], attached_seq=2), QuarantineReason.SEQUENCE),
        (window([1, 2], attached_seq=-1), QuarantineReason.SEQUENCE),
        (window([3], gaps=[(5, 9, LATE)]), QuarantineReason.MALFORMED),
        (window([3, 4], gaps=[(1, 3, LATE)]), QuarantineReason.MALFORMED),
        (window([9], gaps=[(1, 5, LATE), (4, 6, LATE)]), QuarantineReason.MALFORMED),
        (window([1], boot_epoch=-1), QuarantineReason.MALFORMED),
        (window([1], vcpus=33), QuarantineReason.MALFORMED),
        (window([1], memory_limit_bytes=0), QuarantineReason.MALFORMED),
    ],
)
async def test_what_cannot_be_is_quarantined(
    made: Aggregator, odd: batch_pb.Window, reason: QuarantineReason
) -> None:
    outcome = await made.submit([odd, window(range(5), vm_id="vm_honest")])
    assert [one.window.finding.reason for one in outcome.refused] == [reason]
    assert len(outcome.accepted) == 1
    assert await made.count("quarantine") == 1


async def test_a_late_window_is_billed_and_after_the_grace_period_an_adjustment(
    made: Aggregator,
) -> None:
    await made.submit([window(range(10)), window(range(20, 30))])
    await made.clock.advance(86_400)
    assert (await made.submit([window(range(10, 15))], "bat_in_time")).windows_late == 0
    whole = await made.usage.usage(MINE, DAY)
    assert await made.usage.adjustments(MINE, DAY, 10, (-1, "", 0, 0)) == []
    await made.clock.advance(2 * 86_400)
    late = window(range(30, 40))
    outcome = await made.submit([late], "bat_late")
    assert outcome.windows_late == 1
    now = {row.meter: row.quantity for row in await made.usage.usage(MINE, DAY)}
    before = {row.meter: row.quantity for row in whole}
    found = await made.usage.adjustments(MINE, DAY, 20, (-1, "", 0, 0))
    assert {one.meter: one.adjustment for one in found} == {
        meter: quantity - before[meter] for meter, quantity in now.items()
    }
    assert {one.meter: one.settled for one in found} == before
    batch_in_ledger = await made.database.read(lambda c: store.get_batch(c, "bat_late"))
    assert batch_in_ledger is not None
    assert batch_in_ledger.windows_late == 1


async def test_a_window_that_is_late_by_more_than_raw_samples_are_kept_is_billed(
    made: Aggregator,
) -> None:
    await made.clock.advance(20 * 86_400)
    assert len((await made.submit([window(range(10))])).accepted) == 1
    await made.clock.advance(80 * 86_400)
    outcome = await made.submit([window(range(10), vm_id="vm_2")])
    assert [one.window.finding.reason for one in outcome.refused] == [QuarantineReason.CLOCK]


async def test_a_clock_that_is_put_right_ends_the_quarantine_by_itself(made: Aggregator) -> None:
    slow = EPOCH_AT_NS - NS_PER_DAY
    assert (await made.submit([window(range(10), start_at_ns=slow)])).accepted, "nobody knows yet"
    assert (await made.submit([window(range(20, 30))])).accepted, "it is now, so that was wrong"
    wrong = window(range(30, 40), start_at_ns=slow)
    assert (await made.submit([wrong])).refused, "neither now, nor after the window before"
    assert (await made.submit([window(range(40, 50))])).accepted
    await made.clock.advance(3_600)
    late = await made.submit([window(range(10, 20))])
    assert late.accepted, "it was long ago, but agrees with the window after it"
    # Counters are cumulative: what was used in the window that waits is in those after it.
    span = Interval(from_ns=DAY.from_ns - NS_PER_DAY, to_ns=DAY.to_ns)
    used = {row.meter: row.quantity for row in await made.usage.usage(MINE, span)}
    assert used[Meter.VCPU_USED] == reading("cpu_ns", 49) - reading("cpu_ns", 0)


async def test_the_ledger_has_a_copy_beside_the_data(made: Aggregator) -> None:
    await made.submit([window(range(10))], "bat_1")
    rows = await made.engine.rows("SELECT batch_id, samples_accepted FROM ledger FINAL")
    assert rows == [["bat_1", 10]]


class OnlyTenantA:
    """A gatewayd with one tenant."""

    async def get_tenant(
        self, request: tenants_pb.GetTenantRequest, /
    ) -> tenants_pb.GetTenantResponse:
        if request.tenant_id != "tnt_a":
            raise NotFound("There is no such tenant.")
        return tenants_pb.GetTenantResponse()


async def test_a_new_vm_of_a_tenant_that_does_not_exist_is_quarantined(made: Aggregator) -> None:
    await made.submit([window(range(3), vm_id="vm_known", tenant_id="tnt_gone")])
    ingest = Ingest(
        database=made.database,
        warehouse=made.warehouse,
        clock=made.clock,
        settings=AggregatordSettings(data_dir=Path("/nowhere")),
        tenants=Tenants(OnlyTenantA(), made.clock),
    )
    mine = window(range(3))
    strange = window(range(3), vm_id="vm_2", tenant_id="tnt_nobody")
    # The tenant of a VM that was metered before may be deleted: its last windows still count.
    known = window(range(3, 6), vm_id="vm_known", tenant_id="tnt_gone")
    outcome = await ingest.submit(batch([mine, strange, known]))
    assert {one.window.key.vm_id for one in outcome.accepted} == {"vm_1", "vm_known"}
    [refused] = outcome.refused
    assert (refused.window.vm_id, refused.window.finding.reason) == (
        "vm_2",
        QuarantineReason.IDENTITY,
    )


class OneVm:
    """A gatewayd with one host, and the metald of it with one VM, of tnt_a."""

    async def list_hosts(self, _: hosts_pb.ListHostsRequest, /) -> hosts_pb.ListHostsResponse:
        host = hosts_pb.Host(host_id="hst_test", metald_url="http://host:8080")
        return hosts_pb.ListHostsResponse(hosts=[host])

    async def get_vm(self, request: vm_pb.GetVmRequest, /) -> vm_pb.Vm:
        if request.vm_id != "vm_1":
            raise NotFound("There is no such VM.")
        return vm_pb.Vm(id="vm_1", tenant_id="tnt_a")


def that_asks_for_vms(made: Aggregator) -> Ingest:
    return Ingest(
        database=made.database,
        warehouse=made.warehouse,
        clock=made.clock,
        settings=AggregatordSettings(data_dir=Path("/nowhere")),
        vms=Vms(OneVm(), lambda _: OneVm(), made.clock),
    )


async def test_an_invented_vm_is_quarantined_until_an_operator_releases_it(
    made: Aggregator,
) -> None:
    await made.submit([window(range(3), vm_id="vm_gone")])
    ingest = that_asks_for_vms(made)
    # A VM that was metered before may be forgotten by its host: its last windows still count.
    windows = [window(range(3)), window(range(3), vm_id="vm_invented")]
    windows.append(window(range(3, 6), vm_id="vm_gone"))
    outcome = await ingest.submit(batch(windows))
    assert {one.window.key.vm_id for one in outcome.accepted} == {"vm_1", "vm_gone"}
    [refused] = outcome.refused
    assert (refused.window.vm_id, refused.window.finding.reason) == (
        "vm_invented",
        QuarantineReason.IDENTITY,
    )
    assert "knows no such VM" in refused.window.finding.detail
    used = await made.usage.usage(MINE, DAY, by_vm=True)
    assert {row.vm_id for row in used} == {"vm_1", "vm_gone"}, "never billed"


async def test_a_vm_of_another_tenant_is_none_of_this_one_s(made: Aggregator) -> None:
    ingest = that_asks_for_vms(made)
    outcome = await ingest.submit(batch([window(range(3), tenant_id="tnt_thief")]))
    assert not outcome.accepted
    assert outcome.refused[0].window.finding.reason is QuarantineReason.IDENTITY


async def test_windows_and_events_must_name_the_same_tenant(made: Aggregator) -> None:
    started = samples_pb.LifecycleEvent(
        vm_id="vm_1",
        tenant_id="tnt_other",
        boot_epoch=1,
        type=samples_pb.LifecycleEventType.STARTED,
        at_ns=EPOCH_AT_NS,
    )
    windows = [window(range(3)), window(range(3), vm_id="vm_2")]
    outcome = await made.ingest.submit(batch(windows, events=[started]))
    assert [one.window.key.vm_id for one in outcome.accepted] == ["vm_2"]
    assert outcome.refused[0].window.finding.reason is QuarantineReason.IDENTITY


async def test_whichever_window_comes_first_a_vm_becomes_its_own_tenant_s(made: Aggregator) -> None:
    thief = window(range(3), tenant_id="tnt_thief")
    outcome = await that_asks_for_vms(made).submit(batch([thief, window(range(3, 6))]))
    assert [one.window.tenant_id for one in outcome.accepted] == ["tnt_a"]
    assert [one.window.tenant_id for one in outcome.refused] == ["tnt_thief"]


async def test_who_is_no_vm_of_the_host_or_another_s_is_a_stranger(made: Aggregator) -> None:
    await made.submit([window(range(3), vm_id="vm_other", tenant_id="tnt_b")])
    ingest = that_asks_for_vms(made)
    mine = Claim("vm_1", "tnt_a")
    others = {Claim("vm_invented", "tnt_a"), Claim("vm_other", "tnt_a")}
    assert await ingest.strangers("hst_test", {mine, *others}) == others
    await made.submit([window(range(3))])
    assert await ingest.strangers("hst_other", {mine}) == {mine}
