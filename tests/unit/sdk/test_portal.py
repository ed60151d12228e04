"""The synchronous face."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from ironworks.gen.ironworks.gatewayd.v1 import jobs_pb
from ironworks.model.errors import (
    AlreadyExists,
    FailedPrecondition,
)
from ironworks.runtime.settings import Settings
from ironworks.sdk import Ironworks
from ironworks.testkit.fakeapi import OPERATOR_KEY, FakeApi


@pytest.fixture
def sync_client(fake: tuple[FakeApi, Settings]) -> Iterator[Ironworks]:
    with Ironworks(fake[1].gatewayd_url, OPERATOR_KEY) as client:
        yield client


async def test_the_synchronous_face_does_the_same(api: FakeApi, sync_client: Ironworks) -> None:
    def work() -> str:
        tenant = sync_client.tenants.create("acme")
        secret = sync_client.keys.create("ci", tenant_id=tenant.tenant_id).secret
        accepted = sync_client.deployments.create("oci:/x", name="web")
        states = [job.state for job in sync_client.jobs.watch(accepted.job_id)]
        assert states[-1] is jobs_pb.JobState.COMPLETED
        with pytest.raises(AlreadyExists):
            sync_client.deployments.create("oci:/x", name="web")
        for _ in sync_client.jobs.watch(accepted.job_id):
            break
        return secret

    assert (await asyncio.to_thread(work)).startswith("iwk_")
    assert api.tokens == 1


async def test_a_closed_synchronous_client_says_so(fake: tuple[FakeApi, Settings]) -> None:
    client = Ironworks(fake[1].gatewayd_url, OPERATOR_KEY)
    client.close()
    client.close()
    with pytest.raises(FailedPrecondition, match="closed"):
        client.tenants.whoami()
