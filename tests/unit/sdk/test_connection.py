"""Calls: tokens, idempotency keys, retries, errors."""

from __future__ import annotations

import asyncio

import pytest
from connectrpc.code import Code
from connectrpc.errors import ConnectError

from ironworks.gen.ironworks.gatewayd.v1.tokens_connect import TokenServiceClient
from ironworks.gen.ironworks.gatewayd.v1.tokens_pb import WhoAmIRequest
from ironworks.model.errors import (
    AlreadyExists,
    DeadlineExceeded,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from ironworks.runtime.settings import Settings
from ironworks.sdk import AsyncIronworks
from ironworks.testkit.fakeapi import TENANT_KEY, FakeApi


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


async def test_all_attempts_together_take_the_time_of_the_call(client: AsyncIronworks) -> None:
    given_ms: list[int] = []

    async def hang(*_: object, timeout_ms: int, **__: object) -> None:
        given_ms.append(timeout_ms)
        await asyncio.sleep(timeout_ms / 1000)
        raise ConnectError(Code.DEADLINE_EXCEEDED, "late") from TimeoutError()

    with pytest.raises(DeadlineExceeded, match=r"did not answer within 0.3 seconds"):
        await client.connection.call(TokenServiceClient, hang, WhoAmIRequest(), 0.3)
    assert given_ms[0] > 1
    assert given_ms[1:] == [1, 1, 1]


async def test_what_cannot_succeed_later_is_not_repeated(
    api: FakeApi, client: AsyncIronworks
) -> None:
    await client.tenants.create("acme")
    with pytest.raises(AlreadyExists, match="named acme"):
        await client.tenants.create("acme")
    assert len(api.asked["CreateTenant"]) == 2


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
