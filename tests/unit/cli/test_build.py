"""`iron build`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ironworks.testkit.fakenouns import ASSET_ID, BUILD_ID, LOG_LINES

if TYPE_CHECKING:
    from conftest import Iron


async def test_list(iron: Iron) -> None:
    done = await iron("build", "list")
    for shown in (BUILD_ID, ASSET_ID, "completed", "1.0 s"):
        assert shown in done.out
    assert (await iron("build", "list", "--json")).json["builds"][0]["image"] == "oci:/x"


async def test_get(iron: Iron) -> None:
    done = await iron("build", "get", BUILD_ID)
    for shown in ("80.0 MiB", "4321 entries, 190.0 MiB, of 5 layers", "building", "600 ms"):
        assert shown in done.out
    await iron("build", "get", "bld_none", status=66)


async def test_logs(iron: Iron) -> None:
    done = await iron("build", "logs", BUILD_ID, "--follow")
    shown = done.out.splitlines()
    assert len(shown) == len(LOG_LINES)
    assert shown[0].endswith(f"building    {LOG_LINES[0]}")
    as_json = await iron("build", "logs", BUILD_ID, "--json")
    texts = [json.loads(line)["text"] for line in as_json.out.splitlines()]
    assert texts == list(LOG_LINES)
