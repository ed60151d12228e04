from __future__ import annotations

import pytest
from connectrpc.code import Code
from connectrpc.errors import ConnectError

from ironworks.model.errors import Internal, IronError, NotFound, Unavailable, all_errors
from ironworks.runtime.rpc.errors import from_connect, http_status, to_connect


@pytest.mark.parametrize("kind", all_errors())
def test_an_error_crosses_the_wire_as_what_it_is_without_its_private_context(
    kind: type[IronError],
) -> None:
    error = kind("What is wrong.", hint="What to do.", context={"path": "/secret"})
    there = to_connect(error)
    assert "/secret" not in repr(there) + repr(vars(there))
    back = from_connect(there)
    assert type(back) is kind
    assert str(back) == "What is wrong. What to do."
    assert back.context == {}


@pytest.mark.parametrize("code", Code)
def test_every_code_of_connect_is_one_of_our_errors(code: Code) -> None:
    error = from_connect(ConnectError(code, ""))
    assert type(error) in all_errors()
    assert error.message


def test_a_call_that_was_cancelled_may_be_repeated() -> None:
    assert isinstance(from_connect(ConnectError(Code.CANCELED, "gone")), Unavailable)


def test_what_we_do_not_know_is_a_fault() -> None:
    assert isinstance(from_connect(ConnectError(Code.UNKNOWN, "?")), Internal)


@pytest.mark.parametrize("kind", all_errors())
def test_every_error_has_an_http_status_of_a_failure(kind: type[IronError]) -> None:
    assert 400 <= http_status(kind("x")) < 600


def test_the_absent_and_the_foreign_look_alike() -> None:
    assert http_status(NotFound("x")) == 404
