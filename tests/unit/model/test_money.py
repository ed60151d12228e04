from __future__ import annotations

import operator

import pytest

from ironworks.model.errors import InvalidRequest
from ironworks.model.money import Money, divide_half_up


def test_money_reads_like_money() -> None:
    assert str(Money(1_500_000_000, "USD")) == "1.500000000 USD"
    assert str(Money(-1, "EUR")) == "-0.000000001 EUR"


def test_currencies_do_not_mix() -> None:
    with pytest.raises(InvalidRequest, match="Cannot add EUR to USD"):
        operator.add(Money(1, "USD"), Money(1, "EUR"))
    with pytest.raises(InvalidRequest, match="Cannot add EUR to USD"):
        operator.sub(Money(1, "USD"), Money(1, "EUR"))


@pytest.mark.parametrize("currency", ["", "usd", "US", "USDX", "U$D", "USD\n"])
def test_a_currency_is_three_capital_letters(currency: str) -> None:
    with pytest.raises(InvalidRequest, match="not a currency code"):
        Money(1, currency)


@pytest.mark.parametrize(
    ("numerator", "denominator", "expected"),
    [(1, 2, 1), (-1, 2, -1), (1, 3, 0), (2, 3, 1), (5, 2, 3), (-5, 2, -3), (0, 7, 0), (6, 3, 2)],
)
def test_halves_are_rounded_away_from_zero(numerator: int, denominator: int, expected: int) -> None:
    assert divide_half_up(numerator, denominator) == expected
