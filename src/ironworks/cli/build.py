"""`iron build`."""

from __future__ import annotations

from cyclopts import App

from ironworks.cli.options import DEFAULTS, Options
from ironworks.cli.output import duration, state_name, when
from ironworks.gen.ironworks.builderd.v1 import build_pb
from ironworks.model.units import format_bytes

app = App(name="build", help="List and show builds, read their logs.")


def _took(build: build_pb.Build) -> str:
    if not build.ended_at_ns:
        return "-"
    return duration(build.ended_at_ns - build.created_at_ns)


@app.command
async def get(build: str, /, *, options: Options = DEFAULTS) -> None:
    """Show a build and what it made.

    Args:
        build: Id, `bld_…`.
    """
    async with options.client() as client:
        found = await client.builds.get(build)
    failure = found.failure.message if found.failure is not None else ""
    made = found.result or build_pb.BuildResult()
    out = options.output()
    out.fields(
        found,
        {
            "Build": found.build_id,
            "Image": found.image,
            "Digest": found.image_digest or "-",
            "State": state_name(found.state) + (f": {failure}" if failure else ""),
            "Shares": found.reused_build_id or "-",
            "Asset": made.asset_id or "-",
            "Size": format_bytes(made.size_bytes),
            "Holds": f"{made.file_count} entries, {format_bytes(made.unpacked_bytes)}, of "
            f"{made.layer_count} layers",
            "Took": _took(found),
            "Created": when(found.created_at_ns),
        },
    )
    if not options.json:
        out.table(
            ("STAGE", "TOOK"),
            [
                (state_name(stage.state), duration(stage.ended_at_ns - stage.started_at_ns))
                for stage in found.stages
                if stage.ended_at_ns
            ],
        )


@app.command(name="list")
async def list_(*, limit: int = 100, options: Options = DEFAULTS) -> None:
    """List builds, newest first.

    Args:
        limit: How many at most; default: 100.
    """
    async with options.client() as client:
        page = await client.builds.list(limit=limit)
    options.output().listing(
        "builds",
        page,
        ("BUILD", "IMAGE", "STATE", "TOOK", "ASSET", "CREATED"),
        lambda one: (
            one.build_id,
            one.image,
            state_name(one.state),
            _took(one),
            (one.result or build_pb.BuildResult()).asset_id or "-",
            when(one.created_at_ns),
        ),
    )


@app.command
async def logs(
    build: str,
    /,
    *,
    follow: bool = False,
    options: Options = DEFAULTS,
) -> None:
    """Print a build's log. With --json, one object a line.

    Args:
        build: Id, `bld_…`.
        follow: Stay until the build has ended.
    """
    out = options.output()
    async with options.client() as client:
        async for line in client.builds.logs(build, follow=follow):
            if options.json:
                out.line(line)
            else:
                out.plain(f"{when(line.at_ns)} {state_name(line.state):<11} {line.text}")
