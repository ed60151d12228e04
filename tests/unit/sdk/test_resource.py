"""Lists that are walked page by page."""

from __future__ import annotations

from ironworks.sdk import AsyncIronworks


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
