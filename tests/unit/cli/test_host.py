"""`iron host`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Iron


async def test_list(iron: Iron) -> None:
    iron.as_operator()
    done = await iron("host", "list", "--zone", "az-1a")
    for shown in ("qemu (tcg)", "0 of 8 vCPU", "ready", "az-1a"):
        assert shown in done.out
    assert (await iron("host", "list", "--json")).json["hosts"][0]["name"] == "one"
