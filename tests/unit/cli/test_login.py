"""`iron login`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from ironworks.testkit.fakeapi import TENANT_KEY

if TYPE_CHECKING:
    from conftest import Iron


def asked(prompt: str) -> str:
    assert prompt == "API key: "
    return TENANT_KEY


async def test_a_key_from_standard_input_is_tried_then_remembered(
    iron: Iron, tmp_path: Path
) -> None:
    iron.patch.setattr("sys.stdin", io.StringIO(f"{TENANT_KEY}\n"))
    iron.patch.delenv("IRONWORKS_API_KEY")
    done = await iron("login", iron.url)
    assert "owner" in done.out
    assert TENANT_KEY not in done.out
    iron.patch.delenv("IRONWORKS_API_URL")
    await iron("vm", "list")
    assert (tmp_path / ".config/ironworks/config.toml").stat().st_mode & 0o777 == 0o600


async def test_on_a_terminal_the_key_is_asked_for_unseen(iron: Iron) -> None:
    iron.patch.setattr("sys.stdin.isatty", lambda: True)
    iron.patch.setattr("getpass.getpass", asked)
    assert "owner" in (await iron("login", iron.url)).out


async def test_what_is_no_key_is_not_sent_anywhere(iron: Iron) -> None:
    iron.patch.setattr("sys.stdin", io.StringIO("hunter2\n"))
    done = await iron("login", iron.url, status=65)
    assert "begins with iwk_" in done.err
    assert not iron.api.asked["ExchangeToken"]


async def test_a_key_that_is_refused_is_not_remembered(iron: Iron, tmp_path: Path) -> None:
    iron.patch.setattr("sys.stdin", io.StringIO("iwk_wrong\n"))
    await iron("login", iron.url, status=76)
    assert not (tmp_path / ".config").exists()
