"""`iron registry`."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from ironworks.gen.ironworks.builderd.v1 import build_pb

if TYPE_CHECKING:
    from conftest import Iron


async def test_login_list_and_logout(iron: Iron) -> None:
    iron.patch.setattr("sys.stdin", io.StringIO("secret\n"))
    done = await iron("registry", "login", "ghcr.io", "--username", "bot", "--password-stdin")
    assert "ghcr.io" in done.out
    assert "secret" not in done.out + done.err
    request = iron.api.asked["SetRegistryCredential"][-1]
    assert isinstance(request, build_pb.SetRegistryCredentialRequest)
    assert request.password == "secret"
    assert "bot" in (await iron("registry", "list")).out
    await iron("registry", "logout", "ghcr.io")
    assert "No registries" in (await iron("registry", "list")).err


async def test_no_password_is_said(iron: Iron) -> None:
    iron.patch.setattr("sys.stdin", io.StringIO(""))
    await iron("registry", "login", "ghcr.io", "--username", "bot", status=65)
