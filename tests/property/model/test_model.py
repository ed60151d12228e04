"""What holds of ids, money, pages and sizes whatever the values are."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from ironworks.model.errors import InvalidRequest
from ironworks.model.ids import check_id, check_name, derived_id, new_id
from ironworks.model.money import Money, divide_half_up
from ironworks.model.pages import encode_token, read_page
from ironworks.model.units import format_bytes, parse_bytes
from ironworks.testkit.clock import FakeClock, FakeEntropy

NANOS = st.integers(-(10**30), 10**30)
MOMENTS_NS = st.integers(0, (1 << 48) * 1_000_000 - 1)
KEYS = st.one_of(
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40),
)


@given(MOMENTS_NS, MOMENTS_NS, st.integers(), st.integers())
def test_ids_sort_by_birth(first_ns: int, second_ns: int, seed: int, other_seed: int) -> None:
    first = new_id("vm", FakeClock(now_ns=first_ns), FakeEntropy(seed))
    second = new_id("vm", FakeClock(now_ns=second_ns), FakeEntropy(other_seed))
    check_id(first, "vm", "vm_id")
    if first_ns // 1_000_000 < second_ns // 1_000_000:
        assert first < second


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=1)
)
def test_derived_ids_are_ids(parts: list[str]) -> None:
    assert check_id(derived_id("win", *parts), "win", "window_id") == derived_id("win", *parts)


@given(st.text())
def test_a_name_that_passes_is_a_dns_label(text: str) -> None:
    try:
        name = check_name(text)
    except InvalidRequest:
        return
    assert 1 <= len(name) <= 63
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert not name.startswith("-")
    assert not name.endswith("-")


@given(NANOS, NANOS, NANOS)
def test_money_adds_like_integers(a: int, b: int, c: int) -> None:
    x, y, z = Money(a, "USD"), Money(b, "USD"), Money(c, "USD")
    assert (x + y) + z == x + (y + z)
    assert x + y == y + x
    assert x - y == x + -y
    assert (x + y - y).nanos == a


@given(NANOS)
def test_money_is_written_exactly(nanos: int) -> None:
    number, currency = str(Money(nanos, "USD")).split(" ")
    assert Fraction(number) * 1_000_000_000 == nanos
    assert currency == "USD"


@given(NANOS, st.integers(1, 10**30))
def test_division_rounds_to_the_nearest_and_halves_away_from_zero(
    numerator: int, denominator: int
) -> None:
    exact = Fraction(numerator, denominator)
    rounded = divide_half_up(numerator, denominator)
    assert abs(rounded - exact) <= Fraction(1, 2)
    if abs(rounded - exact) == Fraction(1, 2):
        assert abs(rounded) > abs(exact)
    assert divide_half_up(-numerator, denominator) == -rounded


@given(
    st.lists(KEYS, min_size=1, max_size=3),
    st.tuples(st.text(max_size=20), st.one_of(st.none(), st.integers())),
    st.integers(1, 1000),
)
def test_a_page_token_comes_back_as_it_went(
    after: list[str | int], filters: tuple[object, ...], size: int
) -> None:
    page = read_page(size, encode_token(tuple(after), filters), filters)
    assert (page.size, page.after) == (size, tuple(after))


@given(st.text(max_size=1100))
def test_no_text_breaks_the_reading_of_page_tokens(text: str) -> None:
    try:
        page = read_page(1, text)
    except InvalidRequest:
        return
    assert page.after == () or text


@given(st.integers(0, 10**15 - 1), st.sampled_from(["", "K", "M", "G", "T"]))
def test_a_size_is_its_number_times_its_prefix(number: int, prefix: str) -> None:
    power = 1024 ** ["", "K", "M", "G", "T"].index(prefix)
    for unit in {prefix, f"{prefix}B", f"{prefix}iB" if prefix else "b"}:
        assert parse_bytes(f"{number}{unit}") == number * power


@given(st.text(max_size=20))
def test_no_text_breaks_the_reading_of_sizes(text: str) -> None:
    try:
        assert parse_bytes(text) >= 0
    except InvalidRequest:
        return


@given(st.integers(-(10**18), 10**18))
def test_a_written_size_is_within_a_twentieth_of_a_unit(count: int) -> None:
    number, unit = format_bytes(count).split(" ")
    scale = 1024 ** ["B", "KiB", "MiB", "GiB", "TiB"].index(unit)
    assert abs(Fraction(number) * scale - count) <= Fraction(scale, 20)
