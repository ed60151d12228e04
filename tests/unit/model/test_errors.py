from __future__ import annotations

import pytest

from ironworks.model.errors import (
    Aborted,
    DeadlineExceeded,
    Internal,
    IronError,
    NotFound,
    Unavailable,
    all_errors,
    kind_of,
)


def test_an_error_says_what_is_wrong_and_then_what_to_do() -> None:
    error = NotFound("VM vm_1 is not known here.", hint="List the VMs.")
    assert str(error) == "VM vm_1 is not known here. List the VMs."
    assert str(NotFound("VM vm_1 is not known here.")) == "VM vm_1 is not known here."


def test_private_context_is_no_part_of_the_sentence() -> None:
    error = Internal("Something broke.", context={"path": "/secret"})
    assert "/secret" not in str(error)
    assert "/secret" not in repr(error)
    assert error.context == {"path": "/secret"}


def test_the_context_of_one_error_is_not_that_of_another() -> None:
    shared = {"a": 1}
    first, second = Internal("x", context=shared), Internal("y", context=shared)
    first.context["b"] = 2
    assert second.context == {"a": 1}
    assert shared == {"a": 1}


def test_every_class_has_a_code_and_an_exit_status_of_its_own() -> None:
    codes = [kind.code for kind in all_errors()]
    statuses = [kind.exit_status for kind in all_errors()]
    assert len(set(codes)) == len(codes)
    assert len(set(statuses)) == len(statuses)
    # 0 is success, 1 and 2 are what Python and argument parsers use, 126 and up is the shell's.
    assert all(3 <= status < 126 for status in statuses)


@pytest.mark.parametrize("kind", all_errors())
def test_a_kind_is_found_by_its_code(kind: type[IronError]) -> None:
    assert kind_of(kind.code) is kind
    assert kind_of(kind.code + "x") is Internal


@pytest.mark.parametrize("kind", all_errors())
def test_only_what_may_succeed_when_repeated_unchanged_is_retryable(kind: type[IronError]) -> None:
    assert kind.retryable == (kind in {Aborted, Unavailable, DeadlineExceeded})
