"""`iron key`."""

from __future__ import annotations

from typing import Literal

from cyclopts import App

from ironworks.cli.options import DEFAULTS, Options
from ironworks.cli.output import state_name, when
from ironworks.cli.tenant import tenant_id_of
from ironworks.cli.times import parse_time
from ironworks.gen.ironworks.gatewayd.v1 import api_keys_pb, roles_pb
from ironworks.model.errors import InvalidRequest
from ironworks.runtime.clock import SystemClock
from ironworks.sdk import AsyncIronworks

app = App(name="key", help="Make, list and revoke API keys.")
RoleName = Literal["owner", "admin", "developer", "billing", "viewer", "operator"]


def _roles(key: api_keys_pb.ApiKey) -> str:
    return ", ".join(state_name(role) for role in key.roles)


def _ended(key: api_keys_pb.ApiKey) -> str:
    return f"revoked {when(key.revoked_at_ns)}" if key.revoked_at_ns else when(key.expires_at_ns)


@app.command
async def create(
    name: str,
    /,
    *,
    role: tuple[RoleName, ...] = (),
    tenant: str = "",
    expires: str = "",
    options: Options = DEFAULTS,
) -> None:
    """Make an API key. Its secret is shown now, and never again.

    Args:
        name: For people: a-z, 0-9 and -.
        role: What it may do; may be given more than once; default: developer, and operator for a
            key of operators.
        tenant: For operators: id or name of the tenant that it acts for; default: none, then it is
            an operator's key.
        expires: When it ends, for example 2027-01-01; default: never.
    """
    now_ns = SystemClock().now_ns()
    expires_at_ns = parse_time(expires, now_ns) if expires else 0
    if expires and expires_at_ns <= now_ns:
        raise InvalidRequest("The key would have ended already.", hint="Give a later --expires.")
    async with options.client() as client:
        tenant_id = await tenant_id_of(client, tenant)
        names = role or (await _default_role(client, tenant_id),)
        made = await client.keys.create(
            name,
            roles=[roles_pb.Role[one.upper()] for one in names],
            tenant_id=tenant_id,
            expires_at_ns=expires_at_ns,
        )
    key = made.api_key or api_keys_pb.ApiKey()
    out = options.output()
    out.fields(
        made,
        {
            "Key": key.api_key_id,
            "Tenant": key.tenant_id or "- (operator)",
            "Roles": _roles(key),
            "Ends": _ended(key),
            "Secret": made.secret,
        },
    )
    if not options.json:
        out.say("Keep the secret: the platform stores only its hash and cannot show it again.")


async def _default_role(client: AsyncIronworks, tenant_id: str) -> RoleName:
    if tenant_id or (await client.tenants.whoami()).tenant_id:
        return "developer"
    return "operator"


@app.command(name="list")
async def list_(
    *, tenant: str = "", ended: bool = False, limit: int = 100, options: Options = DEFAULTS
) -> None:
    """List API keys, newest first, without their secrets.

    Args:
        tenant: For operators: id or name of the tenant whose keys; default: operators' keys.
        ended: Revoked and expired ones too.
        limit: How many at most; default: 100.
    """
    async with options.client() as client:
        page = await client.keys.list(
            tenant_id=await tenant_id_of(client, tenant), include_ended=ended, limit=limit
        )
    options.output().listing(
        "api_keys",
        page,
        ("KEY", "NAME", "BEGINS WITH", "ROLES", "LAST USED", "ENDS"),
        lambda one: (
            one.api_key_id,
            one.name,
            one.hint,
            _roles(one),
            when(one.last_used_at_ns),
            _ended(one),
        ),
    )


@app.command
async def revoke(key: str, /, *, options: Options = DEFAULTS) -> None:
    """End an API key at once; its tokens end within ten minutes.

    Args:
        key: Id, `key_…`.
    """
    async with options.client() as client:
        revoked = await client.keys.revoke(key)
    options.output().fields(revoked, {"Key": revoked.api_key_id, "Ends": _ended(revoked)})
