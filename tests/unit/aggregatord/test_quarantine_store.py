from __future__ import annotations

import pytest

from ironworks.aggregatord import quarantine_store
from ironworks.aggregatord.quarantine_store import Decision, RefusedWindow
from ironworks.aggregatord.types import Finding
from ironworks.gen.ironworks.aggregatord.v1.batch_pb import QuarantineReason, QuarantineState
from ironworks.model.errors import Aborted
from ironworks.model.pages import PageSpec
from ironworks.testkit.aggregator import Aggregator


def refused(content: bytes) -> RefusedWindow:
    return RefusedWindow(
        window_id="win_1",
        vm_id="vm_1",
        tenant_id="tnt_a",
        content_sha256=content,
        finding=Finding(reason=QuarantineReason.CLOCK, detail="late"),
    )


DECISION = Decision(
    idempotency_key="k",
    window_id="win_1",
    content_sha256=b"\1" * 32,
    state=QuarantineState.REJECTED,
    note="no",
    decided_by="op",
    decided_at_ns=9,
)


async def put(made: Aggregator) -> None:
    for at_ns, content in ((5, b"\1" * 32), (6, b"\2" * 32), (7, b"\1" * 32)):
        await made.database.write(
            lambda c, at=at_ns, sha=content: quarantine_store.put_refused(
                c, [refused(sha)], "bat_1", at
            )
        )


async def test_what_is_in_quarantine_stays_as_it_came_first(made: Aggregator) -> None:
    await put(made)
    rows = await made.database.read(lambda c: quarantine_store.copies(c, "win_1"))
    assert [row["received_at_ns"] for row in rows] == [5, 6]
    page = PageSpec(size=10)
    rows = await made.database.read(lambda c: quarantine_store.quarantined(c, "", "", 0, page))
    assert [row["received_at_ns"] for row in rows] == [6, 5]


async def test_a_decision_ends_the_quarantine_of_one_content_and_is_audited(
    made: Aggregator,
) -> None:
    await put(made)
    await made.database.write(lambda c: quarantine_store.put_decision(c, DECISION))
    rows = await made.database.read(lambda c: quarantine_store.copies(c, "win_1"))
    assert [row["state"] for row in rows] == [QuarantineState.REJECTED, QuarantineState.OPEN]
    found = await made.database.read(lambda c: quarantine_store.decision_of(c, "k"))
    assert found == DECISION
    assert await made.database.read(lambda c: quarantine_store.decision_of(c, "x")) is None
    with pytest.raises(Aborted):
        await made.database.write(lambda c: quarantine_store.put_decision(c, DECISION))
