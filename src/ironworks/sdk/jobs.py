"""Jobs: the public face of long-running work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from ironworks.gen.ironworks.common.v1 import common_pb
from ironworks.gen.ironworks.gatewayd.v1 import jobs_pb
from ironworks.gen.ironworks.gatewayd.v1.jobs_connect import JobServiceClient
from ironworks.model.errors import (
    Aborted,
    DeadlineExceeded,
    IronError,
    Unavailable,
    kind_of,
)
from ironworks.sdk.resource import DEFAULT_LIMIT, Page, Resource, present, walk

ENDED = frozenset({jobs_pb.JobState.COMPLETED, jobs_pb.JobState.FAILED, jobs_pb.JobState.CANCELLED})
MAX_BROKEN_STREAMS = 12
"""Streams that may break in a row, without news between them, before a watcher gives up: with the
waits between them about 40 seconds, longer than a restart of the gateway."""
_MAX_WAIT_SECONDS = 5.0


def outcome_error(job: jobs_pb.Job) -> IronError | None:
    """The error with which an ended job ended; None if it ended well."""
    if job.state is jobs_pb.JobState.CANCELLED:
        return Aborted(f"The job {job.job_id} was cancelled.")
    if job.state is not jobs_pb.JobState.FAILED:
        return None
    failure = job.failure or jobs_pb.JobFailure()
    return kind_of(failure.code)(
        failure.message or f"The job {job.job_id} failed and does not say why."
    )


class Jobs(Resource):
    """Jobs of the caller's tenant."""

    async def get(self, job_id: str) -> jobs_pb.Job:
        """One job."""
        request = jobs_pb.GetJobRequest(job_id=job_id)
        answer = await self._connection.call(JobServiceClient, JobServiceClient.get_job, request)
        return present(answer.job)

    async def list(
        self,
        *,
        states: Sequence[jobs_pb.JobState] = (),
        resource_id: str = "",
        limit: int = DEFAULT_LIMIT,
        page_token: str = "",
    ) -> Page[jobs_pb.Job]:
        """Jobs, newest first."""

        async def ask(page: common_pb.PageRequest) -> jobs_pb.ListJobsResponse:
            request = jobs_pb.ListJobsRequest(page=page, states=[*states], resource_id=resource_id)
            return await self._connection.call(
                JobServiceClient, JobServiceClient.list_jobs, request
            )

        return await walk(ask, lambda a: a.jobs, limit=limit, page_token=page_token)

    async def watch(self, job_id: str) -> AsyncGenerator[jobs_pb.Job]:
        """The job as it is, then after every change, up to its end.

        A stream that breaks (a restart, a proxy's limit) is taken up again.

        Raises:
            NotFound: there is no such job.
            Unavailable: the platform was away for longer than a restart takes.
        """
        broken = 0
        version = -1
        while True:
            try:
                async with aclosing(
                    self._connection.stream(
                        JobServiceClient,
                        JobServiceClient.watch_job,
                        jobs_pb.WatchJobRequest(job_id=job_id),
                    )
                ) as messages:
                    async for message in messages:
                        job = present(message.job)
                        if job.version > version:
                            broken, version = 0, job.version
                            yield job
                        if job.state in ENDED:
                            return
            except IronError as error:
                if not error.retryable or broken >= MAX_BROKEN_STREAMS:
                    raise
            if broken >= MAX_BROKEN_STREAMS:
                raise Unavailable(
                    f"The job {job_id} cannot be followed: every stream ends at once.",
                    hint=f"Ask for it with `iron job get {job_id}`.",
                )
            broken += 1
            await self._connection.clock.sleep(min(0.1 * 2**broken, _MAX_WAIT_SECONDS))

    async def wait(
        self,
        job_id: str,
        *,
        on_progress: Callable[[jobs_pb.Job], None] | None = None,
        timeout_seconds: float | None = None,
    ) -> jobs_pb.Job:
        """The job once it has ended well.

        Args:
            job_id: `job_…`.
            on_progress: Called with the job after every change.
            timeout_seconds: How long to wait; None: until it ends. The job goes on regardless.

        Raises:
            IronError: of the class that the job failed with, with its sentence.
            Aborted: it was cancelled.
            DeadlineExceeded: it has not ended in time.
        """
        job: jobs_pb.Job | None = None
        try:
            async with asyncio.timeout(timeout_seconds):
                async with aclosing(self.watch(job_id)) as changes:
                    async for job in changes:
                        if on_progress is not None:
                            on_progress(job)
        except TimeoutError:
            raise DeadlineExceeded(
                f"The job {job_id} has not ended within {timeout_seconds:g} seconds; it goes on.",
                hint=f"Follow it with `iron job watch {job_id}`.",
            ) from None
        ended = present(job)
        if (error := outcome_error(ended)) is not None:
            raise error
        return ended

    async def cancel(self, job_id: str, *, idempotency_key: str = "") -> jobs_pb.Job:
        """Ask a job to stop; what it has done is undone."""
        request = jobs_pb.CancelJobRequest(job_id=job_id, idempotency_key=idempotency_key)
        answer = await self._connection.call(JobServiceClient, JobServiceClient.cancel_job, request)
        return present(answer.job)
