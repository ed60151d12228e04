"""gatewayd put together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from ironworks.gatewayd.api.deployments import DeploymentHandlers, GatewayHandlers
from ironworks.gatewayd.api.hosts import HostHandlers
from ironworks.gatewayd.api.jobs import JobHandlers
from ironworks.gatewayd.api.policies import MemberHandlers, PolicyHandlers
from ironworks.gatewayd.api.rest import PREFIX, Rest
from ironworks.gatewayd.api.tenants import ApiKeyHandlers, TenantHandlers, TokenHandlers
from ironworks.gatewayd.app.changes import Changes
from ironworks.gatewayd.app.deploy import Deploy
from ironworks.gatewayd.app.deployments import DeploymentApp
from ironworks.gatewayd.app.edge import EdgeApp
from ironworks.gatewayd.app.hosts import HostApp
from ironworks.gatewayd.app.jobs import QUEUES, JobApp
from ironworks.gatewayd.app.limits import LimitApp
from ironworks.gatewayd.app.removal import Removal
from ironworks.gatewayd.app.remove import Remove
from ironworks.gatewayd.app.tenants import TenantApp
from ironworks.gatewayd.issuer import Issuer
from ironworks.gatewayd.reconcilers import Reconcilers
from ironworks.gatewayd.remote.builder import Builder
from ironworks.gatewayd.remote.vms import Vms
from ironworks.gatewayd.settings import GatewaydSettings
from ironworks.gatewayd.types import JobKind
from ironworks.gen.ironworks.gatewayd.v1.api_keys_connect import ApiKeyServiceASGIApplication
from ironworks.gen.ironworks.gatewayd.v1.deployments_connect import (
    DeploymentServiceASGIApplication,
)
from ironworks.gen.ironworks.gatewayd.v1.hosts_connect import HostDirectoryServiceASGIApplication
from ironworks.gen.ironworks.gatewayd.v1.jobs_connect import JobServiceASGIApplication
from ironworks.gen.ironworks.gatewayd.v1.policies_connect import (
    GatewayServiceASGIApplication,
    PolicyServiceASGIApplication,
)
from ironworks.gen.ironworks.gatewayd.v1.tenants_connect import (
    MemberServiceASGIApplication,
    TenantServiceASGIApplication,
)
from ironworks.gen.ironworks.gatewayd.v1.tokens_connect import TokenServiceASGIApplication
from ironworks.runtime.service import Chassis, Parts
from ironworks.runtime.workflows import Queue, Workflows
from ironworks.storage.schema import ensure_current
from ironworks.storage.sql import Database

QUEUE_POLL_SECONDS = 0.4
"""A job waits 0.2 s for its start on average; two queues at 0.2 s cost 3% of a core for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Apps:
    tenants: TenantApp
    jobs: JobApp
    deployments: DeploymentApp
    hosts: HostApp
    limits: LimitApp
    edge: EdgeApp
    reconcilers: Reconcilers


def _workflows(settings: GatewaydSettings) -> Workflows:
    queues = [
        Queue(
            name=name,
            total=settings.deployment_jobs,
            per_partition=settings.limits.concurrent_jobs,
        )
        for name in QUEUES.values()
    ]
    return Workflows(
        name="gatewayd",
        database_url=settings.workflows_url,
        queues=queues,
        executor_id=settings.gatewayd_executor_id,
        poll_seconds=QUEUE_POLL_SECONDS,
    )


def _apps(
    chassis: Chassis[GatewaydSettings], database: Database, issuer: Issuer, workflows: Workflows
) -> _Apps:
    clock, settings = chassis.clock, chassis.settings
    jobs = JobApp(database=database, workflows=workflows, changes=Changes(), clock=clock)
    edge = EdgeApp(database=database, issuer=issuer, clock=clock, settings=settings)
    vms = Vms(chassis.clients)
    removal = Removal(database=database, vms=vms, clock=clock)
    deploy = Deploy(
        database=database,
        jobs=jobs,
        edge=edge,
        builder=Builder(chassis.clients),
        vms=vms,
        removal=removal,
        clock=clock,
        settings=settings,
    )
    remove = Remove(database=database, jobs=jobs, edge=edge, removal=removal, clock=clock)
    workflows.register(JobKind.CREATE_DEPLOYMENT.value, deploy.run)
    workflows.register(JobKind.DELETE_DEPLOYMENT.value, remove.run)
    reconcilers = Reconcilers(
        database=database,
        workflows=workflows,
        jobs=jobs,
        edge=edge,
        vms=vms,
        removal=removal,
        give_up={
            JobKind.CREATE_DEPLOYMENT: deploy.undo,
            JobKind.DELETE_DEPLOYMENT: remove.give_up,
        },
        clock=clock,
    )
    return _Apps(
        tenants=TenantApp(
            database=database,
            issuer=issuer,
            clock=clock,
            entropy=chassis.entropy,
            settings=settings,
        ),
        jobs=jobs,
        deployments=DeploymentApp(
            database=database,
            jobs=jobs,
            clock=clock,
            entropy=chassis.entropy,
            settings=settings,
        ),
        hosts=HostApp(database=database, clock=clock),
        limits=LimitApp(database=database, clock=clock, settings=settings),
        edge=edge,
        reconcilers=reconcilers,
    )


def _parts(chassis: Chassis[GatewaydSettings], apps: _Apps) -> Parts:
    served = (
        (TenantServiceASGIApplication, TenantHandlers(apps.tenants)),
        (ApiKeyServiceASGIApplication, ApiKeyHandlers(apps.tenants)),
        (TokenServiceASGIApplication, TokenHandlers(apps.tenants)),
        (DeploymentServiceASGIApplication, DeploymentHandlers(apps.deployments, apps.edge)),
        (JobServiceASGIApplication, JobHandlers(apps.jobs)),
        (HostDirectoryServiceASGIApplication, HostHandlers(apps.hosts)),
        (GatewayServiceASGIApplication, GatewayHandlers(apps.edge)),
        (PolicyServiceASGIApplication, PolicyHandlers(apps.limits)),
        (MemberServiceASGIApplication, MemberHandlers()),
    )
    applications = [chassis.application(kind, handlers) for kind, handlers in served]
    rest = Rest(
        applications={one.path.removeprefix("/"): one for one in applications},
        verifier=chassis.verifier,
        clock=chassis.clock,
        entropy=chassis.entropy,
    )

    async def ready() -> Mapping[str, str]:
        return {"envoy": await apps.edge.plane.why_not_ready()}

    return Parts(
        applications=applications,
        reconcilers=apps.reconcilers.all(),
        ready=ready,
        routes={PREFIX: rest},
    )


@asynccontextmanager
async def compose(chassis: Chassis[GatewaydSettings]) -> AsyncGenerator[Parts]:
    """Build gatewayd; what was built is taken down in reverse."""
    settings = chassis.settings
    settings.directory.mkdir(parents=True, exist_ok=True)
    settings.directory.chmod(0o700)
    database = Database(settings.database_url)
    try:
        await asyncio.to_thread(ensure_current, database.engine, "ironworks.gatewayd.migrations")
        issuer = Issuer.open(
            settings.data_dir, settings.trust_domain, chassis.clock, chassis.entropy
        )
        workflows = _workflows(settings)
        apps = _apps(chassis, database, issuer, workflows)
        await apps.tenants.ensure_operator_key()
        await apps.edge.prepare()
        await workflows.start()
        try:
            yield _parts(chassis, apps)
        finally:
            await workflows.stop()
    finally:
        database.close()
