from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from ironworks.aggregatord import rating
from ironworks.aggregatord.app import default_plan
from ironworks.aggregatord.types import Charge, Interval, Price
from ironworks.gen.ironworks.aggregatord.v1.usage_pb import Meter

VERSION, _ = default_plan()


def charge(of: tuple[int, int, int]) -> Charge:
    quantity, nanos, per_quantity = of
    return Charge(
        price=Price(
            meter=Meter.DISK_READ, nanos=nanos, per_quantity=per_quantity, unit_name="thing"
        ),
        version=VERSION,
        vm_id="",
        interval=Interval(from_ns=0, to_ns=1),
        quantity=quantity,
    )


charges = st.lists(
    st.tuples(st.integers(0, 10**30), st.integers(0, 10**12), st.integers(1, 10**22)).map(charge),
    max_size=30,
)


@given(charges)
def test_lines_add_up_to_the_total_and_none_is_off_by_a_nano_unit(of: list[Charge]) -> None:
    lines, total = rating.rate(of)
    exact = [rating.exact_amount(one) for one in of]
    assert sum(line.amount_nanos for line in lines) == total
    assert abs(total - sum(exact, Fraction(0))) <= Fraction(1, 2)
    for line, amount in zip(lines, exact, strict=True):
        assert abs(line.amount_nanos - amount) < 1
        assert line.amount_nanos >= 0


@given(charges)
def test_the_same_charges_make_the_same_lines(of: list[Charge]) -> None:
    assert rating.rate(of) == rating.rate(list(of))


@given(charges, st.integers(1, 10**6))
def test_a_longer_use_never_costs_less(of: list[Charge], more: int) -> None:
    for one in of[:1]:
        longer = charge((one.quantity + more, one.price.nanos, one.price.per_quantity))
        assert rating.rate([longer, *of[1:]])[1] >= rating.rate(of)[1]


@given(st.integers(0, 10**30), st.lists(st.integers(1, 100), min_size=1, max_size=20))
def test_how_usage_is_split_into_lines_does_not_change_the_total(
    quantity: int, shares: list[int]
) -> None:
    price = (7_777_777, 3_865_470_566_400_000_000_000)
    parts = [quantity * share // sum(shares) for share in shares]
    parts[0] += quantity - sum(parts)
    whole = rating.rate([charge((quantity, *price))])[1]
    assert rating.rate([charge((part, *price)) for part in parts])[1] == whole
