"""Every SQL statement on the quarantine and on what was decided about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, RowMapping, and_, or_, select, update

from ironworks.aggregatord.tables import DECISIONS, QUARANTINE
from ironworks.aggregatord.types import Finding, Window
from ironworks.gen.ironworks.aggregatord.v1.batch_pb import QuarantineState
from ironworks.model.pages import PageSpec
from ironworks.storage.upsert import upsert


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedWindow:
    """A window that is about to enter the quarantine; `window` is None if it cannot be read."""

    window_id: str
    vm_id: str
    tenant_id: str
    content_sha256: bytes
    finding: Finding
    window: Window | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What an operator decided about a window in quarantine."""

    idempotency_key: str
    window_id: str
    content_sha256: bytes
    state: QuarantineState
    note: str
    decided_by: str
    decided_at_ns: int


def put_refused(
    connection: Connection, refused: Sequence[RefusedWindow], batch_id: str, now_ns: int
) -> None:
    """Enter windows into the quarantine; those that are in it stay as they are."""
    for one in refused:
        window = one.window
        values = {
            "window_id": one.window_id,
            "content_sha256": one.content_sha256.hex(),
            "batch_id": batch_id,
            "tenant_id": one.tenant_id,
            "vm_id": one.vm_id,
            "deployment_id": window.deployment_id if window else "",
            "boot_epoch": window.key.boot_epoch if window else 0,
            "attached_seq": window.attached_seq if window else 0,
            "first_seq": window.first_seq if window else 0,
            "last_seq": window.last_seq if window else -1,
            "sample_count": len(window) if window else 0,
            "start_at_ns": window.start_at_ns if window else 0,
            "reason": int(one.finding.reason),
            "detail": one.finding.detail,
            "received_at_ns": now_ns,
            "state": int(QuarantineState.OPEN),
        }
        connection.execute(upsert(connection, QUARANTINE).values(values).on_conflict_do_nothing())


def decision_of(connection: Connection, idempotency_key: str) -> Decision | None:
    """The decision that a key was used for."""
    rows = connection.execute(
        select(DECISIONS).where(DECISIONS.c.idempotency_key == idempotency_key)
    )
    row = rows.mappings().one_or_none()
    if row is None:
        return None
    return Decision(
        idempotency_key=row["idempotency_key"],
        window_id=row["window_id"],
        content_sha256=bytes.fromhex(row["content_sha256"]),
        state=QuarantineState(row["state"]),
        note=row["note"],
        decided_by=row["decided_by"],
        decided_at_ns=row["decided_at_ns"],
    )


def put_decision(connection: Connection, decision: Decision) -> None:
    """Enter a decision into the audit, and end the quarantine by it."""
    content = decision.content_sha256.hex()
    connection.execute(
        DECISIONS.insert().values(
            idempotency_key=decision.idempotency_key,
            window_id=decision.window_id,
            content_sha256=content,
            state=int(decision.state),
            note=decision.note,
            decided_by=decision.decided_by,
            decided_at_ns=decision.decided_at_ns,
        )
    )
    connection.execute(
        update(QUARANTINE)
        .where(QUARANTINE.c.window_id == decision.window_id, QUARANTINE.c.content_sha256 == content)
        .values(
            state=int(decision.state),
            note=decision.note,
            resolved_by=decision.decided_by,
            resolved_at_ns=decision.decided_at_ns,
        )
    )


def copies(connection: Connection, window_id: str) -> list[RowMapping]:
    """Every content under which a window is in quarantine; rows as in the table."""
    return list(
        connection.execute(
            select(QUARANTINE)
            .where(QUARANTINE.c.window_id == window_id)
            .order_by(QUARANTINE.c.content_sha256)
        ).mappings()
    )


def quarantined(
    connection: Connection, tenant_id: str, vm_id: str, state: int, page: PageSpec
) -> list[RowMapping]:
    """One page of the quarantine and one row more, newest first; rows as in the table."""
    statement = select(QUARANTINE).order_by(
        QUARANTINE.c.received_at_ns.desc(),
        QUARANTINE.c.window_id,
        QUARANTINE.c.content_sha256,
    )
    if tenant_id:
        statement = statement.where(QUARANTINE.c.tenant_id == tenant_id)
    if vm_id:
        statement = statement.where(QUARANTINE.c.vm_id == vm_id)
    if state:
        statement = statement.where(QUARANTINE.c.state == state)
    if page.after:
        at_ns, window_id, content = page.after
        same_time = QUARANTINE.c.received_at_ns == at_ns
        same_window = QUARANTINE.c.window_id == window_id
        statement = statement.where(
            or_(
                QUARANTINE.c.received_at_ns < at_ns,
                and_(same_time, QUARANTINE.c.window_id > window_id),
                and_(same_time, same_window, QUARANTINE.c.content_sha256 > content),
            )
        )
    return list(connection.execute(statement.limit(page.size + 1)).mappings())
