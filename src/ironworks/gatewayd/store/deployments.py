"""Deployments and their replicas."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, cast

from pydantic import TypeAdapter
from sqlalchemy import Connection, Row, func, or_, select, true, tuple_, update

from ironworks.gatewayd.tables import DEPLOYMENTS, JOBS, REPLICAS
from ironworks.gatewayd.types import (
    JOB_ENDED,
    Deployment,
    DeploymentSpec,
    DeploymentState,
    Replica,
    ReplicaState,
    Resources,
)
from ironworks.model.errors import NotFound
from ironworks.model.pages import PageSpec

_SPEC = TypeAdapter(DeploymentSpec)
Change: TypeAlias = Callable[[Deployment], Deployment]
_GONE = ReplicaState.DELETED.value
_JOB_ENDED = [state.value for state in JOB_ENDED]


def _deployment(row: Row[Any]) -> Deployment:
    return Deployment(
        deployment_id=row.deployment_id,
        tenant_id=row.tenant_id,
        name=row.name,
        spec=_SPEC.validate_json(row.spec),
        state=DeploymentState(row.state),
        reason=row.reason,
        host_label=row.host_label,
        image_digest=row.image_digest,
        build_id=row.build_id,
        rootfs_asset_id=row.rootfs_asset_id,
        build_ms=row.build_ms,
        build_reused=row.build_reused,
        argv=tuple(cast("list[str]", json.loads(row.argv))),
        port=row.port,
        generation=row.generation,
        job_id=row.job_id,
        labels=cast("dict[str, str]", json.loads(row.labels)),
        created_at_ns=row.created_at_ns,
        updated_at_ns=row.updated_at_ns,
    )


def _deployment_row(deployment: Deployment) -> dict[str, object]:
    return {
        "deployment_id": deployment.deployment_id,
        "tenant_id": deployment.tenant_id,
        "name": deployment.name,
        "spec": _SPEC.dump_json(deployment.spec).decode(),
        "state": deployment.state.value,
        "reason": deployment.reason,
        "host_label": deployment.host_label,
        "image_digest": deployment.image_digest,
        "build_id": deployment.build_id,
        "rootfs_asset_id": deployment.rootfs_asset_id,
        "build_ms": deployment.build_ms,
        "build_reused": deployment.build_reused,
        "argv": json.dumps(deployment.argv),
        "port": deployment.port,
        "generation": deployment.generation,
        "job_id": deployment.job_id,
        "labels": json.dumps(dict(deployment.labels), sort_keys=True),
        "created_at_ns": deployment.created_at_ns,
        "updated_at_ns": deployment.updated_at_ns,
    }


def add_deployment(connection: Connection, deployment: Deployment) -> None:
    """Insert a deployment."""
    connection.execute(DEPLOYMENTS.insert().values(_deployment_row(deployment)))


def find_deployment(
    connection: Connection, id_or_name: str, tenant_id: str | None
) -> Deployment | None:
    """A deployment; with a tenant, by id or living name among that tenant's, else by id only."""
    table = DEPLOYMENTS.c
    if tenant_id is None:
        query = select(DEPLOYMENTS).where(table.deployment_id == id_or_name)
    else:
        named = (table.name == id_or_name) & (table.state != DeploymentState.DELETED.value)
        query = select(DEPLOYMENTS).where(
            table.tenant_id == tenant_id, or_(table.deployment_id == id_or_name, named)
        )
    row = connection.execute(query).first()
    return None if row is None else _deployment(row)


def get_deployment(connection: Connection, deployment_id: str) -> Deployment:
    """The deployment with this id, whoever owns it: for work that stands on its own.

    Raises:
        NotFound: there is none.
    """
    deployment = find_deployment(connection, deployment_id, None)
    if deployment is None:
        raise NotFound("There is no such deployment.")
    return deployment


def change_deployment(
    connection: Connection,
    deployment_id: str,
    now_ns: int,
    change: Change,
) -> Deployment:
    """Load, decide, write; answers the deployment as it then is."""
    deployment = get_deployment(connection, deployment_id)
    changed = change(deployment)
    if changed is deployment:
        return deployment
    changed = replace(changed, updated_at_ns=now_ns)
    connection.execute(
        update(DEPLOYMENTS)
        .where(DEPLOYMENTS.c.deployment_id == deployment_id)
        .values(_deployment_row(changed))
    )
    return changed


def list_deployments(
    connection: Connection,
    page: PageSpec,
    *,
    tenant_id: str | None,
    states: Sequence[DeploymentState],
    labels: Mapping[str, str],
) -> list[Deployment]:
    """One more than a page of deployments, newest first; without a tenant, of all."""
    query = select(DEPLOYMENTS).where(DEPLOYMENTS.c.state.in_([state.value for state in states]))
    if tenant_id is not None:
        query = query.where(DEPLOYMENTS.c.tenant_id == tenant_id)
    if page.after:
        keys = tuple_(DEPLOYMENTS.c.created_at_ns, DEPLOYMENTS.c.deployment_id)
        query = query.where(keys < page.after)
    order = (DEPLOYMENTS.c.created_at_ns.desc(), DEPLOYMENTS.c.deployment_id.desc())
    found: list[Deployment] = []
    for row in connection.execute(query.order_by(*order)):
        deployment = _deployment(row)
        if labels.items() <= deployment.labels.items():
            found.append(deployment)
        if len(found) > page.size:
            break
    return found


def serving_deployments(connection: Connection) -> list[Deployment]:
    """All deployments that may have a route."""
    states = [DeploymentState.RUNNING, DeploymentState.DEGRADED, DeploymentState.UPDATING]
    query = select(DEPLOYMENTS).where(DEPLOYMENTS.c.state.in_([state.value for state in states]))
    return [_deployment(row) for row in connection.execute(query)]


def close_emptied(
    connection: Connection,
    now_ns: int,
    state: DeploymentState = DeploymentState.DELETING,
    deployment_id: str = "",
) -> int:
    """Deployments in a state that have no replica left and no job at work: Deleted.

    Args:
        connection: The transaction.
        now_ns: UTC.
        state: Only those in it.
        deployment_id: Only this one; empty: all.
    """
    at_work = select(JOBS.c.resource_id).where(JOBS.c.state.not_in(_JOB_ENDED))
    filled = select(REPLICAS.c.deployment_id).where(REPLICAS.c.state != _GONE)
    result = connection.execute(
        update(DEPLOYMENTS)
        .where(
            DEPLOYMENTS.c.state == state.value,
            DEPLOYMENTS.c.deployment_id == deployment_id if deployment_id else true(),
            DEPLOYMENTS.c.deployment_id.not_in(filled),
            DEPLOYMENTS.c.deployment_id.not_in(at_work),
        )
        .values(state=DeploymentState.DELETED.value, updated_at_ns=now_ns)
    )
    return result.rowcount


def count_deployments(connection: Connection, tenant_id: str) -> int:
    """How many deployments of a tenant are not deleted."""
    query = select(func.count()).select_from(DEPLOYMENTS)
    living = DEPLOYMENTS.c.state != DeploymentState.DELETED.value
    return connection.execute(
        query.where(DEPLOYMENTS.c.tenant_id == tenant_id, living)
    ).scalar_one()


def wanted_by(connection: Connection, tenant_id: str) -> Resources:
    """What all living deployments of a tenant ask for, placed or not."""
    living = [DeploymentState.DELETED.value, DeploymentState.FAILED.value]
    query = select(DEPLOYMENTS.c.spec).where(
        DEPLOYMENTS.c.tenant_id == tenant_id, DEPLOYMENTS.c.state.not_in(living)
    )
    total = Resources()
    for text in connection.execute(query).scalars():
        spec = _SPEC.validate_json(text)
        total = total + Resources(
            vcpus=spec.vcpus * spec.replicas,
            memory_bytes=spec.memory_bytes * spec.replicas,
            disk_bytes=spec.disk_bytes * spec.replicas,
            vms=spec.replicas,
        )
    return total


def _replica(row: Row[Any]) -> Replica:
    return Replica(
        vm_id=row.vm_id,
        deployment_id=row.deployment_id,
        tenant_id=row.tenant_id,
        index=row.place,
        generation=row.generation,
        host_id=row.host_id,
        zone=row.zone,
        state=ReplicaState(row.state),
        reason=row.reason,
        address=row.address,
        resources=Resources(
            vcpus=row.vcpus, memory_bytes=row.memory_bytes, disk_bytes=row.disk_bytes, vms=1
        ),
        boot_ordered_at_ns=row.boot_ordered_at_ns,
        boot_ms=row.boot_ms,
    )


def _replica_row(replica: Replica) -> dict[str, object]:
    return {
        "vm_id": replica.vm_id,
        "deployment_id": replica.deployment_id,
        "tenant_id": replica.tenant_id,
        "place": replica.index,
        "generation": replica.generation,
        "host_id": replica.host_id,
        "zone": replica.zone,
        "state": replica.state.value,
        "reason": replica.reason,
        "address": replica.address,
        "vcpus": replica.resources.vcpus,
        "memory_bytes": replica.resources.memory_bytes,
        "disk_bytes": replica.resources.disk_bytes,
        "boot_ordered_at_ns": replica.boot_ordered_at_ns,
        "boot_ms": replica.boot_ms,
    }


def add_replica(connection: Connection, replica: Replica) -> None:
    """Insert a replica."""
    connection.execute(REPLICAS.insert().values(_replica_row(replica)))


def change_replica(
    connection: Connection, vm_id: str, change: Callable[[Replica], Replica]
) -> Replica:
    """Load, decide, write; answers the replica as it then is.

    Raises:
        NotFound: there is none with this VM.
    """
    row = connection.execute(select(REPLICAS).where(REPLICAS.c.vm_id == vm_id)).one_or_none()
    if row is None:
        raise NotFound("There is no such replica.")
    changed = change(_replica(row))
    connection.execute(
        update(REPLICAS).where(REPLICAS.c.vm_id == vm_id).values(_replica_row(changed))
    )
    return changed


def replicas_of(connection: Connection, deployment_id: str) -> list[Replica]:
    """The replicas of a deployment that are not deleted, in order."""
    query = (
        select(REPLICAS)
        .where(REPLICAS.c.deployment_id == deployment_id, REPLICAS.c.state != _GONE)
        .order_by(REPLICAS.c.generation, REPLICAS.c.place)
    )
    return [_replica(row) for row in connection.execute(query)]


def replicas_in(connection: Connection, states: Sequence[ReplicaState]) -> list[Replica]:
    """All replicas in these states."""
    query = select(REPLICAS).where(REPLICAS.c.state.in_([state.value for state in states]))
    return [_replica(row) for row in connection.execute(query)]


def placed_by_host(connection: Connection) -> dict[str, Resources]:
    """By host, what the replicas there have reserved."""
    query = (
        select(
            REPLICAS.c.host_id,
            func.sum(REPLICAS.c.vcpus),
            func.sum(REPLICAS.c.memory_bytes),
            func.sum(REPLICAS.c.disk_bytes),
            func.count(),
        )
        .where(REPLICAS.c.state != _GONE)
        .group_by(REPLICAS.c.host_id)
    )
    return {
        host_id: Resources(
            vcpus=int(vcpus), memory_bytes=int(memory), disk_bytes=int(disk), vms=int(count)
        )
        for host_id, vcpus, memory, disk, count in connection.execute(query)
    }
