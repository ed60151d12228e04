"""Every SQL statement of aggregatord's relational store; each function runs in one transaction."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    String,
    Table,
    and_,
    bindparam,
    column,
    delete,
    func,
    literal,
    literal_column,
    select,
    tuple_,
    values,
)

from ironworks.aggregatord.quarantine_store import RefusedWindow, put_refused
from ironworks.aggregatord.tables import (
    BATCHES,
    COUNTERS,
    DIRTY_HOURS,
    EPOCHS,
    HOSTS,
    VMS,
    WINDOWS,
)
from ironworks.aggregatord.types import (
    HOUR_NS,
    Baseline,
    Frontier,
    Growth,
    Interval,
    Summary,
    UsageFilter,
    VmEpoch,
    Window,
)
from ironworks.storage.upsert import upsert

_VARIABLES_AT_ONCE = 500
_INTERVALS_AT_ONCE = _VARIABLES_AT_ONCE // 5


class Owner(NamedTuple):
    """Whose a VM is, and where it runs."""

    tenant_id: str
    host_id: str


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
    windows_late: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedWindow:
    """A window that is about to enter the ledger, and what it adds to usage."""

    window: Window
    summary: Summary
    growth: Growth


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What new windows change beside themselves.

    Attributes:
        ends: Where their epochs end now.
        rewritten: Windows after them whose growth is another now.
    """

    ends: Mapping[VmEpoch, Frontier] = field(default_factory=dict[VmEpoch, Frontier])
    rewritten: Sequence[Summary] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DirtyHour:
    """An hour of one epoch whose usage has to be computed anew."""

    key: VmEpoch
    hour_ns: int
    tenant_id: str
    generation: int


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
        windows_late=row["windows_late"],
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


def owners_of(connection: Connection, vm_ids: Sequence[str]) -> dict[str, Owner]:
    """Under which tenant and on which host these VMs are known."""
    rows = connection.execute(select(VMS).where(VMS.c.vm_id.in_(vm_ids)))
    return {row.vm_id: Owner(row.tenant_id, row.host_id) for row in rows}


def host_of(connection: Connection, credential: str) -> str | None:
    """The host that a credential has shipped for; None if it is new."""
    return connection.execute(
        select(HOSTS.c.host_id).where(HOSTS.c.credential == credential)
    ).scalar_one_or_none()


def bind_host(connection: Connection, credential: str, host_id: str) -> None:
    """From now on the credential ships for this host."""
    statement = upsert(connection, HOSTS).values(credential=credential, host_id=host_id)
    connection.execute(
        statement.on_conflict_do_update(index_elements=["credential"], set_={"host_id": host_id})
    )


def frontiers(connection: Connection, keys: Sequence[VmEpoch]) -> dict[VmEpoch, Frontier]:
    """Where these epochs end; those without a window are left out."""
    found: dict[VmEpoch, Frontier] = {}
    wanted = set(keys)
    vm_ids = sorted({key.vm_id for key in keys})
    for start in range(0, len(vm_ids), _VARIABLES_AT_ONCE):
        part = vm_ids[start : start + _VARIABLES_AT_ONCE]
        for row in connection.execute(select(EPOCHS).where(EPOCHS.c.vm_id.in_(part))):
            key = VmEpoch(row.vm_id, row.boot_epoch)
            if key in wanted:
                baseline = Baseline(**json.loads(row.baseline))
                found[key] = Frontier(last_seq=row.last_seq, baseline=baseline)
    return found


def _told(baseline: Baseline) -> dict[str, object]:
    # `asdict` would copy every number: it took half of a batch's transaction.
    return {one.name: getattr(baseline, one.name) for one in fields(baseline)}


def put_frontiers(connection: Connection, ends: Mapping[VmEpoch, Frontier]) -> None:
    """Say where epochs end now."""
    rows = [
        {
            "vm_id": key.vm_id,
            "boot_epoch": key.boot_epoch,
            "last_seq": end.last_seq,
            "end_at_ns": end.baseline.end_at_ns or 0,
            "baseline": json.dumps(_told(end.baseline), separators=(",", ":")),
        }
        for key, end in ends.items()
    ]
    if rows:
        statement = upsert(connection, EPOCHS)
        new = {name: statement.excluded[name] for name in ("last_seq", "end_at_ns", "baseline")}
        connection.execute(
            statement.on_conflict_do_update(index_elements=["vm_id", "boot_epoch"], set_=new), rows
        )


def free_in(
    connection: Connection, intervals: Sequence[tuple[VmEpoch, int, int]]
) -> list[int | None]:
    """How many numbers of each interval no window has; None if no window reaches into it.

    A window that lies across the interval may have holes; how many of them lie inside is not
    known, so all of them count as free.

    Args:
        connection: Of the transaction.
        intervals: Epoch, first and last number of each.
    """
    taken: dict[int, int] = {}
    for start in range(0, len(intervals), _INTERVALS_AT_ONCE):
        part = intervals[start : start + _INTERVALS_AT_ONCE]
        asked = (
            values(
                column("place", BigInteger),
                column("vm_id", String),
                column("boot_epoch", BigInteger),
                column("first_seq", BigInteger),
                column("last_seq", BigInteger),
            )
            .data([(start + place, *key, *span) for place, (key, *span) in enumerate(part)])
            .cte("asked")
        )
        reaching = select(
            asked.c.place, WINDOWS.c.first_seq, WINDOWS.c.last_seq, WINDOWS.c.sample_count
        ).where(
            WINDOWS.c.vm_id == asked.c.vm_id,
            WINDOWS.c.boot_epoch == asked.c.boot_epoch,
            WINDOWS.c.first_seq <= asked.c.last_seq,
            WINDOWS.c.last_seq >= asked.c.first_seq,
        )
        for row in connection.execute(reaching):
            place: int = row.place
            _, first_seq, last_seq = intervals[place]
            holes = row.last_seq - row.first_seq + 1 - row.sample_count
            inside = min(last_seq, row.last_seq) - max(first_seq, row.first_seq) + 1
            taken[place] = taken.get(place, 0) + max(0, inside - holes)
    return [
        max(0, last_seq - first_seq + 1 - taken[place]) if place in taken else None
        for place, (_, first_seq, last_seq) in enumerate(intervals)
    ]


GENERATION = "generation"
"""The counter of accepted batches."""


def put_batch(
    connection: Connection,
    batch: LedgerBatch,
    accepted: Sequence[AcceptedWindow],
    refused: Sequence[RefusedWindow],
    changes: Changes | None = None,
) -> None:
    """Enter a batch with its windows, and note which hours it makes dirty."""
    row = {
        "batch_id": batch.batch_id,
        "host_id": batch.host_id,
        "content_sha256": batch.content_sha256.hex(),
        "accepted_at_ns": batch.accepted_at_ns,
        "windows_accepted": batch.windows_accepted,
        "windows_quarantined": batch.windows_quarantined,
        "samples_accepted": batch.samples_accepted,
        "windows_late": batch.windows_late,
    }
    connection.execute(BATCHES.insert().values(row))
    put_windows(connection, batch.batch_id, batch.host_id, accepted, changes or Changes())
    put_refused(connection, refused, batch.batch_id, batch.accepted_at_ns)


def put_windows(
    connection: Connection,
    batch_id: str,
    host_id: str,
    accepted: Sequence[AcceptedWindow],
    changes: Changes,
) -> None:
    """Enter windows, whose VMs they are, where their epochs end, and which hours are dirty."""
    if not accepted:
        return
    connection.execute(WINDOWS.insert(), [_ledger_row(one, batch_id) for one in accepted])
    owners = {one.window.key.vm_id: one.window.tenant_id for one in accepted}
    known = upsert(connection, VMS)
    connection.execute(
        known.on_conflict_do_update(
            index_elements=["vm_id"], set_={"host_id": known.excluded.host_id}
        ),
        [
            {"vm_id": vm_id, "tenant_id": tenant_id, "host_id": host_id}
            for vm_id, tenant_id in owners.items()
        ],
    )
    put_frontiers(connection, changes.ends)
    _mark_dirty(connection, [one.summary for one in accepted] + list(changes.rewritten))


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


def _mark_dirty(connection: Connection, changed: Iterable[Summary]) -> None:
    """The hours of windows whose growth is new or has changed."""
    generation = next_number(connection, GENERATION)
    hours = {(one.key, one.start_at_ns // HOUR_NS * HOUR_NS): one.tenant_id for one in changed}
    rows = [
        {
            "vm_id": key.vm_id,
            "boot_epoch": key.boot_epoch,
            "hour_ns": hour_ns,
            "tenant_id": tenant_id,
            "generation": generation,
        }
        for (key, hour_ns), tenant_id in hours.items()
    ]
    connection.execute(
        upsert(connection, DIRTY_HOURS).on_conflict_do_update(
            index_elements=["vm_id", "boot_epoch", "hour_ns"], set_={"generation": generation}
        ),
        rows,
    )


def mark_dirty(connection: Connection, tenant_id: str, interval: Interval) -> int:
    """All hours of an interval that have windows are to be computed anew; answers how many.

    Args:
        connection: Of the transaction.
        tenant_id: Of this tenant only; empty: of all.
        interval: Whole hours.
    """
    # No parameter: PostgreSQL would not know the expression again where it groups by it.
    hour_ns = WINDOWS.c.start_at_ns - WINDOWS.c.start_at_ns % literal_column(str(HOUR_NS))
    names = ["vm_id", "boot_epoch", "hour_ns", "tenant_id", "generation"]
    generation = next_number(connection, GENERATION)
    chosen = select(
        WINDOWS.c.vm_id,
        WINDOWS.c.boot_epoch,
        hour_ns.label("hour_ns"),
        func.min(WINDOWS.c.tenant_id),
        literal(generation),
    ).where(WINDOWS.c.start_at_ns >= interval.from_ns, WINDOWS.c.start_at_ns < interval.to_ns)
    if tenant_id:
        chosen = chosen.where(WINDOWS.c.tenant_id == tenant_id)
    grouped = chosen.group_by(WINDOWS.c.vm_id, WINDOWS.c.boot_epoch, hour_ns)
    return connection.execute(
        upsert(connection, DIRTY_HOURS)
        .from_select(names, grouped)
        .on_conflict_do_update(
            index_elements=["vm_id", "boot_epoch", "hour_ns"], set_={"generation": generation}
        )
    ).rowcount


def next_number(connection: Connection, name: str) -> int:
    """The next number of a counter, from 1; it survives restarts and never goes back."""
    statement = upsert(connection, COUNTERS).values(name=name, value=1)
    return connection.execute(
        statement.on_conflict_do_update(
            index_elements=["name"], set_={"value": COUNTERS.c.value + 1}
        ).returning(COUNTERS.c.value)
    ).scalar_one()


def last_number(connection: Connection, name: str) -> int:
    """The newest number of a counter; 0 if it has given none."""
    return connection.scalar(select(COUNTERS.c.value).where(COUNTERS.c.name == name)) or 0


def dirty_hours(
    connection: Connection, limit: int, after: DirtyHour | None = None
) -> list[DirtyHour]:
    """Hours to compute anew, by hour, VM and epoch; those behind `after`."""
    order = (DIRTY_HOURS.c.hour_ns, DIRTY_HOURS.c.vm_id, DIRTY_HOURS.c.boot_epoch)
    wanted = select(DIRTY_HOURS).order_by(*order).limit(limit)
    if after is not None:
        place = tuple_(*order) > (after.hour_ns, after.key.vm_id, after.key.boot_epoch)
        wanted = wanted.where(place)
    return [
        DirtyHour(
            key=VmEpoch(row.vm_id, row.boot_epoch),
            hour_ns=row.hour_ns,
            tenant_id=row.tenant_id,
            generation=row.generation,
        )
        for row in connection.execute(wanted)
    ]


def clean_hours(connection: Connection, done: Iterable[DirtyHour]) -> None:
    """Hours have been computed; one that became dirty again meanwhile stays dirty."""
    rows = [
        {
            "vm": one.key.vm_id,
            "epoch": one.key.boot_epoch,
            "hour": one.hour_ns,
            "as": one.generation,
        }
        for one in done
    ]
    if rows:
        connection.execute(
            delete(DIRTY_HOURS).where(
                DIRTY_HOURS.c.vm_id == bindparam("vm"),
                DIRTY_HOURS.c.boot_epoch == bindparam("epoch"),
                DIRTY_HOURS.c.hour_ns == bindparam("hour"),
                DIRTY_HOURS.c.generation == bindparam("as"),
            ),
            rows,
        )


def has_dirty_hours(connection: Connection, from_ns: int, to_ns: int) -> bool:
    """Whether any hour of an interval has still to be computed."""
    found = connection.execute(
        select(DIRTY_HOURS.c.hour_ns)
        .where(DIRTY_HOURS.c.hour_ns >= from_ns, DIRTY_HOURS.c.hour_ns < to_ns)
        .limit(1)
    )
    return found.first() is not None


def forget_epochs(connection: Connection, before_ns: int) -> int:
    """Drop the ends of epochs that ended before a time; answers how many."""
    return connection.execute(delete(EPOCHS).where(EPOCHS.c.end_at_ns < before_ns)).rowcount


def selected(table: Table, chosen: UsageFilter, interval: Interval) -> ColumnElement[bool]:
    """Rows of windows that begin in an interval."""
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
