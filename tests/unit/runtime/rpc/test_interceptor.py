from __future__ import annotations

from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ironworks.model.errors import NotFound
from ironworks.runtime.rpc.interceptor import Around, Context

CONTEXT = cast("Context", SimpleNamespace(method=SimpleNamespace(name="GetVm")))


class Block:
    """Notes what runs within it, and turns KeyError into NotFound."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    @contextmanager
    def __call__(self, method: str) -> Generator[None]:
        self.notes.append(f"enter {method}")
        try:
            yield
        except KeyError as error:
            raise NotFound("mapped") from error
        finally:
            self.notes.append("leave")


async def numbers(*values: int) -> AsyncIterator[int]:
    for value in values:
        yield value


async def one_of_one(request: int, _: Any) -> int:
    if request < 0:
        raise KeyError
    return request * 2


async def one_of_many(requests: AsyncIterator[int], context: Any) -> int:
    return sum([await one_of_one(request, context) async for request in requests])


async def many_of_one(request: int, context: Any) -> AsyncIterator[int]:
    yield request
    yield await one_of_one(request, context)


async def many_of_many(requests: AsyncIterator[int], context: Any) -> AsyncIterator[int]:
    async for request in requests:
        yield await one_of_one(request, context)


async def collected(kind: str, around: Around, value: int) -> list[int]:
    if kind == "unary":
        return [await around.intercept_unary(one_of_one, value, CONTEXT)]
    if kind == "client stream":
        return [await around.intercept_client_stream(one_of_many, numbers(1, value), CONTEXT)]
    if kind == "server stream":
        answers = around.intercept_server_stream(many_of_one, value, CONTEXT)
    else:
        answers = around.intercept_bidi_stream(many_of_many, numbers(1, value), CONTEXT)
    return [answer async for answer in answers]


KINDS = {"unary": [6], "client stream": [8], "server stream": [3, 6], "bidi stream": [2, 6]}


@pytest.mark.parametrize(("kind", "answers"), KINDS.items())
async def test_every_kind_of_call_runs_within_the_block(kind: str, answers: list[int]) -> None:
    block = Block()
    assert await collected(kind, Around(block), 3) == answers
    assert block.notes == ["enter GetVm", "leave"]


@pytest.mark.parametrize("kind", KINDS)
async def test_errors_of_every_kind_of_call_pass_the_block(kind: str) -> None:
    block = Block()
    with pytest.raises(NotFound, match="mapped"):
        await collected(kind, Around(block), -1)
    assert block.notes == ["enter GetVm", "leave"]
