"""How many samples the ledger's windows have, and where they leave some out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, Table, and_, func, or_, select

from ironworks.aggregatord.store import selected
from ironworks.aggregatord.tables import QUARANTINE, WINDOWS
from ironworks.aggregatord.types import Interval, UsageFilter, VmEpoch
from ironworks.gen.ironworks.aggregatord.v1.batch_pb import QuarantineState

VARIABLES_AT_ONCE = 500
MAX_SPAN = 1_200
"""Numbers that a window's samples can have: what claims more, in quarantine, says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """A window that does not begin where those before it have ended.

    Attributes:
        first_seq: First number of the window.
        last_seq: Its last one.
        start_at_ns: Grid instant of its first sample.
        before_seq: Highest number of the windows before it; None: it is the first.
    """

    key: VmEpoch
    first_seq: int
    last_seq: int
    start_at_ns: int
    before_seq: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A window in quarantine."""

    key: VmEpoch
    attached_seq: int
    first_seq: int
    last_seq: int
    start_at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochCounts:
    """Windows of one epoch in an interval, added up."""

    key: VmEpoch
    attached_seq: int
    first_seq: int
    last_seq: int
    samples: int
    partial: int
    end_at_ns: int


def _in_quarantine(chosen: UsageFilter, interval: Interval) -> ColumnElement[bool]:
    return and_(
        selected(QUARANTINE, chosen, interval),
        QUARANTINE.c.state == int(QuarantineState.OPEN),
        QUARANTINE.c.last_seq - QUARANTINE.c.first_seq < MAX_SPAN,
        # A conflicting copy of a window that was accepted lacks nowhere.
        ~select(WINDOWS.c.window_id).where(WINDOWS.c.window_id == QUARANTINE.c.window_id).exists(),
    )


def _counts(connection: Connection, table: Table, where: ColumnElement[bool]) -> list[EpochCounts]:
    ledger = table is WINDOWS
    rows = connection.execute(
        select(
            table.c.vm_id,
            table.c.boot_epoch,
            func.min(table.c.attached_seq).label("attached_seq"),
            func.min(table.c.first_seq).label("first_seq"),
            func.max(table.c.last_seq).label("last_seq"),
            func.sum(table.c.sample_count).label("samples"),
            func.sum(WINDOWS.c.partial_count if ledger else 0).label("partial"),
            func.max(WINDOWS.c.end_at_ns if ledger else 0).label("end_at_ns"),
        )
        .where(where)
        .group_by(table.c.vm_id, table.c.boot_epoch)
    )
    return [
        EpochCounts(
            key=VmEpoch(row.vm_id, row.boot_epoch),
            attached_seq=row.attached_seq,
            first_seq=row.first_seq,
            last_seq=row.last_seq,
            samples=row.samples,
            partial=row.partial,
            end_at_ns=row.end_at_ns,
        )
        for row in rows
    ]


def accepted_counts(
    connection: Connection, chosen: UsageFilter, interval: Interval
) -> list[EpochCounts]:
    """Windows of the ledger in an interval, by epoch."""
    return _counts(connection, WINDOWS, selected(WINDOWS, chosen, interval))


def quarantined_counts(
    connection: Connection, chosen: UsageFilter, interval: Interval
) -> list[EpochCounts]:
    """Windows in quarantine in an interval, by epoch."""
    return _counts(connection, QUARANTINE, _in_quarantine(chosen, interval))


def last_seq_before(connection: Connection, key: VmEpoch, first_seq: int) -> int | None:
    """Last sequence number of the epoch's windows before one; None if there is none."""
    return connection.execute(
        select(func.max(WINDOWS.c.last_seq)).where(
            WINDOWS.c.vm_id == key.vm_id,
            WINDOWS.c.boot_epoch == key.boot_epoch,
            WINDOWS.c.first_seq < first_seq,
        )
    ).scalar_one()


def edges(
    connection: Connection, chosen: UsageFilter, interval: Interval, from_vm: str
) -> list[Edge]:
    """The windows of an interval at which a hole ends, or that lie in another one's hole.

    In the order of VM, epoch and number; the first of each epoch always.
    """
    before = func.max(WINDOWS.c.last_seq).over(
        partition_by=(WINDOWS.c.vm_id, WINDOWS.c.boot_epoch),
        order_by=WINDOWS.c.first_seq,
        rows=(None, -1),
    )
    inner = (
        select(
            WINDOWS.c.vm_id,
            WINDOWS.c.boot_epoch,
            WINDOWS.c.first_seq,
            WINDOWS.c.last_seq,
            WINDOWS.c.start_at_ns,
            before.label("before_seq"),
        )
        .where(and_(selected(WINDOWS, chosen, interval), WINDOWS.c.vm_id >= from_vm))
        .subquery()
    )
    rows = connection.execute(
        select(inner)
        .where(or_(inner.c.before_seq.is_(None), inner.c.first_seq != inner.c.before_seq + 1))
        .order_by(inner.c.vm_id, inner.c.boot_epoch, inner.c.first_seq)
    )
    return [
        Edge(
            key=VmEpoch(row.vm_id, row.boot_epoch),
            first_seq=row.first_seq,
            last_seq=row.last_seq,
            start_at_ns=row.start_at_ns,
            before_seq=row.before_seq,
        )
        for row in rows
    ]


def refusals(
    connection: Connection, chosen: UsageFilter, interval: Interval, from_vm: str
) -> list[Refusal]:
    """Windows in quarantine whose samples are nowhere else, in the order of their numbers."""
    rows = connection.execute(
        select(QUARANTINE)
        .where(and_(_in_quarantine(chosen, interval), QUARANTINE.c.vm_id >= from_vm))
        .order_by(QUARANTINE.c.vm_id, QUARANTINE.c.boot_epoch, QUARANTINE.c.first_seq)
    )
    return [
        Refusal(
            key=VmEpoch(row.vm_id, row.boot_epoch),
            attached_seq=row.attached_seq,
            first_seq=row.first_seq,
            last_seq=row.last_seq,
            start_at_ns=row.start_at_ns,
        )
        for row in rows
    ]


def firsts(connection: Connection, window_ids: Sequence[str]) -> dict[str, int]:
    """The first numbers of windows."""
    found: dict[str, int] = {}
    for start in range(0, len(window_ids), VARIABLES_AT_ONCE):
        part = window_ids[start : start + VARIABLES_AT_ONCE]
        rows = connection.execute(
            select(WINDOWS.c.window_id, WINDOWS.c.first_seq).where(WINDOWS.c.window_id.in_(part))
        )
        found |= {row.window_id: row.first_seq for row in rows}
    return found
