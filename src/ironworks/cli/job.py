"""`iron job`."""

from __future__ import annotations

from cyclopts import App

from ironworks.cli.options import DEFAULTS, Options
from ironworks.cli.output import Output, state_name, when
from ironworks.cli.progress import JobLines, stage_line
from ironworks.gen.ironworks.gatewayd.v1 import jobs_pb
from ironworks.sdk.jobs import outcome_error

app = App(name="job", help="Follow long-running work.")


def _show(out: Output, job: jobs_pb.Job) -> None:
    failure = job.failure.message if job.failure is not None else ""
    fields: dict[str, object] = {
        "Job": job.job_id,
        "Does": state_name(job.kind),
        "To": job.resource_id,
        "State": state_name(job.state) + (f": {failure}" if failure else ""),
        "Accepted": when(job.created_at_ns),
        "Ended": when(job.ended_at_ns),
        "Request": job.request_id or "-",
    }
    out.fields(job, fields)
    if not out.json:
        for stage in job.stages:
            out.say(f"  {stage_line(stage)}")


@app.command
async def get(job: str, /, *, options: Options = DEFAULTS) -> None:
    """Show a job and its stages.

    Args:
        job: Id, `job_…`.
    """
    async with options.client() as client:
        found = await client.jobs.get(job)
    _show(options.output(), found)


@app.command(name="list")
async def list_(*, about: str = "", limit: int = 100, options: Options = DEFAULTS) -> None:
    """List jobs, newest first.

    Args:
        about: Only jobs about this deployment, tenant or host (an id).
        limit: How many at most; default: 100.
    """
    async with options.client() as client:
        page = await client.jobs.list(resource_id=about, limit=limit)
    options.output().listing(
        "jobs",
        page,
        ("JOB", "DOES", "TO", "STATE", "ACCEPTED", "ENDED"),
        lambda one: (
            one.job_id,
            state_name(one.kind),
            one.resource_id,
            state_name(one.state),
            when(one.created_at_ns),
            when(one.ended_at_ns),
        ),
    )


@app.command
async def watch(job: str, /, *, options: Options = DEFAULTS) -> None:
    """Follow a job to its end; fails if the job fails.

    With --json, one line for each change.

    Args:
        job: Id, `job_…`.
    """
    out = options.output()
    lines = JobLines()
    last = jobs_pb.Job()
    async with options.client() as client:
        async for last in client.jobs.watch(job):
            if options.json:
                out.line(last)
            for line in [] if options.json else lines.news(last):
                out.say(line)
    if (error := outcome_error(last)) is not None:
        raise error
    if not options.json:
        _show(out, last)
