"""`iron tenant`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Iron


async def test_create_get_and_list(iron: Iron) -> None:
    iron.as_operator()
    made = (await iron("tenant", "create", "acme", "--display-name", "Acme Inc", "--json")).json
    shown = await iron("tenant", "get", "acme")
    assert made["tenant_id"] in shown.out
    assert "Acme Inc" in shown.out
    assert (await iron("tenant", "get", made["tenant_id"], "--json")).json == made
    assert "active" in (await iron("tenant", "list")).out
    again = await iron("tenant", "create", "acme", status=67)
    assert again.err == "iron: There is a tenant named acme.\n"


async def test_a_list_that_is_cut_says_so(iron: Iron) -> None:
    iron.as_operator()
    assert (await iron("tenant", "list")).err == "No tenants.\n"
    for number in range(3):
        await iron("tenant", "create", f"t{number}")
    done = await iron("tenant", "list", "--limit", "2")
    assert done.err == "The first 2; there are more: give --limit.\n"
    assert "t2" not in done.out


async def test_a_name_that_no_tenant_has(iron: Iron) -> None:
    iron.as_operator()
    done = await iron("tenant", "get", "nobody", status=66)
    assert "iron tenant list" in done.err


async def test_the_callers_own(iron: Iron) -> None:
    iron.as_operator()
    await iron("tenant", "create", "acme")
    iron.patch.setenv("IRONWORKS_API_KEY", "iwk_tenant")
    assert "acme" in (await iron("tenant", "get")).out
