"""Every SQL statement on adjustments: what arrived after its day was settled."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, and_, bindparam, or_, select, update

from ironworks.aggregatord.tables import ADJUSTMENTS
from ironworks.aggregatord.types import Adjustment, Interval, UsageFilter, UsageRecord, VmEpoch
from ironworks.gen.ironworks.aggregatord.v1.usage_pb import Meter
from ironworks.storage.upsert import upsert


def settle(connection: Connection, days: Sequence[UsageRecord]) -> None:
    """Remember days as they were settled; those that are remembered stay as they are."""
    rows = [
        {
            "vm_id": day.key.vm_id,
            "boot_epoch": day.key.boot_epoch,
            "day_ns": day.start_ns,
            "meter": int(meter),
            "tenant_id": day.tenant_id,
            "deployment_id": day.deployment_id,
            "settled": str(quantity),
            "adjustment": "0",
            "adjusted_at_ns": 0,
        }
        for day in days
        for meter, quantity in day.quantities.items()
    ]
    if rows:
        connection.execute(upsert(connection, ADJUSTMENTS).on_conflict_do_nothing(), rows)


def adjust(connection: Connection, days: Sequence[UsageRecord], now_ns: int) -> None:
    """Days that were settled are now this: the difference is their adjustment."""
    changed: list[dict[str, str | int]] = []
    for day in days:
        settled = {
            row.meter: int(row.settled)
            for row in connection.execute(
                select(ADJUSTMENTS.c.meter, ADJUSTMENTS.c.settled).where(
                    ADJUSTMENTS.c.vm_id == day.key.vm_id,
                    ADJUSTMENTS.c.boot_epoch == day.key.boot_epoch,
                    ADJUSTMENTS.c.day_ns == day.start_ns,
                )
            )
        }
        changed += [
            {
                "vm": day.key.vm_id,
                "epoch": day.key.boot_epoch,
                "day": day.start_ns,
                "which": int(meter),
                "adjustment": str(quantity - settled[int(meter)]),
                "adjusted_at_ns": now_ns,
            }
            for meter, quantity in day.quantities.items()
            if int(meter) in settled
        ]
    if changed:
        statement = update(ADJUSTMENTS).where(
            ADJUSTMENTS.c.vm_id == bindparam("vm"),
            ADJUSTMENTS.c.boot_epoch == bindparam("epoch"),
            ADJUSTMENTS.c.day_ns == bindparam("day"),
            ADJUSTMENTS.c.meter == bindparam("which"),
        )
        connection.execute(statement, changed)


def adjustments(
    connection: Connection,
    chosen: UsageFilter,
    interval: Interval,
    limit: int,
    after: tuple[int, str, int, int],
) -> list[Adjustment]:
    """Adjustments of days that begin in an interval, by day, VM, epoch and meter."""
    columns = ADJUSTMENTS.c
    keys = (columns.day_ns, columns.vm_id, columns.boot_epoch, columns.meter)
    beyond = [
        and_(
            *[key == value for key, value in zip(keys[:size], after, strict=False)],
            keys[size] > after[size],
        )
        for size in range(len(keys))
    ]
    statement = select(ADJUSTMENTS).where(
        columns.tenant_id == chosen.tenant_id,
        columns.day_ns >= interval.from_ns,
        columns.day_ns < interval.to_ns,
        columns.adjustment != "0",
        or_(*beyond),
    )
    if chosen.vm_ids:
        statement = statement.where(columns.vm_id.in_(chosen.vm_ids))
    if chosen.deployment_id:
        statement = statement.where(columns.deployment_id == chosen.deployment_id)
    return [
        Adjustment(
            tenant_id=row.tenant_id,
            deployment_id=row.deployment_id,
            key=VmEpoch(row.vm_id, row.boot_epoch),
            day_ns=row.day_ns,
            meter=Meter(row.meter),
            settled=int(row.settled),
            adjustment=int(row.adjustment),
            adjusted_at_ns=row.adjusted_at_ns,
        )
        for row in connection.execute(statement.order_by(*keys).limit(limit))
    ]
