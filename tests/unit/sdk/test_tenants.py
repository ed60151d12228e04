"""Tenants."""

from __future__ import annotations

import pytest

from ironworks.gen.ironworks.gatewayd.v1 import roles_pb, tenants_pb
from ironworks.model.errors import NotFound, Unimplemented
from ironworks.sdk import AsyncIronworks
from ironworks.testkit.fakeapi import FakeApi


async def test_create_get_and_list(api: FakeApi, client: AsyncIronworks) -> None:
    made = await client.tenants.create("acme", display_name="Acme Inc")
    assert await client.tenants.get(made.tenant_id) == made
    assert await client.tenants.get() == made, "the caller's own"
    listed = await client.tenants.list(states=[tenants_pb.TenantState.ACTIVE])
    assert list(listed) == [made]
    request = api.asked["ListTenants"][-1]
    assert isinstance(request, tenants_pb.ListTenantsRequest)
    assert request.states == [tenants_pb.TenantState.ACTIVE]
    with pytest.raises(NotFound):
        await client.tenants.get("tnt_none")


async def test_who_the_caller_is(client: AsyncIronworks) -> None:
    assert (await client.tenants.whoami()).roles == [roles_pb.Role.OWNER]


async def test_delete_asks_the_platform(client: AsyncIronworks) -> None:
    with pytest.raises(Unimplemented):
        await client.tenants.delete("tnt_a")
