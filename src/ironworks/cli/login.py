"""`iron login`."""

from __future__ import annotations

import getpass
import sys
from dataclasses import replace

from ironworks.cli.options import DEFAULTS, Options
from ironworks.cli.output import state_name
from ironworks.model.errors import InvalidRequest
from ironworks.sdk import AsyncIronworks, discover
from ironworks.sdk.configuration import config_file, save


def _read_key() -> str:
    """From the terminal without echo, or from standard input where that is no terminal."""
    if sys.stdin.isatty():
        return getpass.getpass("API key: ").strip()
    return sys.stdin.readline().strip()


async def command(url: str = "", /, *, options: Options = DEFAULTS) -> None:
    """Remember a platform and an API key, after trying them.

    The key is asked for, or read from standard input: on a command line others could see it.

    Args:
        url: The platform's API; default: the one in use.
    """
    found = discover(url or options.url, ca_file=options.ca_file, data_dir=options.data_dir)
    key = _read_key()
    if not key.startswith("iwk_"):
        raise InvalidRequest("An API key begins with iwk_.", hint="`iron key create` makes one.")
    ca_file = found.ca_file.resolve() if found.ca_file is not None else None
    configuration = replace(found, api_key=key, ca_file=ca_file)
    async with AsyncIronworks(configuration.url, key, configuration.ca_file) as client:
        who = await client.tenants.whoami()
    path = config_file()
    save(configuration, path)
    roles = ", ".join(state_name(role) for role in who.roles)
    options.output().fields(
        who,
        {
            "Platform": configuration.url,
            "Tenant": who.tenant_name or who.tenant_id or "- (operator)",
            "Roles": roles,
            "Remembered in": path,
        },
    )
