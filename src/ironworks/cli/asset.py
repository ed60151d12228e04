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
StateName = Literal["registered", "available", "in-use", "archived", "failed", "deleted"]
UploadKind = Literal["kernel", "initrd", "rootfs", "snapshot"]
Labels = Annotated[list[str] | None, Parameter(negative=())]
States = Annotated[list[StateName] | None, Parameter(negative=())]
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
            "Media type": found.media_type or "-",
            "Architecture": found.architecture or "-",
            "Labels": ", ".join(f"{k}={v}" for k, v in sorted(found.labels.items())) or "-",
            "State": state_name(found.state) + (f": {found.reason}" if found.reason else ""),
            "Damage": found.damage or "none known",
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


def _filter(
    kind: KindName,
    state: list[StateName] | None,
    label: list[str] | None,
    source: str,
    architecture: str = "",
) -> asset_pb.AssetFilter:
    return asset_pb.AssetFilter(
        kind=asset_pb.AssetKind["UNSPECIFIED" if kind == "any" else kind.upper()],
        states=[asset_pb.AssetState[one.upper().replace("-", "_")] for one in state or []],
        labels=read_labels(label or []),
        source_digest=source,
        architecture=architecture,
    )


@app.command(name="list")
async def list_(
    *,
    kind: KindName = "any",
    state: States = None,
    label: Labels = None,
    source: str = "",
    limit: int = 100,
    options: Options = DEFAULTS,
) -> None:
    """List assets, newest first.

    Args:
        kind: Only assets of this kind.
        state: Only in this state; may be given more than once; default: all but deleted.
        label: Only with this label, KEY=VALUE; may be given more than once: all must hold.
        source: Only made from this, for example the digest of an image.
        limit: How many at most; default: 100.
    """
    chosen = _filter(kind, state, label, source)
    async with options.client() as client:
        page = await client.assets.list(chosen=chosen, limit=limit)
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
async def query(
    *,
    kind: KindName = "any",
    label: Labels = None,
    source: str = "",
    architecture: str = "",
    options: Options = DEFAULTS,
) -> None:
    """Show the newest usable asset that satisfies all that is asked for, and why it is that one.

    Args:
        kind: Of this kind.
        label: With this label, KEY=VALUE; may be given more than once.
        source: Made from this.
        architecture: amd64 or arm64.
    """
    chosen = _filter(kind, None, label, source, architecture)
    async with options.client() as client:
        found = await client.assets.query(chosen)
    asset = found.asset or asset_pb.Asset()
    options.output().fields(
        found,
        {
            "Asset": asset.asset_id,
            "Kind": f"{state_name(asset.kind)}, {state_name(asset.format)}",
            "SHA-256": asset.sha256,
            "Created": when(asset.created_at_ns),
            "Chosen because": found.chosen_because,
            "Candidates": found.candidate_count,
        },
    )


def _moved(event: asset_pb.AssetEvent) -> str:
    if not event.from_state:
        return state_name(event.to_state)
    return f"{state_name(event.from_state)} → {state_name(event.to_state)}"


@app.command
async def history(asset: str, /, *, limit: int = 100, options: Options = DEFAULTS) -> None:
    """Show what has happened to an asset, oldest first.

    Args:
        asset: Id, `ast_…`.
        limit: How many at most; default: 100.
    """
    async with options.client() as client:
        page = await client.assets.history(asset, limit=limit)
    options.output().listing(
        "events",
        page,
        ("AT", "CHANGE", "BY", "WHY"),
        lambda one: (when(one.at_ns), _moved(one), one.actor, one.reason),
    )


@app.command
async def watch(
    *,
    kind: KindName = "any",
    state: States = None,
    label: Labels = None,
    after: str = "",
    options: Options = DEFAULTS,
) -> None:
    """Show changes of assets as they happen, until interrupted.

    With --json, one line for each message; its `position` is what --after takes.

    Args:
        kind: Only assets of this kind.
        state: Only changes to this state; may be given more than once.
        label: Only assets with this label, KEY=VALUE; may be given more than once.
        after: Go on after this position of an earlier watch; default: from now on.
    """
    chosen, out = _filter(kind, state, label, ""), options.output()
    async with options.client() as client:
        async for message in client.assets.watch(chosen=chosen, after=after):
            if options.json:
                out.line(message)
            elif message.event is not None:
                event = message.event
                said = f"{when(event.at_ns)}  {event.asset_id}  {_moved(event)}"
                out.plain(f"{said}  {event.reason}")


@app.command
async def archive(asset: str, /, *, reason: str = "", options: Options = DEFAULTS) -> None:
    """Put an asset away: no VM is made of it any more, and garbage collection leaves it.

    Args:
        asset: Id, `ast_…`; nothing may use it.
        reason: For its history.
    """
    async with options.client() as client:
        done = await client.assets.archive(asset, reason=reason)
    options.output().fields(done, {"Asset": done.asset_id, "State": state_name(done.state)})


@app.command
async def restore(asset: str, /, *, options: Options = DEFAULTS) -> None:
    """Make an archived asset usable again.

    Args:
        asset: Id, `ast_…`.
    """
    async with options.client() as client:
        done = await client.assets.restore(asset)
    options.output().fields(done, {"Asset": done.asset_id, "State": state_name(done.state)})


@app.command
async def delete(asset: str, /, *, reason: str = "", options: Options = DEFAULTS) -> None:
    """Delete an asset that is archived or has failed.

    Args:
        asset: Id, `ast_…`.
        reason: For its history.
    """
    async with options.client() as client:
        done = await client.assets.delete(asset, reason=reason)
    options.output().fields(done, {"Asset": done.asset_id, "State": state_name(done.state)})


@app.command
async def gc(
    *, dry_run: bool = False, unused_seconds: int = 0, options: Options = DEFAULTS
) -> None:
    """Collect garbage now: what nobody has used for its time, and what failed. For operators.

    Args:
        dry_run: Only say what would be deleted, what would be kept, and why.
        unused_seconds: Unused for this long, at least 60; default: the platform's TTL.
    """
    out = options.output()
    async with options.client() as client:
        done = await client.assets.collect_garbage(dry_run=dry_run, unused_seconds=unused_seconds)
    if options.json:
        out.line(done)
        return
    for one in done.verdicts:
        deed = ("would go" if dry_run else "deleted") if one.collected else "kept"
        out.plain(f"{one.asset_id}  {deed}  {one.reason}")
    freed = format_bytes(done.freed_bytes)
    said = "would be deleted" if dry_run else "deleted"
    out.say(f"{done.collected_count} {said} ({freed}), {done.kept_count} kept.")


@app.command
async def repair(*, dry_run: bool = False, options: Options = DEFAULTS) -> None:
    """Compare registry, leases and bytes; mend what can be mended, mark the rest. For operators.

    Args:
        dry_run: Only say what would be done.
    """
    out = options.output()
    async with options.client() as client:
        done = await client.assets.repair(dry_run=dry_run)
    if options.json:
        out.line(done)
        return
    for one in done.findings:
        out.plain(f"{one.name}  {state_name(one.fault)}: {one.action}")
    if not done.counts:
        out.say("Registry, leases and bytes agree.")
    for count in done.counts:
        out.say(f"{state_name(count.fault)}: {count.count}")


@app.command
async def upload(
    file: Path,
    /,
    *,
    kind: UploadKind,
    label: Labels = None,
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
