"""The workflow that removes a deployment: route first, then guests, then VMs.

    begin → settle → unroute → stop → delete → (completed)

Nothing here is undone: what cannot be removed now is removed by the reconciler as soon as its host
answers, and the deployment is Deleting until then.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import cast

from ironworks.gatewayd import decide
from ironworks.gatewayd.app.edge import EdgeApp
from ironworks.gatewayd.app.jobs import JobApp
from ironworks.gatewayd.app.removal import Removal
from ironworks.gatewayd.store import deployments as store
from ironworks.gatewayd.store import jobs as job_store
from ironworks.gatewayd.types import (
    JOB_ENDED,
    DeploymentState,
    JobResult,
    Replica,
    StageKind,
    StageState,
)
from ironworks.model.errors import IronError, Unavailable
from ironworks.model.units import NS_PER_SECOND
from ironworks.runtime.clock import Clock
from ironworks.runtime.workflows import Json, Run
from ironworks.storage.sql import Database

SETTLE_SECONDS = 180.0
LOOK_SECONDS = 0.1
DELETE_PATIENCE_SECONDS = 60.0


class Remove:
    """The steps, and their order."""

    def __init__(
        self, *, database: Database, jobs: JobApp, edge: EdgeApp, removal: Removal, clock: Clock
    ) -> None:
        self._database = database
        self._jobs = jobs
        self._edge = edge
        self._removal = removal
        self._clock = clock

    async def run(self, run: Run, argument: Json) -> Json:
        """The workflow: `{"job_id": …}` → None. Its outcome is the job's."""
        job_id = str(cast("dict[str, object]", argument)["job_id"])
        try:
            await run.step("begin", functools.partial(self._begin, job_id))
            await run.step("settle", functools.partial(self._settle, job_id))
            await run.step("unroute", functools.partial(self._unroute, job_id))
            await run.step("stop", functools.partial(self._stop, job_id))
            await run.step("delete", functools.partial(self._delete, job_id))
        except IronError as error:
            await run.step("fail", functools.partial(self.give_up, job_id, error))
        return None

    async def _begin(self, job_id: str) -> None:
        await self._jobs.begin(job_id)

    async def _settle(self, job_id: str) -> None:
        """Wait for the end of the job that was cancelled for this one."""
        job = await self._jobs.load(job_id)
        until_ns = self._clock.monotonic_ns() + int(SETTLE_SECONDS * NS_PER_SECOND)
        while True:
            others = await self._database.read(
                lambda c: job_store.unfinished_job_ids_of(c, job.resource_id)
            )
            if set(others) <= {job_id}:
                return
            if self._clock.monotonic_ns() > until_ns:
                raise Unavailable(
                    "The job that works on the deployment did not stop in time.",
                    hint="Delete it again in a minute.",
                )
            await self._clock.sleep(LOOK_SECONDS)

    async def _unroute(self, job_id: str) -> None:
        job = await self._jobs.load(job_id)
        await self._jobs.stage(job_id, StageKind.ROUTING, StageState.RUNNING)
        now_ns = self._clock.now_ns()
        await self._database.write(
            lambda c: store.change_deployment(
                c, job.resource_id, now_ns, lambda old: replace(old, state=DeploymentState.DELETING)
            )
        )
        await self._edge.withdraw()
        await self._jobs.stage(job_id, StageKind.ROUTING, StageState.COMPLETED)

    async def _replicas(self, deployment_id: str) -> list[Replica]:
        return await self._database.read(lambda c: store.replicas_of(c, deployment_id))

    async def _stop(self, job_id: str) -> None:
        job = await self._jobs.load(job_id)
        replicas = await self._removal.mark(job.resource_id)
        total = len(replicas)
        await self._jobs.stage(job_id, StageKind.STOPPING, StageState.RUNNING, total=total)
        await self._removal.stop(replicas, job.grace_ms / 1000)
        await self._jobs.stage(job_id, StageKind.STOPPING, StageState.COMPLETED, done=total)

    async def _delete(self, job_id: str) -> None:
        job = await self._jobs.load(job_id)
        deployment_id = job.resource_id
        replicas = await self._replicas(deployment_id)
        stopped = [stage for stage in job.stages if stage.kind is StageKind.STOPPING]
        total = max(len(replicas), *(stage.items_total for stage in stopped))
        await self._jobs.stage(job_id, StageKind.DELETING, StageState.RUNNING, total=total)
        errors = await self._removal.delete_all(replicas, DELETE_PATIENCE_SECONDS)
        if errors:
            raise errors[0]
        now_ns = self._clock.now_ns()
        await self._database.write(
            lambda c: store.change_deployment(
                c, deployment_id, now_ns, lambda old: replace(old, state=DeploymentState.DELETED)
            )
        )
        await self._jobs.stage(job_id, StageKind.DELETING, StageState.COMPLETED, done=total)
        await self._jobs.complete(job_id, JobResult(vms_deleted=total))

    async def give_up(self, job_id: str, error: IronError) -> None:
        """End the job; what is left of the deployment, the reconciler removes."""
        job = await self._jobs.load(job_id)
        if job.state in JOB_ENDED:
            return
        failed = decide.running_stage(job)
        await self._jobs.change(job_id, decide.fail_stage)
        await self._jobs.fail(job_id, error, failed)
