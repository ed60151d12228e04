"""`iron registry`."""

from __future__ import annotations

import getpass
import sys

from cyclopts import App

from ironworks.cli.options import DEFAULTS, Options
from ironworks.cli.output import when
from ironworks.model.errors import InvalidRequest
from ironworks.sdk import Page

app = App(name="registry", help="Credentials for private registries, from which builds pull.")
_MAX_PASSWORD_CHARS = 8192


def _password(*, stdin: bool) -> str:
    """The password: from standard input, or asked for; never from the command line."""
    if not stdin and sys.stdin.isatty():
        return getpass.getpass("Password or token: ")
    password = sys.stdin.read(_MAX_PASSWORD_CHARS + 2).rstrip("\r\n")
    if not password:
        raise InvalidRequest(
            "No password came.", hint="Write it to standard input, with --password-stdin."
        )
    return password


@app.command
async def login(
    scope: str,
    /,
    *,
    username: str,
    password_stdin: bool = False,
    options: Options = DEFAULTS,
) -> None:
    """Store a credential, in place of one for the same registry. It is kept encrypted.

    Args:
        scope: Registry, with a repository prefix if wanted: ghcr.io, ghcr.io/acme.
        username: User name.
        password_stdin: Read the password or token from standard input; default: ask for it.
    """
    password = _password(stdin=password_stdin)
    async with options.client() as client:
        stored = await client.registries.login(scope, username, password)
    options.output().fields(stored, {"Registry": stored.scope, "User": stored.username})


@app.command(name="list")
async def list_(*, options: Options = DEFAULTS) -> None:
    """List the tenant's credentials; passwords are never shown."""
    async with options.client() as client:
        known = await client.registries.list()
    options.output().listing(
        "registries",
        Page(tuple(known)),
        ("REGISTRY", "USER", "STORED", "LAST USED"),
        lambda one: (one.scope, one.username, when(one.updated_at_ns), when(one.last_used_at_ns)),
    )


@app.command
async def logout(scope: str, /, *, options: Options = DEFAULTS) -> None:
    """Remove a credential.

    Args:
        scope: The registry it was stored for.
    """
    async with options.client() as client:
        await client.registries.logout(scope)
    options.output().fields({"scope": scope}, {"Removed": scope})
