from __future__ import annotations

from ironworks.aggregatord import rating
from ironworks.aggregatord.app import default_plan
from ironworks.aggregatord.types import UNITS, Charge, Interval, Price
from ironworks.gen.ironworks.aggregatord.v1.usage_pb import Meter
from ironworks.model.units import GIB, NS_PER_HOUR

VERSION, _ = default_plan()


def charge(quantity: int, nanos: int, per_quantity: int) -> Charge:
    return Charge(
        price=Price(
            meter=Meter.DISK_READ, nanos=nanos, per_quantity=per_quantity, unit_name="thing"
        ),
        version=VERSION,
        vm_id="",
        interval=Interval(from_ns=0, to_ns=1),
        quantity=quantity,
    )


def amounts(*charges: Charge) -> tuple[list[int], int]:
    lines, total = rating.rate(charges)
    return [line.amount_nanos for line in lines], total


def test_whole_amounts_are_exact() -> None:
    assert amounts(charge(6, 7, 2), charge(0, 5, 1)) == ([21, 0], 21)
    assert amounts() == ([], 0)


def test_remainders_go_to_the_largest_once() -> None:
    # 1/3 + 2/3 + 2/3 = 5/3: rounds to 2, of which the floors have none.
    assert amounts(charge(1, 1, 3), charge(2, 1, 3), charge(2, 1, 3)) == ([0, 1, 1], 2)
    # Ties go to the earlier line: 1/2 + 1/2 = 1.
    assert amounts(charge(1, 1, 2), charge(1, 1, 2)) == ([1, 0], 1)


def test_the_total_is_rounded_half_to_even() -> None:
    assert amounts(charge(1, 1, 2))[1] == 0
    assert amounts(charge(3, 1, 2))[1] == 2


def test_the_default_plan_prices_an_hour_as_it_says() -> None:
    prices = {price.meter: price for price in VERSION.prices}
    assert set(prices) <= set(UNITS)
    quantities = {
        Meter.VCPU_PROVISIONED: NS_PER_HOUR,
        Meter.MEMORY_PROVISIONED: GIB * NS_PER_HOUR,
        Meter.DISK_PROVISIONED: GIB * NS_PER_HOUR,
        Meter.NETWORK_OUT: GIB,
    }
    charges = [
        Charge(
            price=prices[meter],
            version=VERSION,
            vm_id="",
            interval=Interval(from_ns=0, to_ns=1),
            quantity=quantity,
        )
        for meter, quantity in quantities.items()
    ]
    assert amounts(*charges) == ([21_000_000, 2_800_000, 110_000, 20_000_000], 43_910_000)
