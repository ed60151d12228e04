"""Every SQL statement about assets: functions that take a `Connection`, each in a transaction.

A change of an asset names the revision it was decided on; if the row has moved on, it is refused
with `Aborted` and nothing is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pydantic import TypeAdapter
from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    String,
    and_,
    bindparam,
    func,
    insert,
    or_,
    select,
    update,
)

from ironworks.assetmanagerd.decide import shown_state
from ironworks.assetmanagerd.tables import ASSETS, EVENTS, HORIZON, LABELS, POSITION_KEY
from ironworks.assetmanagerd.types import (
    Asset,
    AssetEvent,
    AssetFilter,
    AssetFormat,
    AssetKind,
    AssetState,
    ImageConfig,
    Who,
)
from ironworks.model.errors import Aborted
from ironworks.model.pages import PageSpec
from ironworks.storage.prepared import Prepared, inserting
from ironworks.storage.upsert import upsert

_LABELS = TypeAdapter(dict[str, str])
_CONFIG = TypeAdapter(ImageConfig)
_DEAD = (AssetState.FAILED.value, AssetState.DELETED.value)
_AnyRow = Row[tuple[object, ...]]
_FEW = 1000

# Every lease runs these.
_SELECT = select(ASSETS)
_BY_ID = _SELECT.where(ASSETS.c.asset_id == bindparam("wanted"))
_BY_IDS = _SELECT.where(ASSETS.c.asset_id.in_(bindparam("wanted", expanding=True)))
_OWN_OR_PLATFORM = ASSETS.c.tenant_id.in_(["", bindparam("tenant", type_=String)])
_READ = Prepared(_BY_ID)
_READ_VISIBLE = Prepared(_BY_ID.where(_OWN_OR_PLATFORM))
_VISIBLE_BY_IDS = _BY_IDS.where(_OWN_OR_PLATFORM)
_INSERT = insert(ASSETS)
_INSERT_LABEL = insert(LABELS)
_INSERT_EVENT = Prepared(inserting(EVENTS, "sequence"))
_USE = Prepared(
    update(ASSETS)
    .where(ASSETS.c.asset_id == bindparam("wanted"), ASSETS.c.revision == bindparam("before"))
    .values(
        state=bindparam("to_state"),
        lease_count=bindparam("leases"),
        last_used_at_ns=bindparam("now_ns"),
        updated_at_ns=bindparam("now_ns"),
        revision=bindparam("after"),
    )
)


def config_text(config: ImageConfig | None) -> str:
    """How an image's configuration is stored; equal ones are equal texts."""
    return "" if config is None else _CONFIG.dump_json(config, exclude_none=True).decode()


def _live_key(tenant_id: str, sha256: str, config: ImageConfig | None) -> str:
    """What makes a record the only one: images of the same files may be run in different ways."""
    text = config_text(config)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16] if text else ""
    return f"{tenant_id}:{sha256}:{digest}" if text else f"{tenant_id}:{sha256}"


def _asset(row: _AnyRow) -> Asset:
    return Asset(
        asset_id=row.asset_id,
        tenant_id=row.tenant_id,
        kind=AssetKind(row.kind),
        format=AssetFormat(row.format) if row.format else None,
        state=AssetState(row.state),
        reason=row.reason,
        size_bytes=row.size_bytes,
        sha256=row.sha256,
        media_type=row.media_type,
        architecture=row.architecture,
        source_digest=row.source_digest,
        build_id=row.build_id,
        image_config=_CONFIG.validate_json(row.image_config) if row.image_config else None,
        labels=_LABELS.validate_json(row.labels) if row.labels != "{}" else {},
        staged_name=row.staged_name,
        staged_by=row.staged_by,
        object_name="" if row.object_name == row.sha256 else row.object_name,
        damage=row.damage,
        lease_count=row.lease_count,
        created_at_ns=row.created_at_ns,
        updated_at_ns=row.updated_at_ns,
        last_used_at_ns=row.last_used_at_ns,
        revision=row.revision,
    )


def _columns(asset: Asset) -> dict[str, object]:
    live = asset.state.value not in _DEAD
    return {
        "tenant_id": asset.tenant_id,
        "kind": asset.kind.value,
        "format": asset.format.value if asset.format else "",
        "state": asset.state.value,
        "reason": asset.reason,
        "size_bytes": asset.size_bytes,
        "sha256": asset.sha256,
        "media_type": asset.media_type,
        "architecture": asset.architecture,
        "source_digest": asset.source_digest,
        "build_id": asset.build_id,
        "image_config": config_text(asset.image_config),
        "labels": _LABELS.dump_json(dict(sorted(asset.labels.items()))).decode(),
        "staged_name": asset.staged_name,
        "staged_by": asset.staged_by,
        "object_name": asset.stored_as,
        "damage": asset.damage,
        "created_at_ns": asset.created_at_ns,
        "updated_at_ns": asset.updated_at_ns,
        "last_used_at_ns": asset.last_used_at_ns,
        "revision": asset.revision,
        "lease_count": asset.lease_count,
        "live_key": _live_key(asset.tenant_id, asset.sha256, asset.image_config) if live else None,
    }


def insert_asset(connection: Connection, asset: Asset, actor: str) -> None:
    """Add a record and the first entry of its history."""
    connection.execute(_INSERT, {"asset_id": asset.asset_id, **_columns(asset)})
    if asset.labels:
        connection.execute(
            _INSERT_LABEL,
            [
                {"asset_id": asset.asset_id, "key": key, "value": value}
                for key, value in asset.labels.items()
            ],
        )
    _record(connection, asset, None, "Registered.", actor)


def change_asset(
    connection: Connection, before: Asset, after: Asset, *, reason: str, actor: str, now_ns: int
) -> Asset:
    """Write `after` over `before`; a change of state goes into the history.

    Raises:
        Aborted: the record is no longer `before`.
    """
    after = replace(after, revision=before.revision + 1, updated_at_ns=now_ns)
    result = connection.execute(
        update(ASSETS)
        .where(ASSETS.c.asset_id == before.asset_id, ASSETS.c.revision == before.revision)
        .values(**_columns(after))
    )
    if result.rowcount != 1:
        raise Aborted(f"Asset {before.asset_id} has changed meanwhile; read it again.")
    if after.state is not before.state:
        _record(connection, after, before.state, reason, actor)
    return after


def use_assets(
    connection: Connection,
    changes: Sequence[tuple[Asset, Asset]],
    *,
    reason: str,
    actor: str,
) -> None:
    """Write what a lease changes, as (before, after): state, number of leases, time of last use.

    Raises:
        Aborted: one of the records is no longer what it was.
    """
    for before, after in changes:
        done = _USE.run(
            connection,
            wanted=before.asset_id,
            before=before.revision,
            to_state=after.state.value,
            leases=after.lease_count,
            now_ns=after.updated_at_ns,
            after=after.revision,
        )
        if not done:
            raise Aborted("An asset has changed meanwhile; repeat the call.")
        if after.state is not before.state:
            _record(connection, after, before.state, reason, actor)


def _record(
    connection: Connection, asset: Asset, before: AssetState | None, reason: str, actor: str
) -> None:
    _INSERT_EVENT.run(
        connection,
        asset_id=asset.asset_id,
        at_ns=asset.updated_at_ns,
        from_state=before.value if before else "",
        to_state=asset.state.value,
        reason=reason,
        actor=actor,
    )


def read_asset(connection: Connection, asset_id: str) -> Asset | None:
    """One record, whoever owns it."""
    return read_assets(connection, [asset_id]).get(asset_id)


def read_assets(connection: Connection, asset_ids: Sequence[str]) -> dict[str, Asset]:
    """Those of the records that exist, by id."""
    if len(asset_ids) == 1:
        rows = _READ.rows(connection, wanted=asset_ids[0])
    else:
        rows = connection.execute(_BY_IDS, {"wanted": list(asset_ids)}).all()
    return {row.asset_id: _asset(row) for row in rows}


def visible_assets(connection: Connection, who: Who, asset_ids: Sequence[str]) -> dict[str, Asset]:
    """Those of the records that `who` may know of, by id.

    The database leaves out the others: a record that is none of the caller's costs what one that
    does not exist costs.
    """
    if who.sees_all:
        return read_assets(connection, asset_ids)
    if len(asset_ids) == 1:
        rows = _READ_VISIBLE.rows(connection, wanted=asset_ids[0], tenant=who.tenant_id)
    else:
        given = {"wanted": list(asset_ids), "tenant": who.tenant_id}
        rows = connection.execute(_VISIBLE_BY_IDS, given).all()
    return {row.asset_id: _asset(row) for row in rows}


def visible_asset(connection: Connection, who: Who, asset_id: str) -> Asset | None:
    """One record, if `who` may know of it."""
    return visible_assets(connection, who, [asset_id]).get(asset_id)


def find_live(
    connection: Connection, tenant_id: str, sha256: str, config: ImageConfig | None = None
) -> Asset | None:
    """The owner's record for these bytes, run in this way, in any state but FAILED and DELETED."""
    row = connection.execute(
        _SELECT.where(ASSETS.c.live_key == _live_key(tenant_id, sha256, config))
    ).one_or_none()
    return None if row is None else _asset(row)


def live_object(connection: Connection, sha256: str) -> str:
    """Name of the object that live records of these bytes share, whoever owns them; or empty."""
    statement = select(ASSETS.c.object_name).where(
        ASSETS.c.sha256 == sha256, ASSETS.c.state.not_in(_DEAD)
    )
    return connection.execute(statement.limit(1)).scalar() or ""


def _labelled(connection: Connection, key: str, value: str) -> ColumnElement[bool]:
    """Whether an asset has a label: beginning with the labels if few have it, else with the assets.

    Databases guess how many have it, and SQLite guesses wrong.
    """
    has_it = select(LABELS.c.asset_id).where(LABELS.c.key == key, LABELS.c.value == value)
    few = has_it.limit(_FEW + 1).subquery()
    if connection.execute(select(func.count()).select_from(few)).scalar_one() <= _FEW:
        return ASSETS.c.asset_id.in_(has_it)
    return has_it.where(LABELS.c.asset_id == ASSETS.c.asset_id).exists()


def _matching(connection: Connection, who: Who, query: AssetFilter) -> list[ColumnElement[bool]]:
    terms: list[ColumnElement[bool]] = []
    if query.states:
        terms.append(_in_states(who, query.states))
    else:
        terms.append(ASSETS.c.state != AssetState.DELETED.value)
    if query.kind:
        terms.append(ASSETS.c.kind == query.kind.value)
    if query.format:
        terms.append(ASSETS.c.format == query.format.value)
    for column, value in (
        (ASSETS.c.source_digest, query.source_digest),
        (ASSETS.c.architecture, query.architecture),
        (ASSETS.c.sha256, query.sha256),
    ):
        if value:
            terms.append(column == value)
    terms.extend(_labelled(connection, key, value) for key, value in query.labels.items())
    return terms


def _in_states(who: Who, states: Sequence[AssetState]) -> ColumnElement[bool]:
    """As `who` is shown the states: where it is told of no use, IN_USE is AVAILABLE."""
    own = {state.value for state in states}
    platforms = {state.value for state in AssetState if shown_state(who, "", state) in states}
    if own == platforms:
        return ASSETS.c.state.in_(own)
    return or_(
        and_(ASSETS.c.tenant_id != "", ASSETS.c.state.in_(own)),
        and_(ASSETS.c.tenant_id == "", ASSETS.c.state.in_(platforms)),
    )


def _visible(who: Who) -> list[ColumnElement[bool]]:
    return [] if who.sees_all else [ASSETS.c.tenant_id.in_(["", who.tenant_id])]


def list_assets(
    connection: Connection, who: Who, query: AssetFilter, page: PageSpec
) -> list[Asset]:
    """Newest first; one more than the page, if there is one more."""
    statement = _SELECT.where(*_matching(connection, who, query), *_visible(who))
    if page.after:
        statement = statement.where(ASSETS.c.asset_id < str(page.after[0]))
    statement = statement.order_by(ASSETS.c.asset_id.desc()).limit(page.size + 1)
    return [_asset(row) for row in connection.execute(statement)]


def newest_assets(
    connection: Connection, who: Who, query: AssetFilter
) -> tuple[Asset | None, Asset | None, int]:
    """Newest of the tenant's own, newest of the platform's, and how many match in all."""
    usable = (AssetState.AVAILABLE, AssetState.IN_USE)
    terms = [
        *_matching(connection, who, replace(query, states=usable)),
        *_visible(who),
        ASSETS.c.damage == "",
    ]

    def newest(*more: ColumnElement[bool]) -> Asset | None:
        statement = _SELECT.where(*terms, *more).order_by(ASSETS.c.asset_id.desc()).limit(1)
        row = connection.execute(statement).one_or_none()
        return None if row is None else _asset(row)

    count = connection.execute(select(func.count()).select_from(ASSETS).where(*terms)).scalar_one()
    return newest(ASSETS.c.tenant_id != ""), newest(ASSETS.c.tenant_id == ""), count


def list_events(
    connection: Connection, asset_id: str, page: PageSpec, *, with_use: bool
) -> list[AssetEvent]:
    """The history of one asset, oldest first; one more than the page, if there is one more.

    Args:
        connection: The transaction.
        asset_id: Which.
        page: Which part.
        with_use: Also that it was leased, and no longer.
    """
    statement = select(EVENTS).where(EVENTS.c.asset_id == asset_id)
    if not with_use:
        statement = statement.where(
            EVENTS.c.to_state != AssetState.IN_USE.value,
            EVENTS.c.from_state != AssetState.IN_USE.value,
        )
    if page.after:
        statement = statement.where(EVENTS.c.sequence > int(page.after[0]))
    rows = connection.execute(statement.order_by(EVENTS.c.sequence).limit(page.size + 1))
    return [_event(row) for row in rows]


def _event(row: _AnyRow) -> AssetEvent:
    return AssetEvent(
        asset_id=row.asset_id,
        sequence=row.sequence,
        at_ns=row.at_ns,
        from_state=AssetState(row.from_state) if row.from_state else None,
        to_state=AssetState(row.to_state),
        reason=row.reason,
        actor=row.actor,
    )


def last_sequence(connection: Connection) -> int:
    """Number of the newest entry of all histories; 0 if there is none."""
    newest = connection.execute(select(func.max(EVENTS.c.sequence))).scalar()
    return max(newest or 0, horizon(connection))


def horizon(connection: Connection) -> int:
    """The histories are complete after this entry; 0 if nothing has been forgotten."""
    return connection.execute(select(HORIZON.c.sequence)).scalar() or 0


def position_key(connection: Connection, fresh: bytes) -> bytes:
    """The key of this registry; `fresh`, from now on, if it has none."""
    connection.execute(
        upsert(connection, POSITION_KEY).values(id=1, key=fresh).on_conflict_do_nothing()
    )
    return connection.execute(select(POSITION_KEY.c.key)).scalar_one()


def events_after(
    connection: Connection, sequence: int, limit: int
) -> list[tuple[AssetEvent, Asset]]:
    """Entries of all histories behind `sequence`, oldest first, each with its asset as it is."""
    statement = select(EVENTS).where(EVENTS.c.sequence > sequence)
    rows = connection.execute(statement.order_by(EVENTS.c.sequence).limit(limit))
    events = [_event(row) for row in rows]
    assets = read_assets(connection, sorted({event.asset_id for event in events}))
    return [(event, assets[event.asset_id]) for event in events]


# --- for reconcilers ------------------------------------------------------------------------------


def in_state(connection: Connection, state: AssetState, limit: int) -> list[Asset]:
    """Records in a state, oldest first."""
    statement = _SELECT.where(ASSETS.c.state == state.value)
    rows = connection.execute(statement.order_by(ASSETS.c.asset_id).limit(limit))
    return [_asset(row) for row in rows]


def after_id(connection: Connection, after: str, limit: int) -> list[Asset]:
    """Records that are not DELETED, by id, from the first behind `after`."""
    statement = _SELECT.where(ASSETS.c.asset_id > after, ASSETS.c.state != AssetState.DELETED.value)
    rows = connection.execute(statement.order_by(ASSETS.c.asset_id).limit(limit))
    return [_asset(row) for row in rows]


def needed_by_platform(connection: Connection) -> frozenset[str]:
    """The platform's newest usable asset of each kind and architecture."""
    statement = (
        select(func.max(ASSETS.c.asset_id))
        .where(
            ASSETS.c.tenant_id == "",
            ASSETS.c.damage == "",
            ASSETS.c.state.in_([AssetState.AVAILABLE.value, AssetState.IN_USE.value]),
        )
        .group_by(ASSETS.c.kind, ASSETS.c.architecture)
    )
    return frozenset(connection.execute(statement).scalars())


def bytes_by_state(connection: Connection) -> Mapping[str, tuple[int, int]]:
    """State → number of records and their bytes."""
    statement = select(ASSETS.c.state, func.count(), func.sum(ASSETS.c.size_bytes)).group_by(
        ASSETS.c.state
    )
    return {row[0]: (int(row[1]), int(row[2])) for row in connection.execute(statement)}


def staged_names(connection: Connection) -> frozenset[str]:
    """Files of the staging area that registrations under way will take."""
    statement = select(ASSETS.c.staged_name).where(ASSETS.c.state == AssetState.REGISTERED.value)
    return frozenset(connection.execute(statement).scalars())
