"""The host directory."""

from __future__ import annotations

import json
from typing import Any, cast

from pydantic import TypeAdapter
from sqlalchemy import Connection, Row, select, update

from ironworks.gatewayd.tables import HOSTS
from ironworks.gatewayd.types import Host, HostState, Resources
from ironworks.model.pages import PageSpec

_RESOURCES = TypeAdapter(Resources)


def _host(row: Row[Any]) -> Host:
    return Host(
        host_id=row.host_id,
        name=row.name,
        metald_url=row.metald_url,
        zone=row.zone,
        region=row.region,
        architecture=row.architecture,
        driver=row.driver,
        acceleration=row.acceleration,
        capacity=_RESOURCES.validate_json(row.capacity),
        allocated=_RESOURCES.validate_json(row.allocated),
        labels=cast("dict[str, str]", json.loads(row.labels)),
        state=HostState(row.state),
        version=row.version,
        registered_at_ns=row.registered_at_ns,
        last_heartbeat_at_ns=row.last_heartbeat_at_ns,
        reported=HostState(row.reported),
    )


def _row(host: Host) -> dict[str, object]:
    return {
        "host_id": host.host_id,
        "name": host.name,
        "metald_url": host.metald_url,
        "zone": host.zone,
        "region": host.region,
        "architecture": host.architecture,
        "driver": host.driver,
        "acceleration": host.acceleration,
        "capacity": _RESOURCES.dump_json(host.capacity).decode(),
        "allocated": _RESOURCES.dump_json(host.allocated).decode(),
        "labels": json.dumps(dict(host.labels), sort_keys=True),
        "state": host.state.value,
        "version": host.version,
        "registered_at_ns": host.registered_at_ns,
        "last_heartbeat_at_ns": host.last_heartbeat_at_ns,
        "reported": host.reported.value,
    }


def put_host(connection: Connection, host: Host) -> None:
    """Insert a host, or replace its row."""
    changed = connection.execute(
        update(HOSTS).where(HOSTS.c.host_id == host.host_id).values(_row(host))
    )
    if changed.rowcount == 0:
        connection.execute(HOSTS.insert().values(_row(host)))


def find_host(connection: Connection, host_id: str) -> Host | None:
    """The host with this id, or None."""
    row = connection.execute(select(HOSTS).where(HOSTS.c.host_id == host_id)).one_or_none()
    return None if row is None else _host(row)


def find_host_by_name(connection: Connection, name: str) -> Host | None:
    """The host with this name, or None."""
    row = connection.execute(select(HOSTS).where(HOSTS.c.name == name)).one_or_none()
    return None if row is None else _host(row)


def all_hosts(connection: Connection) -> list[Host]:
    """The whole directory, by name."""
    return [_host(row) for row in connection.execute(select(HOSTS).order_by(HOSTS.c.name))]


def list_hosts(connection: Connection, page: PageSpec, zone: str) -> list[Host]:
    """One more than a page of hosts, by name; of one zone, or with an empty `zone` of all."""
    query = select(HOSTS)
    if zone:
        query = query.where(HOSTS.c.zone == zone)
    if page.after:
        query = query.where(HOSTS.c.name > page.after[0])
    rows = connection.execute(query.order_by(HOSTS.c.name).limit(page.size + 1))
    return [_host(row) for row in rows]
