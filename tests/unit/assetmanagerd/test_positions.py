"""A position that a tenant is told brings it back there, and tells it nothing."""

from __future__ import annotations

import pytest

from ironworks.assetmanagerd.positions import KEY_BYTES, Positions
from ironworks.model.errors import InvalidRequest
from ironworks.runtime.clock import SystemEntropy
from ironworks.testkit.assets import ACME, EVIL, PLATFORM

KEY = bytes(KEY_BYTES)
POSITIONS = Positions(KEY, SystemEntropy())


@pytest.mark.parametrize("number", [0, 1, 2**63 - 1])
def test_it_opens_to_the_number_that_was_sealed(number: int) -> None:
    for who in (ACME, PLATFORM):
        assert POSITIONS.open(who, POSITIONS.seal(who, number), "after") == number
    again = Positions(KEY, SystemEntropy())
    assert again.open(ACME, POSITIONS.seal(ACME, number), "after") == number


def test_it_says_not_even_whether_something_happened() -> None:
    assert len({POSITIONS.seal(ACME, 5) for _ in range(10)}) == 10
    assert {len(POSITIONS.seal(ACME, number)) for number in (0, 7, 2**40)} == {48}


def test_what_was_not_sealed_for_the_tenant_is_refused() -> None:
    good = POSITIONS.seal(ACME, 5)
    other = Positions(b"\1" * KEY_BYTES, SystemEntropy()).seal(ACME, 5)
    flipped = good[:-1] + ("A" if good[-1] != "A" else "B")
    bad = ("5", "ü", "AAAA", good[:-4], good + "AAAA", flipped, other, POSITIONS.seal(EVIL, 5))
    for text in bad:
        with pytest.raises(InvalidRequest, match="after is not a position"):
            POSITIONS.open(ACME, text, "after")
