"""Deployments: accepted, shown, asked to go. The work itself is in `deploy` and `remove`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from ironworks.gatewayd import decide
from ironworks.gatewayd.app.jobs import JobApp, scope_of
from ironworks.gatewayd.settings import GatewaydSettings
from ironworks.gatewayd.store import deployments as store
from ironworks.gatewayd.store import jobs as job_store
from ironworks.gatewayd.store import tenants as tenant_store
from ironworks.gatewayd.tables import IDEMPOTENCY
from ironworks.gatewayd.types import (
    Deployment,
    DeploymentSpec,
    DeploymentState,
    Job,
    JobKind,
    JobState,
    Replica,
    TenantState,
)
from ironworks.model.errors import (
    AlreadyExists,
    InvalidRequest,
    NotFound,
    PermissionDenied,
)
from ironworks.model.ids import check_name, new_id
from ironworks.model.pages import PageSpec
from ironworks.runtime.clock import Clock, Entropy
from ironworks.runtime.identity import Caller, current_request_id, current_tenant_id
from ironworks.storage.idempotency import claim
from ironworks.storage.sql import Database

MAX_GRACE_MS = 300_000
_UNIQUE_CHARS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A deployment with its replicas."""

    deployment: Deployment
    replicas: tuple[Replica, ...]


def no_deployment() -> NotFound:
    """The answer for one that does not exist, or belongs to another."""
    return NotFound("There is no such deployment.", hint="List deployments, or check the name.")


class DeploymentApp:
    """Use cases of deployments."""

    def __init__(
        self,
        *,
        database: Database,
        jobs: JobApp,
        clock: Clock,
        entropy: Entropy,
        settings: GatewaydSettings,
    ) -> None:
        self._database = database
        self._jobs = jobs
        self._clock = clock
        self._entropy = entropy
        self._settings = settings

    def _new_job(self, kind: JobKind, tenant_id: str, resource_id: str, grace_ms: int) -> Job:
        now_ns = self._clock.now_ns()
        return Job(
            job_id=new_id("job", self._clock, self._entropy),
            tenant_id=tenant_id,
            kind=kind,
            resource_id=resource_id,
            state=JobState.QUEUED,
            stages=decide.stages_of(kind),
            result=None,
            failure=None,
            request_id=current_request_id(),
            grace_ms=grace_ms,
            created_at_ns=now_ns,
            updated_at_ns=now_ns,
            ended_at_ns=0,
            version=1,
        )

    def _new_deployment(
        self, tenant_id: str, name: str, spec: DeploymentSpec, labels: Mapping[str, str]
    ) -> Deployment:
        now_ns = self._clock.now_ns()
        deployment_id = new_id("dep", self._clock, self._entropy)
        if not name:
            name = f"{decide.name_of_image(spec.image)}-{deployment_id[-_UNIQUE_CHARS:]}"
        return Deployment(
            deployment_id=deployment_id,
            tenant_id=tenant_id,
            name=check_name(name),
            spec=decide.check_spec(spec),
            state=DeploymentState.DEPLOYING,
            reason="",
            host_label=decide.host_label(name, tenant_id),
            image_digest="",
            build_id="",
            rootfs_asset_id="",
            build_ms=0,
            build_reused=False,
            argv=(),
            port=0,
            generation=1,
            job_id="",
            labels=decide.check_labels(labels),
            created_at_ns=now_ns,
            updated_at_ns=now_ns,
        )

    async def create(
        self,
        *,
        name: str,
        spec: DeploymentSpec,
        labels: Mapping[str, str],
        idempotency_key: str,
    ) -> Seen:
        """Accept a deployment and the job that brings it up; both are on disk when this returns."""
        tenant_id = current_tenant_id()
        deployment = self._new_deployment(tenant_id, name, spec, labels)
        job = self._new_job(JobKind.CREATE_DEPLOYMENT, tenant_id, deployment.deployment_id, 0)
        deployment = replace(deployment, job_id=job.job_id)

        def write(connection: Connection) -> Deployment:
            made = claim(
                connection,
                IDEMPOTENCY,
                scope=f"{tenant_id}:CreateDeployment",
                key=idempotency_key,
                request=repr((name, spec, sorted(labels.items()))).encode(),
                resource_id=deployment.deployment_id,
                now_ns=deployment.created_at_ns,
            )
            if made != deployment.deployment_id:
                return store.get_deployment(connection, made)
            self._admit(connection, deployment)
            store.add_deployment(connection, deployment)
            job_store.add_job(connection, job)
            return deployment

        accepted = await self._database.write(write)
        if accepted is deployment:
            # If we die before this, the reconciler of jobs submits it.
            await self._jobs.submit(job)
        return await self._see(accepted)

    def _admit(self, connection: Connection, deployment: Deployment) -> None:
        tenant = tenant_store.find_tenant(connection, deployment.tenant_id)
        if tenant is None or tenant.state is not TenantState.ACTIVE:
            raise PermissionDenied("The tenant may not start anything.", hint="Ask the operator.")
        taken = store.find_deployment(connection, deployment.name, deployment.tenant_id)
        if taken is not None and not self._gives_way(connection, taken):
            raise AlreadyExists(
                f"There is a deployment {deployment.name} already; it is {taken.state.value}.",
                hint="Choose another name, or delete that one first.",
            )
        decide.check_limits(
            self._settings.limits,
            deployments=store.count_deployments(connection, deployment.tenant_id),
            used=store.wanted_by(connection, deployment.tenant_id),
            wanted=deployment.spec,
        )

    def _gives_way(self, connection: Connection, taken: Deployment) -> bool:
        """Whether a deployment of the same name has failed and left nothing: it is Deleted then."""
        closed = store.close_emptied(
            connection, self._clock.now_ns(), DeploymentState.FAILED, taken.deployment_id
        )
        return closed > 0

    async def _see(self, deployment: Deployment) -> Seen:
        replicas = await self._database.read(
            lambda c: store.replicas_of(c, deployment.deployment_id)
        )
        return Seen(deployment=deployment, replicas=tuple(replicas))

    async def _find(self, caller: Caller, id_or_name: str) -> Deployment:
        scope = scope_of(caller)
        found = await self._database.read(lambda c: store.find_deployment(c, id_or_name, scope))
        if found is None:
            raise no_deployment()
        return found

    async def get(self, caller: Caller, id_or_name: str) -> Seen:
        """One deployment with its replicas."""
        return await self._see(await self._find(caller, id_or_name))

    async def list(
        self,
        caller: Caller,
        page: PageSpec,
        states: Sequence[DeploymentState],
        labels: Mapping[str, str],
    ) -> list[Seen]:
        """One more than a page."""
        scope = scope_of(caller)
        wanted = states or [s for s in DeploymentState if s is not DeploymentState.DELETED]

        def read(connection: Connection) -> list[Seen]:
            return [
                Seen(
                    deployment=found,
                    replicas=tuple(store.replicas_of(connection, found.deployment_id)),
                )
                for found in store.list_deployments(
                    connection, page, tenant_id=scope, states=wanted, labels=labels
                )
            ]

        return await self._database.read(read)

    async def delete(self, caller: Caller, id_or_name: str, grace_ms: int) -> str:
        """Accept the deletion; answers its job. A deletion that was accepted is answered again."""
        if not 0 <= grace_ms <= MAX_GRACE_MS:
            raise InvalidRequest(f"grace_ms must be from 0 to {MAX_GRACE_MS}.")
        deployment = await self._find(caller, id_or_name)
        now_ns = self._clock.now_ns()
        job = self._new_job(
            JobKind.DELETE_DEPLOYMENT, deployment.tenant_id, deployment.deployment_id, grace_ms
        )

        def write(connection: Connection) -> str:
            present = store.get_deployment(connection, deployment.deployment_id)
            if present.state is DeploymentState.DELETED:
                return present.job_id
            for job_id in job_store.unfinished_job_ids_of(connection, present.deployment_id):
                other = job_store.find_job(connection, job_id, None)
                if other is not None and other.kind is JobKind.DELETE_DEPLOYMENT:
                    return job_id
                job_store.change_job(connection, job_id, lambda old: decide.cancel_job(old, now_ns))
            job_store.add_job(connection, job)
            store.change_deployment(
                connection,
                present.deployment_id,
                now_ns,
                lambda old: replace(old, job_id=job.job_id),
            )
            return job.job_id

        job_id = await self._database.write(write)
        if job_id == job.job_id:
            await self._jobs.submit(job)
        return job_id
