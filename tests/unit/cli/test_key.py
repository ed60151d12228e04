"""`iron key`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Iron


async def test_create_list_and_revoke(iron: Iron) -> None:
    made = await iron("key", "create", "ci", "--role", "owner", "--role", "billing", "--json")
    key_id = made.json["api_key"]["api_key_id"]
    assert made.json["secret"] == "iwk_" + "s" * 43
    listed = await iron("key", "list", "--ended")
    assert key_id in listed.out
    assert "owner, billing" in listed.out
    assert "iwk_abcdef" in listed.out
    assert "s" * 43 not in listed.out
    revoked = await iron("key", "revoke", key_id)
    assert "revoked 20" in revoked.out


async def test_the_secret_comes_with_a_warning_that_no_program_reads(iron: Iron) -> None:
    done = await iron("key", "create", "ci")
    assert "iwk_" + "s" * 43 in done.out
    assert "cannot show it again" in done.err
    assert (await iron("key", "create", "ci2", "--json")).err == ""


async def test_the_default_role_follows_whom_the_key_is_for(iron: Iron) -> None:
    assert (await iron("key", "create", "a", "--json")).json["api_key"]["roles"] == [
        "ROLE_DEVELOPER"
    ]
    iron.as_operator()
    await iron("tenant", "create", "acme")
    for_tenant = await iron("key", "create", "b", "--tenant", "acme", "--json")
    assert for_tenant.json["api_key"]["roles"] == ["ROLE_DEVELOPER"]
    assert (await iron("key", "create", "c", "--json")).json["api_key"]["roles"] == [
        "ROLE_OPERATOR"
    ]


async def test_what_is_refused(iron: Iron) -> None:
    done = await iron("key", "create", "ci", "--expires", "2020-01-01", status=65)
    assert "would have ended already" in done.err
    await iron("key", "create", "ci", "--role", "king", status=2)
    await iron("key", "revoke", "key_none", status=66)
