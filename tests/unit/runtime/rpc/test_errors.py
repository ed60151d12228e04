from __future__ import annotations

import asyncio

import pytest
from connectrpc.code import Code
from connectrpc.errors import ConnectError

from ironworks.model.errors import Internal, IronError, NotFound, Unavailable, all_errors
from ironworks.runtime.rpc.errors import cancellation_kept, from_connect, http_status, to_connect
from ironworks.runtime.tasks import Tasks


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


@pytest.mark.parametrize("failure", [None, ConnectionError("reset")])
async def test_a_cancellation_in_the_moment_of_the_answer_is_not_lost(
    failure: Exception | None,
) -> None:
    answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def call() -> None:
        with cancellation_kept():
            await asyncio.wait_for(answer, 10)  # noqa: TID251 - what the library calls

    async with Tasks() as tasks:
        task = tasks.start(call(), name="call")
        await asyncio.sleep(0)
        answer.set_exception(failure) if failure else answer.set_result(None)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()


async def test_a_block_that_nobody_cancels_ends_as_it_would() -> None:
    with cancellation_kept():
        pass
    with pytest.raises(ConnectionError, match="reset"), cancellation_kept():
        raise ConnectionError("reset")


async def test_an_earlier_cancellation_that_was_answered_is_not_raised_again() -> None:
    async def work() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            with cancellation_kept():  # cleaning up calls, too
                return "undone"
        return ""

    async with Tasks() as tasks:
        task = tasks.start(work(), name="work")
        await asyncio.sleep(0)
        task.cancel()
        assert await task == "undone"
