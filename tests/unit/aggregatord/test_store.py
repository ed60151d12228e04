from __future__ import annotations

import pytest

from ironworks.aggregatord import decode, metering, store
from ironworks.aggregatord.store import AcceptedWindow, LedgerBatch
from ironworks.aggregatord.types import HOUR_NS, VmEpoch, Window
from ironworks.gen.ironworks.aggregatord.v1 import batch_pb
from ironworks.model.errors import Aborted
from ironworks.testkit.aggregator import Aggregator
from ironworks.testkit.metering import EPOCH_AT_NS, window

KEY = VmEpoch("vm_1", 1)


def accepted(raw: batch_pb.Window) -> AcceptedWindow:
    made = decode.window_of(raw)
    assert isinstance(made, Window)
    return AcceptedWindow(window=made, summary=metering.summarise(made))


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
    assert await made.database.read(lambda c: store.tenants_of(c, ["vm_1", "vm_2"])) == {
        "vm_1": "tnt_a"
    }


async def test_numbers_that_no_window_has_are_free(made: Aggregator) -> None:
    await put(made, "bat_1", window([10, 11, 15]))

    async def free(first: int, last: int) -> int | None:
        return await made.database.read(lambda c: store.free_in(c, KEY, first, last))

    assert await free(16, 20) is None
    assert await free(0, 9) is None
    assert await free(12, 14) == 3
    assert await free(10, 15) == 3
    assert await free(5, 20) == 13


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


async def test_a_late_window_makes_the_hour_of_the_next_one_dirty_too(made: Aggregator) -> None:
    next_hour = (HOUR_NS - EPOCH_AT_NS % HOUR_NS) // 100_000_000
    await put(made, "bat_1", window(range(next_hour, next_hour + 3)))
    done = await made.database.read(lambda c: store.dirty_hours(c, 10))
    await made.database.write(lambda c: store.clean_hours(c, done))
    await put(made, "bat_2", window(range(3)))
    dirty = await made.database.read(lambda c: store.dirty_hours(c, 10))
    assert [one.hour_ns - EPOCH_AT_NS // HOUR_NS * HOUR_NS for one in dirty] == [0, HOUR_NS]


async def test_numbers_go_on(made: Aggregator) -> None:
    given = [await made.database.write(lambda c: store.next_number(c, "x")) for _ in range(3)]
    assert given == [1, 2, 3]
