"""Every SQL statement about what goes: assets that are collected, bytes, tombstones, history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)

from ironworks.assetmanagerd import store
from ironworks.assetmanagerd.tables import (
    ASSETS,
    DOOMED,
    EVENTS,
    HORIZON,
    LABELS,
    LEASED,
)
from ironworks.assetmanagerd.types import Asset, AssetState

DEAD = (AssetState.FAILED.value, AssetState.DELETED.value)
_BY_LEASES = (AssetState.AVAILABLE.value, AssetState.IN_USE.value)


def delete_assets(
    connection: Connection,
    assets: Sequence[Asset],
    *,
    reasons: Mapping[str, str],
    actor: str,
    now_ns: int,
) -> frozenset[str]:
    """Make tombstones of records that were read in this transaction.

    Returns:
        Names of the objects that no record stands for any more; they are listed for removal.
    """
    if not assets:
        return frozenset()
    connection.execute(
        update(ASSETS)
        .where(ASSETS.c.asset_id.in_([asset.asset_id for asset in assets]))
        .values(
            state=AssetState.DELETED.value,
            live_key=None,
            updated_at_ns=now_ns,
            revision=ASSETS.c.revision + 1,
        )
    )
    connection.execute(
        insert(EVENTS).inline(),
        [
            {
                "asset_id": asset.asset_id,
                "at_ns": now_ns,
                "from_state": asset.state.value,
                "to_state": AssetState.DELETED.value,
                "reason": reasons[asset.asset_id],
                "actor": actor,
            }
            for asset in assets
        ],
    )
    return _doom(connection, frozenset(asset.stored_as for asset in assets), now_ns)


def _doom(connection: Connection, names: frozenset[str], now_ns: int) -> frozenset[str]:
    kept = select(ASSETS.c.object_name).where(ASSETS.c.object_name.in_(names), _is_live())
    known = select(DOOMED.c.object_name).where(DOOMED.c.object_name.in_(names))
    orphaned = names - set(connection.execute(kept).scalars())
    fresh = orphaned - set(connection.execute(known).scalars())
    if fresh:
        rows = [{"object_name": name, "at_ns": now_ns} for name in sorted(fresh)]
        connection.execute(insert(DOOMED), rows)
    return orphaned


def _is_live() -> ColumnElement[bool]:
    return ASSETS.c.state.not_in(DEAD)


def doom_if_orphaned(connection: Connection, name: str, now_ns: int) -> bool:
    """List an object for removal unless a live record stands for it; answers whether it is."""
    return name in _doom(connection, frozenset([name]), now_ns)


def in_use(connection: Connection, name: str) -> bool:
    """Whether a record that is neither FAILED nor DELETED stands for this object."""
    term = and_(ASSETS.c.object_name == name, _is_live())
    return connection.execute(select(exists().where(term))).scalar_one()


def live_objects(connection: Connection, after: str, limit: int) -> dict[str, int]:
    """Name → length of what live records stand for, from the first behind `after`."""
    name = ASSETS.c.object_name
    statement = (
        select(name, func.max(ASSETS.c.size_bytes))
        .where(name > after, _is_live(), ASSETS.c.state != AssetState.REGISTERED.value)
        .group_by(name)
        .order_by(name)
        .limit(limit)
    )
    return {row[0]: row[1] for row in connection.execute(statement)}


def live_records(connection: Connection, name: str) -> list[Asset]:
    """Records that stand for this object, validated."""
    statement = select(ASSETS.c.asset_id).where(
        ASSETS.c.object_name == name, _is_live(), ASSETS.c.state != AssetState.REGISTERED.value
    )
    asset_ids = list(connection.execute(statement).scalars())
    return list(store.read_assets(connection, asset_ids).values())


def damaged_objects(connection: Connection) -> dict[str, int]:
    """Name → length of what is marked as damaged."""
    statement = select(ASSETS.c.object_name, ASSETS.c.size_bytes).where(
        ASSETS.c.damage != "", _is_live()
    )
    return {row[0]: row[1] for row in connection.execute(statement)}


def without_record(connection: Connection, names: Sequence[str], now_ns: int) -> list[str]:
    """Those that no live record stands for and that are not about to be removed."""
    live = select(ASSETS.c.object_name).where(ASSETS.c.object_name.in_(names), _is_live())
    listed = select(DOOMED.c.object_name).where(
        DOOMED.c.object_name.in_(names), DOOMED.c.at_ns <= now_ns
    )
    known = {*connection.execute(live).scalars(), *connection.execute(listed).scalars()}
    return [name for name in names if name not in known]


def miscounted(connection: Connection, active: Mapping[str, int]) -> list[str]:
    """Assets that count another number of leases than hold them.

    Args:
        connection: The transaction in which `active` was read.
        active: Asset → number of ACTIVE leases; without those that none holds.
    """
    counting = select(ASSETS.c.asset_id, ASSETS.c.lease_count).where(ASSETS.c.lease_count != 0)
    counted = {row[0]: row[1] for row in connection.execute(counting)}
    return sorted(
        asset_id
        for asset_id in counted.keys() | active.keys()
        if counted.get(asset_id, 0) != active.get(asset_id, 0)
    )


def doomed(connection: Connection, after: str, limit: int, now_ns: int) -> list[str]:
    """Objects to remove by now, by name, from the first behind `after`."""
    name = DOOMED.c.object_name
    statement = select(name).where(name > after, DOOMED.c.at_ns <= now_ns)
    rows = connection.execute(statement.order_by(name).limit(limit))
    return list(rows.scalars())


def undoom(connection: Connection, name: str) -> None:
    """Take an object off the list: it is gone, or a record stands for it after all."""
    connection.execute(delete(DOOMED).where(DOOMED.c.object_name == name))


# --- history --------------------------------------------------------------------------------------


def forget_events(connection: Connection, before_ns: int, limit: int) -> int:
    """Drop entries older than `before_ns` that only say that leases came and went."""
    old = select(EVENTS.c.sequence).where(
        EVENTS.c.sequence <= _last_before(connection, before_ns),
        or_(
            and_(EVENTS.c.from_state == _BY_LEASES[0], EVENTS.c.to_state == _BY_LEASES[1]),
            and_(EVENTS.c.from_state == _BY_LEASES[1], EVENTS.c.to_state == _BY_LEASES[0]),
        ),
    )
    return _forget(connection, list(connection.execute(old.limit(limit)).scalars()))


def forget_tombstones(connection: Connection, before_ns: int, limit: int) -> int:
    """Drop records that were deleted before `before_ns`, with their history."""
    old = select(ASSETS.c.asset_id).where(
        ASSETS.c.state == AssetState.DELETED.value,
        ASSETS.c.updated_at_ns < before_ns,
        ~exists().where(LEASED.c.asset_id == ASSETS.c.asset_id),
    )
    asset_ids = list(connection.execute(old.limit(limit)).scalars())
    if asset_ids:
        entries = select(EVENTS.c.sequence).where(EVENTS.c.asset_id.in_(asset_ids))
        _forget(connection, list(connection.execute(entries).scalars()))
        connection.execute(delete(LABELS).where(LABELS.c.asset_id.in_(asset_ids)))
        connection.execute(delete(ASSETS).where(ASSETS.c.asset_id.in_(asset_ids)))
    return len(asset_ids)


def _last_before(connection: Connection, before_ns: int) -> int:
    """Number of the last entry that is older; found without reading the history."""
    low, high = 0, connection.execute(select(func.max(EVENTS.c.sequence))).scalar() or 0
    while low < high:
        middle = (low + high + 1) // 2
        first = (
            select(EVENTS.c.at_ns)
            .where(EVENTS.c.sequence >= literal(middle))
            .order_by(EVENTS.c.sequence)
            .limit(1)
        )
        at_ns = connection.execute(first).scalar()
        if at_ns is not None and at_ns < before_ns:
            low = middle
        else:
            high = middle - 1
    return low


def _forget(connection: Connection, sequences: Sequence[int]) -> int:
    if not sequences:
        return 0
    connection.execute(delete(EVENTS).where(EVENTS.c.sequence.in_(sequences)))
    through = max(sequences)
    moved = connection.execute(
        update(HORIZON)
        .where(HORIZON.c.id == 1, HORIZON.c.sequence < through)
        .values(sequence=through)
    )
    if not moved.rowcount and connection.execute(select(HORIZON.c.id)).first() is None:
        connection.execute(insert(HORIZON).values(id=1, sequence=through))
    return len(sequences)
