from __future__ import annotations

import pytest

from ironworks.aggregatord import decode, metering, store
from ironworks.aggregatord.store import AcceptedWindow, LedgerBatch
from ironworks.aggregatord.types import HOUR_NS, Baseline, Frontier, VmEpoch, Window
from ironworks.gen.ironworks.aggregatord.v1 import batch_pb
from ironworks.model.errors import Aborted
from ironworks.testkit.aggregator import Aggregator
from ironworks.testkit.metering import EPOCH_AT_NS, window

KEY = VmEpoch("vm_1", 1)


def accepted(raw: batch_pb.Window) -> AcceptedWindow:
    made = decode.window_of(raw)
    assert isinstance(made, Window)
    summary = metering.summarise(made)
    growth = metering.growth(summary, Baseline())
    return AcceptedWindow(window=made, summary=summary, growth=growth)


async def put(made: Aggregator, batch_id: str, *raws: batch_pb.Window) -> None:
    batch = LedgerBatch(
        batch_id=batch_id,
        host_id="hst",
        content_sha256=b"\1" * 32,
        accepted_at_ns=1,
        windows_accepted=len(raws),
        windows_quarantined=0,
        samples_accepted=0,
    )
    windows = [accepted(raw) for raw in raws]
    await made.database.write(lambda c: store.put_batch(c, batch, windows, []))


async def test_a_batch_enters_the_ledger_once(made: Aggregator) -> None:
    await put(made, "bat_1", window(range(3)))
    with pytest.raises(Aborted):
        await put(made, "bat_1", window(range(3, 6)))
    batch = await made.database.read(lambda c: store.get_batch(c, "bat_1"))
    assert batch is not None
    assert (batch.content_sha256, batch.windows_accepted) == (b"\1" * 32, 1)
    assert await made.database.read(lambda c: store.get_batch(c, "bat_2")) is None
    known = await made.database.read(
        lambda c: store.known_windows(c, ["win_vm_1_1_0", "win_vm_1_1_3"] + ["x"] * 2000)
    )
    assert set(known) == {"win_vm_1_1_0"}
    owners = await made.database.read(lambda c: store.owners_of(c, ["vm_1", "vm_2"]))
    assert owners == {"vm_1": ("tnt_a", "hst")}


async def test_numbers_that_no_window_has_are_free(made: Aggregator) -> None:
    await put(made, "bat_1", window([10, 11, 15]))

    other = VmEpoch("vm_2", 1)
    asked = [(KEY, 16, 20), (KEY, 0, 9), (KEY, 12, 14), (KEY, 10, 15), (other, 10, 15)]
    # More than are asked for at once.
    asked += [(KEY, 5, 20)] * 200
    free = await made.database.read(lambda c: store.free_in(c, asked))
    assert free == [None, None, 3, 3, None] + [13] * 200


async def test_an_hour_that_became_dirty_again_stays_dirty(made: Aggregator) -> None:
    await put(made, "bat_1", window(range(3)))
    seen = await made.database.read(lambda c: store.dirty_hours(c, 10))
    assert [one.hour_ns for one in seen] == [EPOCH_AT_NS // HOUR_NS * HOUR_NS]
    await put(made, "bat_2", window(range(3, 6)))
    await made.database.write(lambda c: store.clean_hours(c, seen))
    again = await made.database.read(lambda c: store.dirty_hours(c, 10))
    assert len(again) == 1
    await made.database.write(lambda c: store.clean_hours(c, again))
    assert await made.database.read(lambda c: store.dirty_hours(c, 10)) == []


async def test_windows_that_were_rewritten_make_their_hours_dirty_too(made: Aggregator) -> None:
    next_hour = (HOUR_NS - EPOCH_AT_NS % HOUR_NS) // 100_000_000
    later = accepted(window(range(next_hour, next_hour + 3))).summary
    changes = store.Changes(rewritten=[later])
    one = accepted(window(range(3)))
    await put(made, "bat_1")
    await made.database.write(lambda c: store.put_windows(c, "bat_1", "hst", [one], changes))
    dirty = await made.database.read(lambda c: store.dirty_hours(c, 10))
    first_ns = EPOCH_AT_NS // HOUR_NS * HOUR_NS
    assert [one.hour_ns - first_ns for one in dirty] == [0, HOUR_NS]
    assert await made.database.read(lambda c: store.has_dirty_hours(c, first_ns, first_ns + 1))
    assert not await made.database.read(lambda c: store.has_dirty_hours(c, 0, first_ns))


async def test_where_an_epoch_ends_is_remembered(made: Aggregator) -> None:
    baseline = metering.after(Baseline(), accepted(window([3, 4])).summary)
    end = Frontier(last_seq=4, baseline=baseline)
    for ends in ({KEY: Frontier(last_seq=1, baseline=Baseline())}, {KEY: end}):
        await made.database.write(lambda c, ends=ends: store.put_frontiers(c, ends))
    other = VmEpoch("vm_1", 2)
    assert await made.database.read(lambda c: store.frontiers(c, [KEY, other])) == {KEY: end}
    before_ns = baseline.end_at_ns or 0
    assert await made.database.write(lambda c: store.forget_epochs(c, before_ns)) == 0
    assert await made.database.write(lambda c: store.forget_epochs(c, before_ns + 1)) == 1


async def test_a_credential_ships_for_the_host_it_was_bound_to_last(made: Aggregator) -> None:
    assert await made.database.read(lambda c: store.host_of(c, "billaged")) is None
    for host in ("hst_1", "hst_2"):
        await made.database.write(lambda c, host=host: store.bind_host(c, "billaged", host))
    assert await made.database.read(lambda c: store.host_of(c, "billaged")) == "hst_2"


async def test_numbers_go_on(made: Aggregator) -> None:
    given = [await made.database.write(lambda c: store.next_number(c, "x")) for _ in range(3)]
    assert given == [1, 2, 3]
