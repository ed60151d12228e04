from __future__ import annotations

from ironworks.gen.ironworks.builderd.v1 import build_pb
from ironworks.sdk import AsyncIronworks
from ironworks.testkit.fakeapi import FakeApi


async def test_credentials_are_stored_listed_and_removed(
    api: FakeApi, client: AsyncIronworks
) -> None:
    stored = await client.registries.login("ghcr.io/acme", "bot", "secret")
    request = api.asked["SetRegistryCredential"][-1]
    assert isinstance(request, build_pb.SetRegistryCredentialRequest)
    assert request.password == "secret"
    assert "secret" not in str(stored)
    assert [one.scope for one in await client.registries.list()] == ["ghcr.io/acme"]
    await client.registries.logout("ghcr.io/acme")
    assert await client.registries.list() == []
