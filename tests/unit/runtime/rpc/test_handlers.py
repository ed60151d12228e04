from __future__ import annotations

import pytest
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from structlog.testing import capture_logs

from ironworks.model.errors import Internal, NotFound
from ironworks.runtime.rpc.handlers import mapped


def test_our_errors_leave_with_their_code_and_their_context_goes_to_the_log() -> None:
    error = NotFound("No VM.", context={"method": "collides", "path": "/secret"})
    with capture_logs() as lines, pytest.raises(ConnectError) as caught, mapped("GetVm"):
        raise error
    assert caught.value.message == "No VM."
    assert caught.value.code is Code.NOT_FOUND
    assert "/secret" not in str(caught.value)
    (line,) = lines
    assert (line["method"], line["ctx_method"], line["ctx_path"]) == (
        "GetVm",
        "collides",
        "/secret",
    )
    assert line["log_level"] == "info"


def test_a_surprise_becomes_a_fault_that_tells_the_caller_nothing_of_itself() -> None:
    with capture_logs() as lines, pytest.raises(ConnectError) as caught, mapped("GetVm"):
        raise KeyError("/secret")
    assert caught.value.code is Code.INTERNAL
    assert "/secret" not in str(caught.value)
    assert [(line["event"], line["log_level"]) for line in lines] == [("call_crashed", "error")]


def test_our_own_faults_are_logged_as_errors() -> None:
    with capture_logs() as lines, pytest.raises(ConnectError), mapped("GetVm"):
        raise Internal("broken")
    assert [line["log_level"] for line in lines] == ["error"]


def test_what_the_library_raises_passes_as_it_is() -> None:
    error = ConnectError(Code.UNIMPLEMENTED, "not here")
    with pytest.raises(ConnectError) as caught, mapped("PauseVm"):
        raise error
    assert caught.value is error
