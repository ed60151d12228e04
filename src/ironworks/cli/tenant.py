"""`iron tenant`."""

from __future__ import annotations

from cyclopts import App

from ironworks.cli.options import DEFAULTS, Options
from ironworks.cli.output import state_name, when
from ironworks.gen.ironworks.gatewayd.v1 import tenants_pb
from ironworks.model.errors import NotFound
from ironworks.sdk import AsyncIronworks

app = App(name="tenant", help="Open, list and show tenants.")


async def tenant_id_of(client: AsyncIronworks, tenant: str) -> str:
    """The id of a tenant given by id or name; empty stays empty.

    Raises:
        NotFound: no tenant has the name.
    """
    if not tenant or tenant.startswith("tnt_"):
        return tenant
    page_token = ""
    while True:
        page = await client.tenants.list(page_token=page_token)
        for one in page:
            if one.name == tenant:
                return one.tenant_id
        page_token = page.next_page_token
        if not page_token:
            raise NotFound(f"There is no tenant {tenant}.", hint="`iron tenant list` has them.")


def _fields(tenant: tenants_pb.Tenant) -> dict[str, object]:
    return {
        "Tenant": tenant.tenant_id,
        "Name": tenant.name,
        "Display name": tenant.display_name,
        "State": state_name(tenant.state),
        "Endpoints end in": f"-{tenant.endpoint_suffix}" if tenant.endpoint_suffix else "-",
        "Created": when(tenant.created_at_ns),
    }


@app.command
async def create(name: str, /, *, display_name: str = "", options: Options = DEFAULTS) -> None:
    """Open a tenant.

    Args:
        name: Unique on the platform: a-z, 0-9 and -.
        display_name: Free text for people.
    """
    async with options.client() as client:
        tenant = await client.tenants.create(name, display_name=display_name)
    options.output().fields(tenant, _fields(tenant))


@app.command
async def get(tenant: str = "", /, *, options: Options = DEFAULTS) -> None:
    """Show a tenant.

    Args:
        tenant: Id or, for operators, name; default: the caller's own.
    """
    async with options.client() as client:
        found = await client.tenants.get(await tenant_id_of(client, tenant))
    options.output().fields(found, _fields(found))


@app.command(name="list")
async def list_(*, limit: int = 100, options: Options = DEFAULTS) -> None:
    """List tenants, newest first.

    Args:
        limit: How many at most; default: 100.
    """
    async with options.client() as client:
        page = await client.tenants.list(limit=limit)
    options.output().listing(
        "tenants",
        page,
        ("TENANT", "NAME", "STATE", "CREATED"),
        lambda one: (one.tenant_id, one.name, state_name(one.state), when(one.created_at_ns)),
    )
