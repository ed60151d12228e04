from __future__ import annotations

import pytest

from ironworks.model.errors import PermissionDenied
from ironworks.runtime import access
from ironworks.runtime.access import Access, check
from ironworks.runtime.access.rule import ADMINS, BILLING, READERS, WRITERS
from ironworks.runtime.identity.caller import ANONYMOUS, Caller

METHOD = "ironworks.metald.v1.VmService/CreateVm"
GATEWAYD = Caller(kind="service", subject="gatewayd", tenant_id="tnt_1")
DEVELOPER = Caller(kind="user", subject="key_1", tenant_id="tnt_1", roles=frozenset({"developer"}))


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> dict[str, Access]:
    table: dict[str, Access] = {}
    monkeypatch.setattr(access, "ACCESS", table)
    return table


@pytest.mark.parametrize("caller", [GATEWAYD, DEVELOPER, ANONYMOUS])
def test_a_method_that_is_missing_from_the_table_is_refused(caller: Caller) -> None:
    with pytest.raises(PermissionDenied, match="CreateVm is not allowed"):
        check(METHOD, caller)


def test_a_method_with_an_empty_row_is_refused(table: dict[str, Access]) -> None:
    table[METHOD] = Access()
    for caller in (GATEWAYD, DEVELOPER, ANONYMOUS):
        with pytest.raises(PermissionDenied, match="for the platform's own services"):
            check(METHOD, caller)


def test_services_are_named_one_by_one(table: dict[str, Access]) -> None:
    table[METHOD] = Access(services=frozenset({"gatewayd"}))
    check(METHOD, GATEWAYD)
    with pytest.raises(PermissionDenied):
        check(METHOD, Caller(kind="service", subject="billaged"))


def test_a_user_needs_one_of_the_roles_and_is_told_which(table: dict[str, Access]) -> None:
    table[METHOD] = Access(roles=frozenset({"owner", "developer"}))
    check(METHOD, DEVELOPER)
    viewer = Caller(kind="user", subject="key_2", roles=frozenset({"viewer"}))
    with pytest.raises(PermissionDenied, match="one of these roles: developer, owner"):
        check(METHOD, viewer)


def test_a_user_named_like_a_service_is_no_service_and_a_service_has_no_roles(
    table: dict[str, Access],
) -> None:
    table[METHOD] = Access(services=frozenset({"gatewayd"}), roles=frozenset({"owner"}))
    for caller in (
        Caller(kind="user", subject="gatewayd"),
        Caller(kind="service", subject="billaged", roles=frozenset({"owner"})),
        Caller(kind="anonymous", subject="gatewayd", roles=frozenset({"owner"})),
    ):
        with pytest.raises(PermissionDenied):
            check(METHOD, caller)


def test_a_method_that_authenticates_by_itself_lets_everyone_in(table: dict[str, Access]) -> None:
    table[METHOD] = Access(anonymous=True)
    check(METHOD, ANONYMOUS)


def test_other_spellings_of_a_method_are_other_methods(table: dict[str, Access]) -> None:
    table[METHOD] = Access(anonymous=True)
    for method in (f"/{METHOD}", METHOD.lower(), f"{METHOD}/", "CreateVm", ""):
        with pytest.raises(PermissionDenied):
            check(method, ANONYMOUS)


def test_roles_nest_as_the_architecture_has_them() -> None:
    assert ADMINS < WRITERS < READERS
    assert "viewer" not in WRITERS
    assert "developer" not in BILLING
    assert all("operator" in roles for roles in (READERS, WRITERS, ADMINS, BILLING))
