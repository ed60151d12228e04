"""End a quarantine by an operator's decision; every decision is audited."""

from __future__ import annotations

import structlog

from ironworks.aggregatord import quarantine_store, store
from ironworks.aggregatord.ingest import Ingest
from ironworks.aggregatord.quarantine_store import Decision, RowMapping
from ironworks.aggregatord.warehouse import Warehouse
from ironworks.gen.ironworks.aggregatord.v1.batch_pb import QuarantineReason, QuarantineState
from ironworks.model.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
)
from ironworks.storage.sql import Database

_log = structlog.stdlib.get_logger()
MAX_NOTE_CHARS = 256
MAX_KEY_CHARS = 64


class Quarantine:
    """Decides about windows that failed validation."""

    def __init__(self, *, database: Database, warehouse: Warehouse, ingest: Ingest) -> None:
        self._database = database
        self._warehouse = warehouse
        self._ingest = ingest

    async def resolve(self, decision: Decision) -> RowMapping:
        """Release or reject a window; answers its row afterwards. May be repeated with its key.

        Args:
            decision: What an operator has decided. An empty content stands for the only one there
                is.

        Raises:
            InvalidRequest: note or state are none, or it is not clear which content is meant.
            NotFound: the window is not in quarantine.
            AlreadyExists: the key was used for another decision.
            FailedPrecondition: it is resolved already, or cannot be stored.
        """
        _check(decision)
        found = await self._database.read(lambda c: quarantine_store.copies(c, decision.window_id))
        decision = _which(decision, found)
        earlier = await self._database.read(
            lambda c: quarantine_store.decision_of(c, decision.idempotency_key)
        )
        row = _row(found, decision)
        if earlier is not None:
            if _content(earlier) != _content(decision):
                raise AlreadyExists(
                    "This idempotency_key was used for another decision.",
                    hint="Use a new key for a new decision.",
                )
            return row
        if row["state"] != QuarantineState.OPEN:
            state = QuarantineState(row["state"]).name.lower()
            raise FailedPrecondition(f"The window is {state} already; a decision is final.")
        if decision.state == QuarantineState.RELEASED:
            await self._release(decision, row)
        else:
            await self._database.write(lambda c: quarantine_store.put_decision(c, decision))
        _log.warning(
            "quarantine_resolved",
            window_id=decision.window_id,
            vm_id=row["vm_id"],
            state=decision.state.name,
            note=decision.note,
            decided_by=decision.decided_by,
        )
        after = await self._database.read(lambda c: quarantine_store.copies(c, decision.window_id))
        return _row(after, decision)

    async def _release(self, decision: Decision, row: RowMapping) -> None:
        if row["reason"] == QuarantineReason.MALFORMED and row["sample_count"] == 0:
            raise FailedPrecondition("The window cannot be read: it can only be rejected.")
        batch = await self._database.read(lambda c: store.get_batch(c, row["batch_id"]))
        content = await self._warehouse.payload_of(decision.window_id, decision.content_sha256)
        if batch is None or content is None:
            raise DataLoss("What the window was sent as is not in the quarantine any more.")
        await self._ingest.release(content, decision, batch.batch_id, batch.host_id)


def _check(decision: Decision) -> None:
    if decision.state not in {QuarantineState.RELEASED, QuarantineState.REJECTED}:
        raise InvalidRequest("A window is released or rejected; state says neither.")
    if not 1 <= len(decision.note.strip()) <= MAX_NOTE_CHARS:
        raise InvalidRequest(f"A note of 1 to {MAX_NOTE_CHARS} characters must say why.")
    if not 1 <= len(decision.idempotency_key) <= MAX_KEY_CHARS:
        raise InvalidRequest(f"idempotency_key must have 1 to {MAX_KEY_CHARS} characters.")


def _which(decision: Decision, found: list[RowMapping]) -> Decision:
    """The decision, with the content that it is about."""
    if decision.content_sha256:
        return decision
    if len(found) > 1:
        raise InvalidRequest(
            f"{len(found)} windows of this id are in quarantine.",
            hint="content_sha256 says which one is meant; see ListQuarantinedWindows.",
        )
    content = bytes.fromhex(found[0]["content_sha256"]) if found else b""
    return Decision(
        idempotency_key=decision.idempotency_key,
        window_id=decision.window_id,
        content_sha256=content,
        state=decision.state,
        note=decision.note,
        decided_by=decision.decided_by,
        decided_at_ns=decision.decided_at_ns,
    )


def _row(found: list[RowMapping], decision: Decision) -> RowMapping:
    for row in found:
        if row["content_sha256"] == decision.content_sha256.hex():
            return row
    raise NotFound(f"Window {decision.window_id[:64]} is not in quarantine.")


def _content(decision: Decision) -> tuple[object, ...]:
    return decision.window_id, decision.content_sha256, decision.state, decision.note
