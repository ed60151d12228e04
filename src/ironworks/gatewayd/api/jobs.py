"""JobService."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from connectrpc.request import RequestContext
from protobuf import Oneof

from ironworks.gatewayd.api.paging import cut, page_of
from ironworks.gatewayd.app.jobs import JobApp
from ironworks.gatewayd.types import (
    Job,
    JobKind,
    JobResult,
    JobState,
    Stage,
    StageKind,
    StageState,
)
from ironworks.gen.ironworks.gatewayd.v1 import jobs_pb
from ironworks.gen.ironworks.gatewayd.v1.jobs_connect import JobService
from ironworks.runtime.identity import current_caller

_Context = RequestContext[Any, Any]
_KINDS = {kind: jobs_pb.JobKind[kind.name] for kind in JobKind}
_STATES = {state: jobs_pb.JobState[state.name] for state in JobState}
_STATES_BACK = {wire: state for state, wire in _STATES.items()}
_STAGES = {kind: jobs_pb.JobStageKind[kind.name] for kind in StageKind}
_STAGE_STATES = {state: jobs_pb.JobStageState[state.name] for state in StageState}
_DELETIONS = {JobKind.DELETE_DEPLOYMENT, JobKind.DELETE_TENANT, JobKind.DRAIN_HOST}


def _stage_to_wire(stage: Stage) -> jobs_pb.JobStage:
    return jobs_pb.JobStage(
        kind=_STAGES[stage.kind],
        state=_STAGE_STATES[stage.state],
        started_at_ns=stage.started_at_ns,
        ended_at_ns=stage.ended_at_ns,
        detail=stage.detail,
        items_total=stage.items_total,
        items_done=stage.items_done,
    )


def _result_to_wire(job: Job, result: JobResult) -> jobs_pb.JobResult:
    if job.kind in _DELETIONS:
        deletion = jobs_pb.DeletionResult(
            resource_id=job.resource_id, vms_deleted=result.vms_deleted
        )
        return jobs_pb.JobResult(outcome=Oneof("deletion", deletion))
    deployment = jobs_pb.DeploymentResult(
        deployment_id=job.resource_id,
        endpoint=result.endpoint,
        image_digest=result.image_digest,
        build_id=result.build_id,
        rootfs_asset_id=result.rootfs_asset_id,
        build_ms=result.build_ms,
        build_reused=result.build_reused,
        boot_ms=result.boot_ms,
        vm_ids=list(result.vm_ids),
    )
    return jobs_pb.JobResult(outcome=Oneof("deployment", deployment))


def job_to_wire(job: Job) -> jobs_pb.Job:
    """A job as callers see it."""
    wire = jobs_pb.Job(
        job_id=job.job_id,
        tenant_id=job.tenant_id or "",
        kind=_KINDS[job.kind],
        resource_id=job.resource_id,
        state=_STATES[job.state],
        stages=[_stage_to_wire(stage) for stage in job.stages],
        created_at_ns=job.created_at_ns,
        updated_at_ns=job.updated_at_ns,
        ended_at_ns=job.ended_at_ns,
        version=job.version,
        request_id=job.request_id,
    )
    if job.result is not None:
        wire.result = _result_to_wire(job, job.result)
    if job.failure is not None:
        stage = job.failure.stage
        wire.failure = jobs_pb.JobFailure(
            code=job.failure.code,
            message=job.failure.message,
            stage=jobs_pb.JobStageKind.UNSPECIFIED if stage is None else _STAGES[stage],
        )
    return wire


class JobHandlers(JobService):
    """JobService."""

    def __init__(self, app: JobApp) -> None:
        self._app = app

    async def get_job(
        self, request: jobs_pb.GetJobRequest, ctx: _Context
    ) -> jobs_pb.GetJobResponse:
        """See the API's reference."""
        del ctx
        job = await self._app.get(current_caller(), request.job_id)
        return jobs_pb.GetJobResponse(job=job_to_wire(job))

    async def list_jobs(
        self, request: jobs_pb.ListJobsRequest, ctx: _Context
    ) -> jobs_pb.ListJobsResponse:
        """See the API's reference."""
        del ctx
        states = [_STATES_BACK[state] for state in request.states if state in _STATES_BACK]
        filters = (sorted(state.value for state in states), request.resource_id)
        page = page_of(request.page, *filters)
        found = await self._app.list(current_caller(), page, states, request.resource_id)
        items, info = cut(found, page, lambda one: (one.created_at_ns, one.job_id), *filters)
        return jobs_pb.ListJobsResponse(jobs=[job_to_wire(one) for one in items], page=info)

    async def watch_job(
        self, request: jobs_pb.WatchJobRequest, ctx: _Context
    ) -> AsyncIterator[jobs_pb.WatchJobResponse]:
        """See the API's reference."""
        del ctx
        async for job in self._app.watch(current_caller(), request.job_id):
            yield jobs_pb.WatchJobResponse(job=job_to_wire(job))

    async def cancel_job(
        self, request: jobs_pb.CancelJobRequest, ctx: _Context
    ) -> jobs_pb.CancelJobResponse:
        """See the API's reference."""
        del ctx
        job = await self._app.cancel(current_caller(), request.job_id)
        return jobs_pb.CancelJobResponse(job=job_to_wire(job))
