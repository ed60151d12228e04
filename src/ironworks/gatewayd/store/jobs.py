"""Jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import Connection, Row, delete, func, select, tuple_, update

from ironworks.gatewayd.tables import JOBS
from ironworks.gatewayd.types import (
    JOB_ENDED,
    Job,
    JobFailure,
    JobKind,
    JobResult,
    JobState,
    Stage,
)
from ironworks.model.errors import NotFound
from ironworks.model.pages import PageSpec

_STAGES = TypeAdapter(tuple[Stage, ...])
_RESULT = TypeAdapter(JobResult)
_FAILURE = TypeAdapter(JobFailure)
_ENDED = [state.value for state in JOB_ENDED]


def _job(row: Row[Any]) -> Job:
    return Job(
        job_id=row.job_id,
        tenant_id=row.tenant_id,
        kind=JobKind(row.kind),
        resource_id=row.resource_id,
        state=JobState(row.state),
        stages=_STAGES.validate_json(row.stages),
        result=None if row.result is None else _RESULT.validate_json(row.result),
        failure=None if row.failure is None else _FAILURE.validate_json(row.failure),
        request_id=row.request_id,
        grace_ms=row.grace_ms,
        created_at_ns=row.created_at_ns,
        updated_at_ns=row.updated_at_ns,
        ended_at_ns=row.ended_at_ns,
        version=row.version,
    )


def _row(job: Job) -> dict[str, object]:
    return {
        "job_id": job.job_id,
        "tenant_id": job.tenant_id,
        "kind": job.kind.value,
        "resource_id": job.resource_id,
        "state": job.state.value,
        "stages": _STAGES.dump_json(job.stages).decode(),
        "result": None if job.result is None else _RESULT.dump_json(job.result).decode(),
        "failure": None if job.failure is None else _FAILURE.dump_json(job.failure).decode(),
        "request_id": job.request_id,
        "grace_ms": job.grace_ms,
        "created_at_ns": job.created_at_ns,
        "updated_at_ns": job.updated_at_ns,
        "ended_at_ns": job.ended_at_ns,
        "version": job.version,
    }


def add_job(connection: Connection, job: Job) -> None:
    """Insert a job."""
    connection.execute(JOBS.insert().values(_row(job)))


def find_job(connection: Connection, job_id: str, tenant_id: str | None) -> Job | None:
    """The job with this id; with a tenant, only if it is that tenant's."""
    query = select(JOBS).where(JOBS.c.job_id == job_id)
    if tenant_id is not None:
        query = query.where(JOBS.c.tenant_id == tenant_id)
    row = connection.execute(query).one_or_none()
    return None if row is None else _job(row)


def change_job(connection: Connection, job_id: str, change: Callable[[Job], Job]) -> Job:
    """Load, decide, write; answers the job as it then is.

    Raises:
        NotFound: there is none with this id.
    """
    job = find_job(connection, job_id, None)
    if job is None:
        raise NotFound("There is no such job.", hint="List jobs to see those that are kept.")
    changed = change(job)
    if changed is not job:
        connection.execute(update(JOBS).where(JOBS.c.job_id == job_id).values(_row(changed)))
    return changed


def list_jobs(
    connection: Connection,
    page: PageSpec,
    *,
    tenant_id: str | None,
    states: Sequence[JobState],
    resource_id: str,
) -> list[Job]:
    """One more than a page of jobs, newest first; without a tenant, of all."""
    query = select(JOBS)
    if tenant_id is not None:
        query = query.where(JOBS.c.tenant_id == tenant_id)
    if states:
        query = query.where(JOBS.c.state.in_([state.value for state in states]))
    if resource_id:
        query = query.where(JOBS.c.resource_id == resource_id)
    if page.after:
        query = query.where(tuple_(JOBS.c.created_at_ns, JOBS.c.job_id) < page.after)
    order = (JOBS.c.created_at_ns.desc(), JOBS.c.job_id.desc())
    rows = connection.execute(query.order_by(*order).limit(page.size + 1))
    return [_job(row) for row in rows]


def unfinished_jobs(connection: Connection) -> list[Job]:
    """All jobs that have not ended, oldest first."""
    query = select(JOBS).where(JOBS.c.state.not_in(_ENDED)).order_by(JOBS.c.created_at_ns)
    return [_job(row) for row in connection.execute(query)]


def count_unfinished(connection: Connection, tenant_id: str) -> int:
    """How many jobs of a tenant have not ended."""
    query = select(func.count()).select_from(JOBS)
    living = JOBS.c.state.not_in(_ENDED)
    return connection.execute(query.where(JOBS.c.tenant_id == tenant_id, living)).scalar_one()


def unfinished_job_ids_of(connection: Connection, resource_id: str) -> list[str]:
    """Jobs about a resource that have not ended."""
    query = select(JOBS.c.job_id).where(
        JOBS.c.resource_id == resource_id, JOBS.c.state.not_in(_ENDED)
    )
    return list(connection.execute(query).scalars())


def forget_jobs(connection: Connection, before_ns: int, limit: int) -> list[str]:
    """Drop jobs that ended before this time, at most `limit`; answers their ids."""
    query = (
        select(JOBS.c.job_id)
        .where(JOBS.c.state.in_(_ENDED), JOBS.c.ended_at_ns < before_ns)
        .limit(limit)
    )
    ids = list(connection.execute(query).scalars())
    connection.execute(delete(JOBS).where(JOBS.c.job_id.in_(ids)))
    return ids
