"""Pages on the wire."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ironworks.gen.ironworks.common.v1.common_pb import PageInfo, PageRequest
from ironworks.model.pages import PageSpec, read_page
from ironworks.model.pages import cut as cut_page

_T = TypeVar("_T")


def page_of(request: PageRequest | None, *filters: object) -> PageSpec:
    """Which page a request asks for."""
    request = request or PageRequest()
    return read_page(request.page_size, request.page_token, filters)


def cut(
    items: list[_T], page: PageSpec, key: Callable[[_T], tuple[str | int, ...]], *filters: object
) -> tuple[list[_T], PageInfo]:
    """The page of a list that is one item longer than the page if there is a next one."""
    items, token = cut_page(items, page.size, key, filters)
    return items, PageInfo(next_page_token=token)
