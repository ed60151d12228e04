from __future__ import annotations

import contextvars

import pytest

from ironworks.model.errors import Internal, PermissionDenied
from ironworks.runtime.identity.caller import (
    ANONYMOUS,
    Caller,
    caller_var,
    current_caller,
    current_request_id,
    current_tenant_id,
)


def test_outside_of_a_request_there_is_no_caller_and_none_is_guessed() -> None:
    def ask() -> None:
        with pytest.raises(Internal):
            current_caller()
        with pytest.raises(Internal):
            current_tenant_id()
        assert current_request_id() == ""

    contextvars.Context().run(ask)


def test_the_tenant_is_that_of_the_credential() -> None:
    def ask(caller: Caller) -> str:
        caller_var.set(caller)
        assert current_caller() is caller
        return current_tenant_id()

    user = Caller(kind="user", subject="key_1", tenant_id="tnt_1")
    acting = Caller(kind="service", subject="gatewayd", tenant_id="tnt_2")
    assert contextvars.copy_context().run(ask, user) == "tnt_1"
    assert contextvars.copy_context().run(ask, acting) == "tnt_2"
    for nobodys in (ANONYMOUS, Caller(kind="service", subject="metald")):
        with pytest.raises(PermissionDenied, match="belongs to none"):
            contextvars.copy_context().run(ask, nobodys)


def test_an_operator_is_who_has_the_role() -> None:
    assert Caller(kind="user", subject="x", roles=frozenset({"operator"})).is_operator
    assert not Caller(kind="user", subject="operator", roles=frozenset({"owner"})).is_operator
