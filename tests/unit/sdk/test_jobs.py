"""Jobs: watched over broken streams, waited for, failed."""

from __future__ import annotations

import pytest

from ironworks.gen.ironworks.gatewayd.v1 import jobs_pb
from ironworks.model.errors import (
    Aborted,
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    Unavailable,
    Unimplemented,
)
from ironworks.sdk import AsyncIronworks
from ironworks.testkit.fakeapi import FakeApi


async def test_a_broken_watch_is_taken_up_again_without_repeating_news(
    api: FakeApi, client: AsyncIronworks
) -> None:
    accepted = await client.deployments.create("oci:/x", name="web")
    api.breaks = 2
    versions: list[int] = []
    await client.jobs.wait(accepted.job_id, on_progress=lambda job: versions.append(job.version))
    assert len(api.asked["WatchJob"]) == 3
    assert versions == sorted(set(versions))


async def test_a_failed_job_raises_what_it_failed_with(
    api: FakeApi, client: AsyncIronworks
) -> None:
    api.failure = jobs_pb.JobFailure(
        code="failed_precondition", message="The image is for arm64; this host is amd64."
    )
    accepted = await client.deployments.create("oci:/x", name="web")
    with pytest.raises(FailedPrecondition, match="for arm64"):
        await client.deployments.wait(accepted.job_id)


async def test_waiting_is_bounded_and_the_job_goes_on(api: FakeApi, client: AsyncIronworks) -> None:
    accepted = await client.deployments.create("oci:/x", name="web")
    api.jobs[accepted.job_id].version = -1  # no news
    api.fail("WatchJob", Unavailable("away"), times=1000)
    with pytest.raises(DeadlineExceeded, match="goes on"):
        await client.jobs.wait(accepted.job_id, timeout_seconds=0.3)


async def test_a_cancelled_job_is_an_error(api: FakeApi, client: AsyncIronworks) -> None:
    accepted = await client.deployments.create("oci:/x", name="web")
    api.jobs[accepted.job_id].state = jobs_pb.JobState.CANCELLED
    with pytest.raises(Aborted, match="cancelled"):
        await client.jobs.wait(accepted.job_id, timeout_seconds=10)


async def test_a_job_that_does_not_exist_ends_the_watch(client: AsyncIronworks) -> None:
    with pytest.raises(NotFound):
        await client.jobs.wait("job_none")


async def test_get_and_list(client: AsyncIronworks) -> None:
    accepted = await client.deployments.create("oci:/x", name="web")
    job = await client.jobs.get(accepted.job_id)
    assert list(await client.jobs.list(resource_id=job.resource_id)) == [job]


async def test_cancel_asks_the_platform(client: AsyncIronworks) -> None:
    with pytest.raises(Unimplemented):
        await client.jobs.cancel("job_x")
