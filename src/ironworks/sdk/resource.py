"""What the nouns of the SDK share: the connection, and lists that are walked page by page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from ironworks.gen.ironworks.common.v1 import common_pb
from ironworks.model.errors import Internal
from ironworks.model.pages import MAX_PAGE_SIZE
from ironworks.sdk.connection import Connection

DEFAULT_LIMIT = 1000
_T = TypeVar("_T")


class _Paged(Protocol):
    @property
    def page(self) -> common_pb.PageInfo | None: ...


_Answer = TypeVar("_Answer", bound=_Paged)


@dataclass(frozen=True)
class Page(Generic[_T]):
    """Part of a list.

    Attributes:
        items: In the order of the list.
        next_page_token: Give it to the same call with the same filters to go on; empty at the end.
    """

    items: tuple[_T, ...]
    next_page_token: str = ""

    def __iter__(self) -> Iterator[_T]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> _T:
        return self.items[index]


class Resource:
    """One noun of the API."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection


async def walk(
    ask: Callable[[common_pb.PageRequest], Awaitable[_Answer]],
    items_of: Callable[[_Answer], Sequence[_T]],
    *,
    limit: int,
    page_token: str,
) -> Page[_T]:
    """Read pages until `limit` items or the end.

    Args:
        ask: Reads one page.
        items_of: The items in its answer.
        limit: Most items to read; the rest is behind `next_page_token`.
        page_token: Where to begin; empty: at the beginning.
    """
    found: list[_T] = []
    while True:
        size = min(limit - len(found), MAX_PAGE_SIZE)
        answer = await ask(common_pb.PageRequest(page_size=size, page_token=page_token))
        found.extend(items_of(answer))
        page_token = answer.page.next_page_token if answer.page is not None else ""
        if not page_token or len(found) >= limit:
            return Page(tuple(found), page_token)


def present(value: _T | None) -> _T:
    """`value`, which the API promises to send.

    Raises:
        Internal: the answer lacks it: the platform's fault.
    """
    if value is None:
        raise Internal("The platform's answer is incomplete.", hint="Is it newer than this SDK?")
    return value
