"""From quantities to amounts: pure, integer, and the same lines for the same usage, always.

A line's amount is the exact fraction quantity x price / per_quantity of nano-units. The total is
the sum of the fractions, rounded once, half to even. Lines show their fraction rounded down, and
the nano-units that lack to the total go, one each, to the lines with the largest remainders (ties:
the earlier line). So lines add up to the total, and no line is off by a whole nano-unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from ironworks.aggregatord.types import Charge, RatedLine


def exact_amount(charge: Charge) -> Fraction:
    """What a charge costs, before rounding, in nano-units."""
    return Fraction(charge.quantity * charge.price.nanos, charge.price.per_quantity)


def rate(charges: Sequence[Charge]) -> tuple[tuple[RatedLine, ...], int]:
    """Lines in the order of the charges, and their total in nano-units."""
    exact = [exact_amount(charge) for charge in charges]
    total = round(sum(exact, Fraction(0)))
    amounts = [amount.numerator // amount.denominator for amount in exact]
    lacking = total - sum(amounts)
    by_remainder = sorted(
        range(len(exact)), key=lambda index: (amounts[index] - exact[index], index)
    )
    for index in by_remainder[:lacking]:
        amounts[index] += 1
    lines = tuple(
        RatedLine(charge=charge, amount_nanos=amount)
        for charge, amount in zip(charges, amounts, strict=True)
    )
    return lines, total
