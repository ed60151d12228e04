"""Stable paging: a token is the position after the last item, bound to the list's filters."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeGuard, TypeVar, cast

from ironworks.model.errors import InvalidRequest

_T = TypeVar("_T")
DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
_MAX_TOKEN_CHARS = 4096
_KEY_BOUND = 1 << 63
"""What fits into the 64-bit integers of a database."""
_UNSTORABLE = re.compile(r"[\0\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class PageSpec:
    """What a store needs to read one page.

    Attributes:
        size: Items to return at most; read one more to learn whether there is a next page.
        after: Sort keys of the last item of the page before; empty for the first page.
    """

    size: int
    after: tuple[str | int, ...] = ()


def _fingerprint(filters: tuple[object, ...]) -> str:
    return hashlib.sha256(repr(filters).encode()).hexdigest()[:12]


def encode_token(after: tuple[str | int, ...], filters: tuple[object, ...] = ()) -> str:
    """The token of the page that begins after these sort keys."""
    body = json.dumps([_fingerprint(filters), *after], separators=(",", ":"))
    return base64.urlsafe_b64encode(body.encode()).decode().rstrip("=")


def cut(
    items: list[_T],
    size: int,
    key: Callable[[_T], tuple[str | int, ...]],
    filters: tuple[object, ...] = (),
) -> tuple[list[_T], str]:
    """One page of items that were read with one too many, and the token of the next, if any."""
    if len(items) <= size:
        return items, ""
    items = items[:size]
    return items, encode_token(key(items[-1]), filters)


def _is_key(value: object) -> TypeGuard[str | int]:
    """Whether a database can compare with it: a token can be forged, so its keys are not ours."""
    if isinstance(value, int) and not isinstance(value, bool):
        return -_KEY_BOUND <= value < _KEY_BOUND
    return isinstance(value, str) and not _UNSTORABLE.search(value)


def read_page(page_size: int, page_token: str, filters: tuple[object, ...] = ()) -> PageSpec:
    """The page that a request asks for.

    Raises:
        InvalidRequest: the size is negative or over the maximum, or the token is not one of ours
            or belongs to other filters.
    """
    if not 0 <= page_size <= MAX_PAGE_SIZE:
        raise InvalidRequest(f"page_size must be 0 (default) to {MAX_PAGE_SIZE}.")
    size = page_size or DEFAULT_PAGE_SIZE
    if not page_token:
        return PageSpec(size=size)
    bad = InvalidRequest(
        "page_token is not one that this list answered for these filters.",
        hint="Start again from the first page.",
    )
    if len(page_token) > _MAX_TOKEN_CHARS:
        raise bad
    try:
        raw = base64.urlsafe_b64decode(page_token + "=" * (-len(page_token) % 4))
        decoded: object = json.loads(raw)
    except (ValueError, RecursionError):
        raise bad from None
    if not isinstance(decoded, list):
        raise bad
    fingerprint, *after = cast("list[object]", decoded) or [None]
    keys = tuple(key for key in after if _is_key(key))
    if fingerprint != _fingerprint(filters) or len(keys) != len(after) or not keys:
        raise bad
    return PageSpec(size=size, after=keys)
