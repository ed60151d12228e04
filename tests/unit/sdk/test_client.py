"""The SDK against a platform in memory, over loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from ironworks.gen.ironworks.gatewayd.v1 import jobs_pb
from ironworks.model.errors import (
    Aborted,
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from ironworks.runtime.settings import Settings
from ironworks.sdk import AsyncIronworks, Ironworks
from ironworks.testkit.fakeapi import OPERATOR_KEY, TENANT_KEY, FakeApi, running


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[tuple[FakeApi, Settings]]:
    async with running(tmp_path) as both:
        yield both


@pytest.fixture
def api(fake: tuple[FakeApi, Settings]) -> FakeApi:
    return fake[0]


@pytest.fixture
async def client(fake: tuple[FakeApi, Settings]) -> AsyncIterator[AsyncIronworks]:
    async with AsyncIronworks(fake[1].gatewayd_url, TENANT_KEY) as client:
        yield client


async def test_the_key_is_exchanged_once_for_many_calls(
    api: FakeApi, client: AsyncIronworks
) -> None:
    answers = await asyncio.gather(*(client.tenants.whoami() for _ in range(20)))
    assert {answer.tenant_id for answer in answers} == {answers[0].tenant_id}
    assert api.tokens == 1


async def test_a_token_that_is_refused_is_replaced_unseen(
    api: FakeApi, client: AsyncIronworks
) -> None:
    await client.tenants.whoami()
    api.fail("WhoAmI", Unauthenticated("The token has expired."))
    await client.tenants.whoami()
    assert api.tokens == 2


async def test_a_token_that_is_refused_again_is_an_error(
    api: FakeApi, client: AsyncIronworks
) -> None:
    api.fail("WhoAmI", Unauthenticated("The token has expired."), times=100)
    with pytest.raises(Unauthenticated, match="expired"):
        await client.tenants.whoami()
    assert api.tokens == 2


async def test_a_stream_replaces_a_refused_token_too(api: FakeApi, client: AsyncIronworks) -> None:
    accepted = await client.deployments.create("oci:/x", name="web")
    api.fail("WatchJob", Unauthenticated("The token has expired."))
    await client.deployments.wait(accepted.job_id)
    assert api.tokens == 2


async def test_a_wrong_key_is_said_once_and_not_repeated(
    fake: tuple[FakeApi, Settings],
) -> None:
    api, settings = fake
    async with AsyncIronworks(settings.gatewayd_url, "iwk_wrong") as client:
        with pytest.raises(Unauthenticated, match="not valid"):
            await client.tenants.whoami()
    assert len(api.asked["ExchangeToken"]) == 1


async def test_without_a_key_the_error_says_what_to_do(
    fake: tuple[FakeApi, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("IRONWORKS_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(fake[1].data_dir))
    async with AsyncIronworks(fake[1].gatewayd_url) as client:
        with pytest.raises(Unauthenticated, match="iron login"):
            await client.tenants.whoami()


@pytest.mark.parametrize("after", [False, True])
async def test_retries_keep_the_idempotency_key(
    api: FakeApi, client: AsyncIronworks, *, after: bool
) -> None:
    api.fail("CreateTenant", Unavailable("restarting"), times=3, after=after)
    tenant = await client.tenants.create("acme")
    keys = api.idempotency_keys("CreateTenant")
    assert tenant.name == "acme"
    assert len(keys) == 4
    assert len(set(keys)) == 1
    assert len(keys[0]) >= 32
    assert list(api.tenants) == ["acme"]


async def test_two_calls_have_two_keys_and_a_given_one_is_kept(
    api: FakeApi, client: AsyncIronworks
) -> None:
    await client.tenants.create("one")
    await client.tenants.create("two")
    await client.tenants.create("three", idempotency_key="mine")
    first, second, third = api.idempotency_keys("CreateTenant")
    assert first != second
    assert third == "mine"


async def test_four_attempts_and_no_more(api: FakeApi, client: AsyncIronworks) -> None:
    api.fail("CreateTenant", Unavailable("down"), times=100)
    with pytest.raises(Unavailable, match="down"):
        await client.tenants.create("acme")
    assert len(api.asked["CreateTenant"]) == 4


async def test_what_cannot_succeed_later_is_not_repeated(
    api: FakeApi, client: AsyncIronworks
) -> None:
    await client.tenants.create("acme")
    with pytest.raises(AlreadyExists, match="named acme"):
        await client.tenants.create("acme")
    assert len(api.asked["CreateTenant"]) == 2


async def test_lists_are_walked_to_the_limit_and_can_be_gone_on_with(
    client: AsyncIronworks,
) -> None:
    for number in range(5):
        await client.tenants.create(f"t{number}")
    first = await client.tenants.list(limit=3)
    rest = await client.tenants.list(limit=3, page_token=first.next_page_token)
    assert [tenant.name for tenant in first] == ["t0", "t1", "t2"]
    assert [tenant.name for tenant in rest] == ["t3", "t4"]
    assert not rest.next_page_token
    assert len(await client.tenants.list()) == 5


async def test_a_deployment_from_order_to_endpoint(api: FakeApi, client: AsyncIronworks) -> None:
    accepted = await client.deployments.create(
        "oci:/x", name="web", replicas=2, memory_bytes=1 << 28, env={"A": "b"}, port=80
    )
    seen: list[jobs_pb.JobState] = []
    result = await client.deployments.wait(
        accepted.job_id, on_progress=lambda job: seen.append(job.state)
    )
    assert result.endpoint.startswith("https://web-")
    assert (result.build_ms, result.boot_ms, len(result.vm_ids)) == (1200, 3400, 1)
    assert seen[0] is jobs_pb.JobState.QUEUED
    assert seen[-1] is jobs_pb.JobState.COMPLETED
    spec = api.deployments["web"].spec
    assert spec is not None
    assert spec.shape is not None
    assert (spec.replicas, spec.shape.memory_bytes, spec.env) == (2, 1 << 28, {"A": "b"})


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


async def test_a_cancelled_caller_is_cancelled(api: FakeApi, client: AsyncIronworks) -> None:
    api.fail("CreateTenant", Unavailable("down"), times=100)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.25):
            await client.tenants.create("acme")


async def test_a_method_of_a_later_version_says_so(client: AsyncIronworks) -> None:
    with pytest.raises(Unimplemented):
        await client.hosts.get("hst_x")


async def test_a_platform_that_does_not_answer() -> None:
    async with AsyncIronworks("http://127.0.0.1:9", TENANT_KEY) as client:
        with pytest.raises(Unavailable, match=r"http://127\.0\.0\.1:9 does not answer"):
            await client.tenants.whoami()
        with pytest.raises(Unavailable, match="does not answer"):
            await client.endpoint_get("http://web.ironworks.localhost:9/")


async def test_endpoints_below_localhost_are_found_without_a_resolver(
    fake: tuple[FakeApi, Settings], client: AsyncIronworks
) -> None:
    port = fake[1].gatewayd_url.rpartition(":")[2]
    url = f"http://web-0123456789.ironworks.localhost:{port}/"
    answer = await client.endpoint_get(url, "/healthz")
    assert (answer.status, answer.text) == (200, "ok\n")
    assert answer.headers["content-type"] == "text/plain"


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
