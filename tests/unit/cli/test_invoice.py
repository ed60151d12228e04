"""`iron invoice`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ironworks.cli.invoice import money

if TYPE_CHECKING:
    from conftest import Iron


async def test_preview_shows_each_line_with_the_price_it_used(iron: Iron) -> None:
    done = await iron("invoice", "preview", "--from", "2026-11-01", "--to", "2026-11-23")
    for shown in (
        "0.040000000 USD / vCPU-hour (v1)",
        "0.001234567 USD",
        "coupon WELCOME",
        "-0.000000567 USD",
        "standard",
        "2026-11-01 00:00:00 to 2026-11-23 00:00:00 UTC",
    ):
        assert shown in done.out
    assert "10 missing" in done.err


async def test_as_json_money_is_exact(iron: Iron) -> None:
    shown = (await iron("invoice", "preview", "--json")).json
    assert shown["total"] == {"nanos": "1234000", "currency": "USD"}


def test_no_amount_is_a_dash() -> None:
    assert money(None) == "-"
