"""API keys."""

from __future__ import annotations

from ironworks.gen.ironworks.gatewayd.v1 import api_keys_pb, roles_pb
from ironworks.sdk import AsyncIronworks
from ironworks.testkit.fakeapi import FakeApi


async def test_create_list_and_revoke(api: FakeApi, client: AsyncIronworks) -> None:
    made = await client.keys.create("ci", tenant_id="tnt_a", expires_at_ns=7)
    assert made.secret.startswith("iwk_")
    assert made.api_key is not None
    assert made.api_key.roles == [roles_pb.Role.DEVELOPER]
    request = api.asked["CreateApiKey"][-1]
    assert isinstance(request, api_keys_pb.CreateApiKeyRequest)
    assert request.expires_at_ns == 7
    page = await client.keys.list(tenant_id="tnt_a", include_ended=True)
    assert [key.api_key_id for key in page] == [made.api_key.api_key_id]
    assert (await client.keys.revoke(made.api_key.api_key_id)).revoked_at_ns > 0
