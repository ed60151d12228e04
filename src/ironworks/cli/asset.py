"""`iron asset`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from ironworks.cli.options import DEFAULTS, Options
from ironworks.cli.output import state_name, when
from ironworks.gen.ironworks.assetmanagerd.v1 import asset_pb
from ironworks.model.errors import DataLoss, InvalidRequest
from ironworks.model.units import format_bytes
from ironworks.sdk import AsyncIronworks

app = App(name="asset", help="Kernels, initrds, root file systems and snapshots.")
KindName = Literal["any", "kernel", "initrd", "rootfs", "snapshot"]
UploadKind = Literal["kernel", "initrd", "rootfs"]
_WITHOUT_BYTES = (asset_pb.AssetState.REGISTERED, asset_pb.AssetState.FAILED)
_REPORT_STEPS = 10


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


def read_labels(given: list[str]) -> dict[str, str]:
    """`["a=b"]` as `{"a": "b"}`.

    Raises:
        InvalidRequest: one of them has no `=`.
    """
    labels: dict[str, str] = {}
    for one in given:
        key, equals, value = one.partition("=")
        if not key or not equals:
            raise InvalidRequest(f"A label is KEY=VALUE, not {one!r}.")
        labels[key] = value
    return labels


@app.command
async def upload(
    file: Path,
    /,
    *,
    kind: UploadKind,
    label: Annotated[list[str] | None, Parameter(negative=())] = None,
    architecture: str = "",
    source: str = "",
    platform: bool = False,
    options: Options = DEFAULTS,
) -> None:
    """Make a file an asset. Broken off, the same command goes on where it stopped.

    Args:
        file: The file.
        kind: What it is for.
        label: KEY=VALUE; may be given more than once.
        architecture: amd64 or arm64; default: found out where the bytes tell.
        source: What it was made from, for example the digest of an image.
        platform: For every tenant's use. For operators.
    """
    labels, out = read_labels(label or []), options.output()
    said = 0

    def progress(sent_bytes: int, size_bytes: int) -> None:
        nonlocal said
        step = sent_bytes * _REPORT_STEPS // size_bytes
        if step > said and not options.json:
            said = step
            out.say(f"{format_bytes(sent_bytes)} of {format_bytes(size_bytes)}")

    async with options.client() as client:
        done = await client.assets.upload(
            file,
            asset_pb.AssetKind[kind.upper()],
            labels=labels,
            architecture=architecture,
            source_digest=source,
            platform=platform,
            progress=progress,
        )
    made = done.asset or asset_pb.Asset()
    out.fields(
        done,
        {
            "Asset": made.asset_id,
            "Kind": f"{state_name(made.kind)}, {state_name(made.format)}",
            "State": state_name(made.state),
            "Size": format_bytes(made.size_bytes),
            "SHA-256": made.sha256,
            "Existed": "yes" if done.existed else "no",
        },
    )


@app.command
async def verify(asset: str = "", /, *, options: Options = DEFAULTS) -> None:
    """Read stored bytes again and compare them; damaged assets get no new leases. For operators.

    Args:
        asset: Id, `ast_…`; default: all assets that have bytes.
    """
    out = options.output()
    damaged = checked = 0
    async with options.client() as client:
        async for asset_id in _ids(client, asset):
            found = await client.assets.verify(asset_id)
            checked += 1
            damaged += not found.intact
            if options.json:
                out.line(found)
            else:
                out.plain(f"{asset_id}  {found.problem or 'intact'}")
    if damaged:
        raise DataLoss(
            f"{damaged} of {checked} assets are damaged.",
            hint="Upload or build them again: the same bytes mend them.",
        )
    if not options.json:
        out.say(f"{checked} assets are intact.")


async def _ids(client: AsyncIronworks, asset_id: str) -> AsyncIterator[str]:
    if asset_id:
        yield asset_id
        return
    page_token = ""
    while True:
        page = await client.assets.list(page_token=page_token)
        for one in page:
            if one.state not in _WITHOUT_BYTES:
                yield one.asset_id
        if not page.next_page_token:
            return
        page_token = page.next_page_token
