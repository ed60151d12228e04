"""`iron asset`."""

from __future__ import annotations

from typing import Literal

from cyclopts import App

from ironworks.cli.options import DEFAULTS, Options
from ironworks.cli.output import state_name, when
from ironworks.gen.ironworks.assetmanagerd.v1 import asset_pb
from ironworks.model.units import format_bytes

app = App(name="asset", help="List and show kernels, initrds and root file systems.")
KindName = Literal["any", "kernel", "initrd", "rootfs", "snapshot"]


@app.command
async def get(asset: str, /, *, options: Options = DEFAULTS) -> None:
    """Show an asset.

    Args:
        asset: Id, `ast_…`.
    """
    async with options.client() as client:
        found = await client.assets.get(asset)
    options.output().fields(
        found,
        {
            "Asset": found.asset_id,
            "Owner": found.tenant_id or "the platform",
            "Kind": f"{state_name(found.kind)}, {state_name(found.format)}",
            "State": state_name(found.state) + (f": {found.reason}" if found.reason else ""),
            "Size": format_bytes(found.size_bytes),
            "SHA-256": found.sha256,
            "Made from": found.source_digest or "-",
            "Build": found.build_id or "-",
            "Leases": found.lease_count,
            "Created": when(found.created_at_ns),
            "Last used": when(found.last_used_at_ns),
            "Collectable from": when(found.collectable_at_ns),
        },
    )


@app.command(name="list")
async def list_(*, kind: KindName = "any", limit: int = 100, options: Options = DEFAULTS) -> None:
    """List assets, newest first.

    Args:
        kind: Only assets of this kind.
        limit: How many at most; default: 100.
    """
    wanted = asset_pb.AssetKind["UNSPECIFIED" if kind == "any" else kind.upper()]
    async with options.client() as client:
        page = await client.assets.list(chosen=asset_pb.AssetFilter(kind=wanted), limit=limit)
    options.output().listing(
        "assets",
        page,
        ("ASSET", "KIND", "FORMAT", "STATE", "SIZE", "LEASES", "CREATED"),
        lambda one: (
            one.asset_id,
            state_name(one.kind),
            state_name(one.format),
            state_name(one.state),
            format_bytes(one.size_bytes),
            one.lease_count,
            when(one.created_at_ns),
        ),
    )
