from __future__ import annotations

from dataclasses import replace

import pytest

from ironworks.aggregatord.quarantine_store import Decision
from ironworks.aggregatord.types import DAY_NS, Interval, UsageFilter
from ironworks.gen.ironworks.aggregatord.v1 import batch_pb
from ironworks.gen.ironworks.aggregatord.v1.batch_pb import QuarantineState
from ironworks.gen.ironworks.aggregatord.v1.usage_pb import Meter
from ironworks.model.errors import AlreadyExists, FailedPrecondition, InvalidRequest, NotFound
from ironworks.testkit.aggregator import Aggregator
from ironworks.testkit.metering import EPOCH_AT_NS, window

MINE = UsageFilter(tenant_id="tnt_a")
DAY = EPOCH_AT_NS // DAY_NS * DAY_NS
TODAY = Interval(from_ns=DAY, to_ns=DAY + DAY_NS)
WINDOW_ID = "win_vm_1_1_0"
RELEASE = Decision(
    idempotency_key="key-1",
    window_id=WINDOW_ID,
    content_sha256=b"",
    state=QuarantineState.RELEASED,
    note="The host was benchmarked.",
    decided_by="key_operator",
    decided_at_ns=7,
)
REJECT = replace(RELEASE, state=QuarantineState.REJECTED)


def too_busy() -> batch_pb.Window:
    return window(range(10), values={"cpu_ns": [n * 10**9 for n in range(10)]})


async def cpu_ns(made: Aggregator) -> int:
    rows = await made.usage.usage(MINE, TODAY, meters=[Meter.VCPU_USED])
    return sum(row.quantity for row in rows)


async def test_a_released_window_is_billed_and_says_who_released_it(made: Aggregator) -> None:
    await made.submit([too_busy()])
    assert await cpu_ns(made) == 0
    row = await made.quarantine.resolve(RELEASE)
    assert (row["state"], row["note"]) == (QuarantineState.RELEASED, RELEASE.note)
    assert (row["resolved_by"], row["resolved_at_ns"]) == ("key_operator", 7)
    assert await cpu_ns(made) == 9 * 10**9
    assert await made.count("raw_samples") == 10
    [vm] = await made.usage.completeness(MINE, TODAY)
    assert (vm.received, vm.quarantined, vm.gaps) == (10, 0, {})


async def test_a_decision_is_repeated_by_its_key_and_taken_once(made: Aggregator) -> None:
    await made.submit([too_busy()])
    first = await made.quarantine.resolve(RELEASE)
    assert await made.quarantine.resolve(RELEASE) == first
    assert await cpu_ns(made) == 9 * 10**9
    with pytest.raises(AlreadyExists):
        await made.quarantine.resolve(REJECT)
    with pytest.raises(FailedPrecondition, match="released already"):
        await made.quarantine.resolve(replace(REJECT, idempotency_key="key-2"))


async def test_a_rejected_window_is_kept_and_never_billed(made: Aggregator) -> None:
    await made.submit([too_busy()])
    row = await made.quarantine.resolve(REJECT)
    assert row["state"] == QuarantineState.REJECTED
    assert await cpu_ns(made) == 0
    assert await made.count("quarantine") == 1


async def test_samples_of_an_accepted_window_cannot_be_released_again(made: Aggregator) -> None:
    await made.submit([window(range(10))])
    await made.submit([too_busy()], "bat_other")
    with pytest.raises(FailedPrecondition, match="have the samples"):
        await made.quarantine.resolve(RELEASE)
    row = await made.quarantine.resolve(REJECT)
    assert row["state"] == QuarantineState.REJECTED


async def test_what_cannot_be_read_cannot_be_released(made: Aggregator) -> None:
    torn = window(range(10))
    torn.seq = b"x"
    await made.submit([torn])
    with pytest.raises(FailedPrecondition, match="cannot be read"):
        await made.quarantine.resolve(RELEASE)


async def test_of_several_contents_the_one_must_be_named(made: Aggregator) -> None:
    await made.submit([too_busy()])
    other = too_busy()
    other.vcpus = 1
    await made.submit([other], "bat_other")
    with pytest.raises(InvalidRequest, match="2 windows of this id"):
        await made.quarantine.resolve(RELEASE)
    rows = await made.engine.rows("SELECT content_sha256 FROM quarantine FINAL")
    named = replace(RELEASE, content_sha256=bytes.fromhex(rows[0][0]))
    assert (await made.quarantine.resolve(named))["state"] == QuarantineState.RELEASED


@pytest.mark.parametrize(
    "wrong",
    [
        replace(RELEASE, note="  "),
        replace(RELEASE, note="x" * 257),
        replace(RELEASE, state=QuarantineState.OPEN),
        replace(RELEASE, idempotency_key=""),
        replace(RELEASE, idempotency_key="k" * 65),
    ],
)
async def test_a_decision_says_what_and_why(made: Aggregator, wrong: Decision) -> None:
    await made.submit([too_busy()])
    with pytest.raises(InvalidRequest):
        await made.quarantine.resolve(wrong)


async def test_what_is_not_in_quarantine_cannot_be_resolved(made: Aggregator) -> None:
    with pytest.raises(NotFound):
        await made.quarantine.resolve(RELEASE)
