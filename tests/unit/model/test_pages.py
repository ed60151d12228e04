from __future__ import annotations

import base64
import json

import pytest

from ironworks.model.errors import InvalidRequest
from ironworks.model.pages import (
    DEFAULT_PAGE_SIZE,
    MAX_PAGE_SIZE,
    PageSpec,
    cut,
    encode_token,
    read_page,
)


def forged(*after: object) -> str:
    """A token as an attacker who knows how tokens are made would make it."""
    fingerprint = json.loads(base64.urlsafe_b64decode(encode_token((1,)) + "=="))[0]
    return encoded([fingerprint, *after])


def encoded(content: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


@pytest.mark.parametrize(("count", "there_is_more"), [(0, False), (2, False), (3, True)])
def test_one_too_many_says_that_there_is_a_next_page(count: int, *, there_is_more: bool) -> None:
    items, token = cut(list(range(count)), 2, lambda last: (last,), ("f",))
    assert items == [0, 1][:count]
    assert bool(token) == there_is_more
    if token:
        assert read_page(2, token, ("f",)).after == (1,)


def test_the_first_page_begins_at_the_beginning_and_has_the_default_size() -> None:
    assert read_page(0, "") == PageSpec(size=DEFAULT_PAGE_SIZE)


def test_the_next_page_begins_after_the_last_item() -> None:
    token = encode_token(("vm_1", 7), ("running",))
    assert read_page(5, token, ("running",)) == PageSpec(size=5, after=("vm_1", 7))


@pytest.mark.parametrize("size", [-1, MAX_PAGE_SIZE + 1])
def test_a_page_is_bounded(size: int) -> None:
    with pytest.raises(InvalidRequest, match="page_size must be 0"):
        read_page(size, "")


def test_the_largest_page_is_allowed() -> None:
    assert read_page(MAX_PAGE_SIZE, "").size == MAX_PAGE_SIZE


def test_a_token_of_other_filters_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="page_token is not one"):
        read_page(5, encode_token(("vm_1",), ("running",)), ("stopped",))


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "....",
        "é",
        "x" * 5000,
        base64.urlsafe_b64encode(b"\xff\xff").decode(),
        base64.urlsafe_b64encode(b"[" * 3000).decode(),
        base64.urlsafe_b64encode(b"9" * 700).decode(),
        encoded("text"),
        encoded({"a": 1}),
        encoded([]),
        forged(),
        forged(None),
        forged(1.5),
        forged(True),
        forged(["nested"]),
        forged(1 << 63),
        forged(-(1 << 63) - 1),
        forged("a\0b"),
        forged("\ud800"),
    ],
)
def test_a_forged_token_is_refused_before_a_store_sees_it(token: str) -> None:
    with pytest.raises(InvalidRequest, match="Start again from the first page"):
        read_page(5, token)


def test_keys_as_large_as_a_database_can_hold_are_served() -> None:
    after = ((1 << 63) - 1, -(1 << 63), "ünïcode")
    assert read_page(5, encode_token(after)).after == after
