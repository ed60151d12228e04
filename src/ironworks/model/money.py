"""Money is an integer number of nano-units of a currency; there is no float anywhere near it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ironworks.model.errors import InvalidRequest

NANOS_PER_UNIT = 1_000_000_000
_CURRENCY = re.compile(r"[A-Z]{3}")


@dataclass(frozen=True, slots=True, order=False)
class Money:
    """An exact amount: `nanos` nano-units of the ISO 4217 `currency`; negative is a credit."""

    nanos: int
    currency: str

    def __post_init__(self) -> None:
        if not _CURRENCY.fullmatch(self.currency):
            raise InvalidRequest(f"{self.currency!r} is not a currency code such as USD.")

    def __add__(self, other: Money) -> Money:
        self._check(other)
        return Money(self.nanos + other.nanos, self.currency)

    def __sub__(self, other: Money) -> Money:
        self._check(other)
        return Money(self.nanos - other.nanos, self.currency)

    def __neg__(self) -> Money:
        return Money(-self.nanos, self.currency)

    def _check(self, other: Money) -> None:
        if other.currency != self.currency:
            raise InvalidRequest(f"Cannot add {other.currency} to {self.currency}.")

    def __str__(self) -> str:
        sign = "-" if self.nanos < 0 else ""
        units, nanos = divmod(abs(self.nanos), NANOS_PER_UNIT)
        return f"{sign}{units}.{nanos:09d} {self.currency}"


def divide_half_up(numerator: int, denominator: int) -> int:
    """`numerator / denominator` rounded to the nearest integer, halves away from zero."""
    quotient, remainder = divmod(abs(numerator), denominator)
    quotient += 2 * remainder >= denominator
    return quotient if numerator >= 0 else -quotient
