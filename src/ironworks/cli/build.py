"""`iron build`."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import App, Parameter

from ironworks.cli.asset import read_labels
from ironworks.cli.images import sent
from ironworks.cli.options import DEFAULTS, Options
from ironworks.cli.output import duration, state_name, when
from ironworks.cli.policy import say_report
from ironworks.gen.ironworks.builderd.v1 import build_pb
from ironworks.model.errors import Aborted, kind_of
from ironworks.model.units import format_bytes

app = App(name="build", help="Build an image, list and show builds, read their logs.")
FormatName = Literal["squashfs", "ext4"]
PriorityName = Literal["low", "normal", "high"]


@app.default
async def command(
    image: str,
    /,
    *,
    format: FormatName = "squashfs",  # noqa: A002 - the option's name
    priority: PriorityName = "normal",
    timeout_seconds: int = 0,
    label: Annotated[list[str] | None, Parameter(negative=())] = None,
    force: bool = False,
    detach: bool = False,
    options: Options = DEFAULTS,
) -> None:
    """Build an image and wait for the end.

    Args:
        image: Registry reference, or an archive or OCI layout: a relative path, or one that exists
            here, is uploaded; oci:/path, oci-archive:/file.tar and docker-archive:/file.tar are on
            the platform's machine.
        format: File system to write; default: squashfs.
        priority: Order among the tenant's builds; default: normal.
        timeout_seconds: Seconds after which it fails; default: the platform's limit.
        label: KEY=VALUE; may be given more than once.
        force: Build even if the same was built before.
        detach: Answer as soon as the build is accepted.
    """
    labels, out = read_labels(label or []), options.output()
    async with options.client() as client:
        build = await client.builds.create(
            await sent(client, image, out.say),
            rootfs_format=build_pb.RootfsFormat[format.upper()],
            labels=labels,
            priority=build_pb.BuildPriority[priority.upper()],
            timeout_seconds=timeout_seconds,
            force=force,
        )
        if not detach:
            async for line in client.builds.logs(build.build_id, follow=True):
                out.say(f"{state_name(line.state):<11} {line.text}")
            build = await client.builds.get(build.build_id)
    if build.failure is not None:
        raise kind_of(build.failure.code)(build.failure.message)
    if build.state is build_pb.BuildState.CANCELLED:
        raise Aborted(f"The build {build.build_id} was cancelled.")
    made = build.result or build_pb.BuildResult()
    out.fields(
        build,
        {
            "Build": build.build_id,
            "State": state_name(build.state),
            "Digest": build.image_digest or "-",
            "Asset": made.asset_id or "-",
            "Size": format_bytes(made.size_bytes),
            "Took": _took(build),
        },
    )


@app.command
async def cancel(build: str, /, *, options: Options = DEFAULTS) -> None:
    """End a build that has not ended.

    Args:
        build: Id, `bld_…`.
    """
    async with options.client() as client:
        ended = await client.builds.cancel(build)
    options.output().fields(ended, {"Build": build, "State": state_name(ended.state)})


@app.command
async def delete(build: str, /, *, options: Options = DEFAULTS) -> None:
    """Delete the record and log of a build that has ended; its asset stays.

    Args:
        build: Id, `bld_…`.
    """
    async with options.client() as client:
        await client.builds.delete(build)
    options.output().fields({"build_id": build}, {"Deleted": build})


@app.command
async def stats(*, window: int = 86400, options: Options = DEFAULTS) -> None:
    """Show figures about builds.

    Args:
        window: Of the last so many seconds; default: 86400, a day.
    """
    async with options.client() as client:
        found = await client.builds.stats(window_seconds=window)
    options.output().fields(
        found,
        {
            "Waiting": f"{found.queued_count}, the oldest for "
            f"{duration(found.oldest_queued_age_ns)}",
            "Running": found.running_count,
            "Completed": f"{found.completed_count}, and {found.reused_count} built before",
            "Failed": found.failed_count,
            "Cancelled": found.cancelled_count,
            "Took": f"{duration(found.median_duration_ns)} (median), "
            f"{duration(found.p95_duration_ns)} (95%)",
            "Wrote": format_bytes(found.written_bytes),
        },
    )


@app.command
async def quota(*, options: Options = DEFAULTS) -> None:
    """Show the tenant's limits, and what it uses of them."""
    async with options.client() as client:
        found = await client.builds.quota()
    options.output().fields(
        found,
        {
            "Running": f"{found.running_builds} of {found.max_running_builds}",
            "Waiting": f"{found.queued_builds} of {found.max_queued_builds}",
            "Uploads": f"{format_bytes(found.upload_bytes)} of "
            f"{format_bytes(found.max_upload_bytes)}",
            "Time": f"{found.max_timeout_seconds} s a build",
            "Unpacked": f"{format_bytes(found.max_unpacked_bytes)} an image",
            "Files": f"{found.max_file_count} an image",
        },
    )


@app.command
async def packages(build: str, /, *, options: Options = DEFAULTS) -> None:
    """List the packages that a built image declares.

    Args:
        build: Id, `bld_…`.
    """
    async with options.client() as client:
        found = await client.builds.get(build)
    made, out = found.result or build_pb.BuildResult(), options.output()
    if options.json:
        out.line({"build_id": found.build_id, "packages": [*made.packages]})
    elif not made.packages:
        out.say("The image declares no packages of dpkg, apk or rpm.")
    else:
        out.table(
            ("PACKAGE", "VERSION", "ARCHITECTURE", "MANAGER"),
            [(one.name, one.version, one.architecture, one.manager) for one in made.packages],
        )


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
            "Packages": len(made.packages),
            "Worker": f"{found.worker or '-'}, taken up {found.attempt_count} times",
            "Took": _took(found),
            "Created": when(found.created_at_ns),
        },
    )
    if not options.json:
        if not found.ended_at_ns and found.progress is not None:
            out.say(
                f"{found.progress.step}: {format_bytes(found.progress.done_bytes)} of "
                f"{format_bytes(found.progress.total_bytes)}"
            )
        out.table(
            ("STAGE", "TOOK"),
            [
                (state_name(stage.state), duration(stage.ended_at_ns - stage.started_at_ns))
                for stage in found.stages
                if stage.ended_at_ns
            ],
        )
        if found.policy_report is not None:
            say_report(out, found.policy_report)


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
    end: bool = False,
    options: Options = DEFAULTS,
) -> None:
    """Print a build's log. With --json, one object a line.

    Args:
        build: Id, `bld_…`.
        follow: Stay until the build has ended.
        end: Begin with the next line that comes.
    """
    out = options.output()
    async with options.client() as client:
        async for line in client.builds.logs(build, follow=follow, from_end=end):
            if options.json:
                out.line(line)
            else:
                out.plain(f"{when(line.at_ns)} {state_name(line.state):<11} {line.text}")
