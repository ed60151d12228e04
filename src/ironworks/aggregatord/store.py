"""Every SQL statement of aggregatord's relational store; each function runs in one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    Table,
    and_,
    delete,
    func,
    or_,
    select,
)
from sqlalchemy.dialects.sqlite import insert

from ironworks.aggregatord.tables import (
    BATCHES,
    COUNTERS,
    DIRTY_HOURS,
    QUARANTINE,
    VMS,
    WINDOWS,
)
from ironworks.aggregatord.types import (
    HOUR_NS,
    Finding,
    Interval,
    Summary,
    UsageFilter,
    VmEpoch,
    Window,
)
from ironworks.gen.ironworks.aggregatord.v1.batch_pb import QuarantineState
from ironworks.model.pages import PageSpec

_VARIABLES_AT_ONCE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerBatch:
    """One batch of the ledger."""

    batch_id: str
    host_id: str
    content_sha256: bytes
    accepted_at_ns: int
    windows_accepted: int
    windows_quarantined: int
    samples_accepted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedWindow:
    """A window that is about to enter the ledger."""

    window: Window
    summary: Summary


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
class DirtyHour:
    """An hour of one epoch whose usage has to be computed anew."""

    key: VmEpoch
    hour_ns: int
    tenant_id: str
    generation: int


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


def get_batch(connection: Connection, batch_id: str) -> LedgerBatch | None:
    """A batch of the ledger."""
    rows = connection.execute(select(BATCHES).where(BATCHES.c.batch_id == batch_id)).mappings()
    row = rows.one_or_none()
    if row is None:
        return None
    return LedgerBatch(
        batch_id=row["batch_id"],
        host_id=row["host_id"],
        content_sha256=bytes.fromhex(row["content_sha256"]),
        accepted_at_ns=row["accepted_at_ns"],
        windows_accepted=row["windows_accepted"],
        windows_quarantined=row["windows_quarantined"],
        samples_accepted=row["samples_accepted"],
    )


def known_windows(connection: Connection, window_ids: Sequence[str]) -> dict[str, bytes]:
    """Of these windows, those in the ledger, with their content hashes."""
    found: dict[str, bytes] = {}
    for start in range(0, len(window_ids), _VARIABLES_AT_ONCE):
        part = window_ids[start : start + _VARIABLES_AT_ONCE]
        rows = connection.execute(
            select(WINDOWS.c.window_id, WINDOWS.c.content_sha256).where(
                WINDOWS.c.window_id.in_(part)
            )
        )
        found.update((row.window_id, bytes.fromhex(row.content_sha256)) for row in rows)
    return found


def tenants_of(connection: Connection, vm_ids: Sequence[str]) -> dict[str, str]:
    """Under which tenants these VMs are known."""
    rows = connection.execute(select(VMS).where(VMS.c.vm_id.in_(vm_ids)))
    return {row.vm_id: row.tenant_id for row in rows}


def free_in(connection: Connection, key: VmEpoch, first_seq: int, last_seq: int) -> int | None:
    """How many numbers of an interval no window has; None if no window reaches into it.

    A window that lies across the interval may have holes; how many of them lie inside is not
    known, so all of them count as free.
    """
    rows = connection.execute(
        select(WINDOWS.c.first_seq, WINDOWS.c.last_seq, WINDOWS.c.sample_count).where(
            WINDOWS.c.vm_id == key.vm_id,
            WINDOWS.c.boot_epoch == key.boot_epoch,
            WINDOWS.c.first_seq <= last_seq,
            WINDOWS.c.last_seq >= first_seq,
        )
    ).all()
    if not rows:
        return None
    size = last_seq - first_seq + 1
    taken = 0
    for row in rows:
        holes = row.last_seq - row.first_seq + 1 - row.sample_count
        inside = min(last_seq, row.last_seq) - max(first_seq, row.first_seq) + 1
        taken += max(0, inside - holes)
    return max(0, size - taken)


def put_batch(
    connection: Connection,
    batch: LedgerBatch,
    accepted: Sequence[AcceptedWindow],
    refused: Sequence[RefusedWindow],
) -> None:
    """Enter a batch with its windows, and note which hours it makes dirty."""
    values = {
        "batch_id": batch.batch_id,
        "host_id": batch.host_id,
        "content_sha256": batch.content_sha256.hex(),
        "accepted_at_ns": batch.accepted_at_ns,
        "windows_accepted": batch.windows_accepted,
        "windows_quarantined": batch.windows_quarantined,
        "samples_accepted": batch.samples_accepted,
    }
    connection.execute(BATCHES.insert().values(values))
    if accepted:
        rows = [_ledger_row(one, batch.batch_id) for one in accepted]
        connection.execute(WINDOWS.insert(), rows)
        owners = {one.window.key.vm_id: one.window.tenant_id for one in accepted}
        connection.execute(
            insert(VMS).on_conflict_do_nothing(),
            [{"vm_id": vm_id, "tenant_id": tenant} for vm_id, tenant in owners.items()],
        )
        _mark_dirty(connection, accepted)
    put_refused(connection, refused, batch.batch_id, batch.accepted_at_ns)


def _ledger_row(one: AcceptedWindow, batch_id: str) -> dict[str, object]:
    summary = one.summary
    return {
        "window_id": summary.window_id,
        "content_sha256": one.window.content_sha256.hex(),
        "batch_id": batch_id,
        "tenant_id": summary.tenant_id,
        "vm_id": summary.key.vm_id,
        "deployment_id": summary.deployment_id,
        "boot_epoch": summary.key.boot_epoch,
        "attached_seq": one.window.attached_seq,
        "first_seq": summary.first_seq,
        "last_seq": summary.last_seq,
        "sample_count": summary.sample_count,
        "partial_count": summary.partial_count,
        "start_at_ns": summary.start_at_ns,
        "end_at_ns": summary.end_at_ns,
    }


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
        connection.execute(insert(QUARANTINE).values(values).on_conflict_do_nothing())


def _mark_dirty(connection: Connection, accepted: Iterable[AcceptedWindow]) -> None:
    """The hour of each window, and the hour of the window after it: its growth begins here."""
    generation = next_number(connection, "generation")
    hours: dict[tuple[VmEpoch, int], str] = {}
    for one in accepted:
        summary = one.summary
        hours[summary.key, summary.start_at_ns // HOUR_NS * HOUR_NS] = summary.tenant_id
        following = connection.execute(
            select(WINDOWS.c.start_at_ns)
            .where(
                WINDOWS.c.vm_id == summary.key.vm_id,
                WINDOWS.c.boot_epoch == summary.key.boot_epoch,
                WINDOWS.c.first_seq > summary.first_seq,
            )
            .order_by(WINDOWS.c.first_seq)
            .limit(1)
        ).scalar_one_or_none()
        if following is not None:
            hours[summary.key, following // HOUR_NS * HOUR_NS] = summary.tenant_id
    for (key, hour_ns), tenant_id in hours.items():
        statement = insert(DIRTY_HOURS).values(
            vm_id=key.vm_id,
            boot_epoch=key.boot_epoch,
            hour_ns=hour_ns,
            tenant_id=tenant_id,
            generation=generation,
        )
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["vm_id", "boot_epoch", "hour_ns"],
                set_={"generation": generation},
            )
        )


def next_number(connection: Connection, name: str) -> int:
    """The next number of a counter, from 1; it survives restarts and never goes back."""
    statement = insert(COUNTERS).values(name=name, value=1)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["name"], set_={"value": COUNTERS.c.value + 1}
        )
    )
    return connection.execute(select(COUNTERS.c.value).where(COUNTERS.c.name == name)).scalar_one()


def dirty_hours(connection: Connection, limit: int) -> list[DirtyHour]:
    """Hours to compute anew, oldest first."""
    rows = connection.execute(
        select(DIRTY_HOURS).order_by(DIRTY_HOURS.c.hour_ns, DIRTY_HOURS.c.vm_id).limit(limit)
    )
    return [
        DirtyHour(
            key=VmEpoch(row.vm_id, row.boot_epoch),
            hour_ns=row.hour_ns,
            tenant_id=row.tenant_id,
            generation=row.generation,
        )
        for row in rows
    ]


def clean_hours(connection: Connection, done: Iterable[DirtyHour]) -> None:
    """Hours have been computed; one that became dirty again meanwhile stays dirty."""
    for one in done:
        connection.execute(
            delete(DIRTY_HOURS).where(
                DIRTY_HOURS.c.vm_id == one.key.vm_id,
                DIRTY_HOURS.c.boot_epoch == one.key.boot_epoch,
                DIRTY_HOURS.c.hour_ns == one.hour_ns,
                DIRTY_HOURS.c.generation == one.generation,
            )
        )


def _selected(table: Table, chosen: UsageFilter, interval: Interval) -> ColumnElement[bool]:
    conditions = [
        table.c.tenant_id == chosen.tenant_id,
        table.c.start_at_ns >= interval.from_ns,
        table.c.start_at_ns < interval.to_ns,
    ]
    if chosen.vm_ids:
        conditions.append(table.c.vm_id.in_(chosen.vm_ids))
    if chosen.deployment_id:
        conditions.append(table.c.deployment_id == chosen.deployment_id)
    return and_(*conditions)


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
    return _counts(connection, WINDOWS, _selected(WINDOWS, chosen, interval))


def quarantined_counts(
    connection: Connection, chosen: UsageFilter, interval: Interval
) -> list[EpochCounts]:
    """Windows in quarantine in an interval, by epoch."""
    where = and_(
        _selected(QUARANTINE, chosen, interval),
        QUARANTINE.c.state == int(QuarantineState.OPEN),
        # A conflicting copy of a window that was accepted lacks nowhere.
        ~select(WINDOWS.c.window_id).where(WINDOWS.c.window_id == QUARANTINE.c.window_id).exists(),
    )
    return _counts(connection, QUARANTINE, where)


def last_seq_before(connection: Connection, key: VmEpoch, first_seq: int) -> int | None:
    """Last sequence number of the epoch's windows before one; None if there is none."""
    return connection.execute(
        select(func.max(WINDOWS.c.last_seq)).where(
            WINDOWS.c.vm_id == key.vm_id,
            WINDOWS.c.boot_epoch == key.boot_epoch,
            WINDOWS.c.first_seq < first_seq,
        )
    ).scalar_one()


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
