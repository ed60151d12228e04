"""`iron deployment`."""

from __future__ import annotations

from cyclopts import App

from ironworks.cli.options import DEFAULTS, Options
from ironworks.cli.output import duration, state_name, when
from ironworks.cli.progress import JobLines
from ironworks.gen.ironworks.gatewayd.v1 import deployments_pb, jobs_pb
from ironworks.model.units import NS_PER_MS, format_bytes

app = App(name="deployment", help="List, show and delete deployments.")


def _ready(deployment: deployments_pb.Deployment) -> str:
    ready = sum(
        replica.state is deployments_pb.ReplicaState.READY for replica in deployment.replicas
    )
    spec = deployment.spec or deployments_pb.DeploymentSpec()
    wanted = spec.replicas if spec.has_field("replicas") else 1
    return f"{ready}/{wanted}"


@app.command
async def get(deployment: str, /, *, options: Options = DEFAULTS) -> None:
    """Show a deployment and its replicas.

    Args:
        deployment: Id or name.
    """
    async with options.client() as client:
        found = await client.deployments.get(deployment)
    spec = found.spec or deployments_pb.DeploymentSpec()
    shape = spec.shape or deployments_pb.VmShape()
    out = options.output()
    out.fields(
        found,
        {
            "Deployment": found.deployment_id,
            "Name": found.name,
            "State": state_name(found.state) + (f": {found.reason}" if found.reason else ""),
            "Endpoint": found.endpoint,
            "Image": spec.image,
            "Digest": found.image_digest or "-",
            "Size": f"{shape.vcpus} vCPU, {format_bytes(shape.memory_bytes)}",
            "Port": found.port or "-",
            "Ready": _ready(found),
            "Job": found.job_id,
            "Created": when(found.created_at_ns),
        },
    )
    if not options.json and found.replicas:
        out.table(
            ("REPLICA", "VM", "STATE", "BOOT", "HOST", "REASON"),
            [
                (
                    replica.index,
                    replica.vm_id,
                    state_name(replica.state),
                    duration(replica.boot_ms * NS_PER_MS) if replica.boot_ms else "-",
                    replica.host_id,
                    replica.reason,
                )
                for replica in found.replicas
            ],
        )


@app.command(name="list")
async def list_(*, limit: int = 100, options: Options = DEFAULTS) -> None:
    """List deployments, newest first.

    Args:
        limit: How many at most; default: 100.
    """
    async with options.client() as client:
        page = await client.deployments.list(limit=limit)
    options.output().listing(
        "deployments",
        page,
        ("DEPLOYMENT", "NAME", "STATE", "READY", "ENDPOINT", "CREATED"),
        lambda one: (
            one.deployment_id,
            one.name,
            state_name(one.state),
            _ready(one),
            one.endpoint,
            when(one.created_at_ns),
        ),
    )


@app.command
async def delete(
    deployment: str,
    /,
    *,
    detach: bool = False,
    options: Options = DEFAULTS,
) -> None:
    """Withdraw a deployment's endpoint and remove its VMs.

    Args:
        deployment: Id or name.
        detach: Answer as soon as the job is accepted.
    """
    out = options.output()
    lines = JobLines()

    def news(job: jobs_pb.Job) -> None:
        for line in lines.news(job):
            out.say(line)

    async with options.client() as client:
        job_id = await client.deployments.delete(deployment)
        if not detach:
            await client.jobs.wait(job_id, on_progress=news)
    out.fields(
        {"deployment": deployment, "job_id": job_id, "deleted": not detach},
        {"Deployment": deployment, "Job": job_id, "Deleted": "being deleted" if detach else "yes"},
    )
