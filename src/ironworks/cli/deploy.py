"""`iron deploy`, and the function behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ironworks.cli.images import sent
from ironworks.cli.options import DEFAULTS, Options
from ironworks.cli.output import Output, duration
from ironworks.cli.progress import JobLines
from ironworks.gen.ironworks.gatewayd.v1 import deployments_pb, jobs_pb
from ironworks.model.errors import InvalidRequest
from ironworks.model.units import NS_PER_MS, parse_bytes
from ironworks.sdk import AsyncIronworks, DeployResult

RESTARTS = {
    "never": deployments_pb.RestartPolicy.NEVER,
    "on-failure": deployments_pb.RestartPolicy.ON_FAILURE,
    "always": deployments_pb.RestartPolicy.ALWAYS,
}
_PATH_SCHEMES = ("oci:", "oci-archive:", "docker-archive:")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploySpec:
    """What to deploy; zero and empty mean the platform's default.

    Attributes:
        image: Registry reference, or layout or archive on the platform's machine.
        name: Unique within the tenant.
        replicas: VMs wanted.
        vcpus: Of each VM.
        memory_bytes: Of each VM.
        disk_bytes: Of each VM, for what it writes; 0: it writes to its memory.
        port: On which the application listens.
        env: Environment above the image's.
        args: Replace the image's command.
        restart: `never`, `on-failure` or `always`.
        health_path: HTTP path that must answer for a VM to get traffic.
        egress: What the VMs may connect to, each as `parse_egress` takes it.
        boot_timeout_seconds: Of each VM, until it is ready.
    """

    image: str
    name: str = ""
    replicas: int = 1
    vcpus: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    port: int = 0
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    args: Sequence[str] = ()
    restart: str = "never"
    health_path: str = ""
    egress: Sequence[str] = ()
    boot_timeout_seconds: float = 0


async def submit(
    client: AsyncIronworks, spec: DeploySpec
) -> deployments_pb.CreateDeploymentResponse:
    """Hand in the order; the job in the answer does it."""
    return await client.deployments.create(
        spec.image,
        name=spec.name,
        replicas=spec.replicas,
        vcpus=spec.vcpus,
        memory_bytes=spec.memory_bytes,
        disk_bytes=spec.disk_bytes,
        port=spec.port,
        env=spec.env,
        args=spec.args,
        restart=parse_restart(spec.restart),
        health_path=spec.health_path,
        egress=[parse_egress(rule) for rule in spec.egress],
        boot_timeout_seconds=spec.boot_timeout_seconds,
    )


async def deploy(
    client: AsyncIronworks,
    spec: DeploySpec,
    *,
    on_progress: Callable[[str], None] | None = None,
    timeout_seconds: float | None = None,
) -> DeployResult:
    """Deploy and wait until the endpoint answers.

    Args:
        client: Of the tenant that deploys.
        spec: What to deploy.
        on_progress: Called with each line that a person should read.
        timeout_seconds: How long to wait; None: until the job ends. The job goes on regardless.

    Raises:
        IronError: the order was refused, or the job failed: with its class and sentence.
    """
    accepted = await submit(client, spec)
    return await follow(client, accepted, on_progress=on_progress, timeout_seconds=timeout_seconds)


async def follow(
    client: AsyncIronworks,
    accepted: deployments_pb.CreateDeploymentResponse,
    *,
    on_progress: Callable[[str], None] | None = None,
    timeout_seconds: float | None = None,
) -> DeployResult:
    """The second half of `deploy`: wait for the job of an order."""
    lines = JobLines()
    say = on_progress or _nothing
    deployment = accepted.deployment or deployments_pb.Deployment()
    say(f"deployment {deployment.name} ({deployment.deployment_id}), job {accepted.job_id}")

    def news(job: jobs_pb.Job) -> None:
        for line in lines.news(job):
            say(line)

    return await client.deployments.wait(
        accepted.job_id, on_progress=news, timeout_seconds=timeout_seconds
    )


def _nothing(line: str) -> None:
    del line


def absolute_image(image: str, directory: Path) -> str:
    """`image` with a relative path made absolute: the platform does not know our directory."""
    for scheme in _PATH_SCHEMES:
        path = image.removeprefix(scheme)
        if path != image and path and not path.startswith("/"):
            return f"{scheme}{(directory / path)}"
    if image.startswith(("./", "../")) or image in {".", ".."}:
        return str((directory / image).resolve())
    return image


def local_path(image: str) -> Path | None:
    """Where an image on the platform's machine is; None for one in a registry."""
    for scheme in _PATH_SCHEMES:
        if image.startswith(scheme):
            path, _, _name = image.removeprefix(scheme).partition(":")
            return Path(path)
    return Path(image.partition(":")[0]) if image.startswith("/") else None


def parse_env(assignments: Sequence[str]) -> dict[str, str]:
    """`NAME=value` each.

    Raises:
        InvalidRequest: one is not.
    """
    env: dict[str, str] = {}
    for assignment in assignments:
        name, sign, value = assignment.partition("=")
        if not sign or not name:
            raise InvalidRequest(
                f"{assignment!r} is not an assignment.", hint="Write --env NAME=value."
            )
        env[name] = value
    return env


def parse_restart(word: str) -> deployments_pb.RestartPolicy:
    """`never`, `on-failure` or `always`.

    Raises:
        InvalidRequest: it is none of them.
    """
    if word not in RESTARTS:
        raise InvalidRequest(
            f"{word!r} is no restart policy.", hint=f"Use one of {', '.join(RESTARTS)}."
        )
    return RESTARTS[word]


def parse_egress(text: str) -> deployments_pb.EgressRule:
    """A network, and after a colon its ports: `203.0.113.0/24:80,443`, `[2001:db8::/32]:443`.

    Raises:
        InvalidRequest: a port is no number. The platform looks at the network.
    """
    if text.startswith("["):
        cidr, _, ports = text[1:].partition("]")
        ports = ports.removeprefix(":")
    elif text.count(":") > 1:
        cidr, ports = text, ""
    else:
        cidr, _, ports = text.partition(":")
    words = [word for word in ports.split(",") if word]
    if not all(word.isdecimal() for word in words):
        raise InvalidRequest(
            f"{text!r} is no network with ports.", hint="Write --egress 203.0.113.0/24:80,443."
        )
    return deployments_pb.EgressRule(cidr=cidr, ports=[int(word[:6]) for word in words])


def _say_accepted(out: Output, accepted: deployments_pb.CreateDeploymentResponse) -> None:
    made = accepted.deployment or deployments_pb.Deployment()
    out.fields(
        accepted, {"Deployment": made.deployment_id, "Name": made.name, "Job": accepted.job_id}
    )


async def command(  # noqa: PLR0913 - the options of the command
    image: str,
    /,
    *,
    name: str = "",
    replicas: int = 1,
    vcpus: int = 1,
    memory: str = "256MiB",
    disk: str = "0",
    port: int = 0,
    env: tuple[str, ...] = (),
    restart: str = "never",
    health_path: str = "",
    egress: tuple[str, ...] = (),
    ready_within: float = 0,
    detach: bool = False,
    options: Options = DEFAULTS,
) -> None:
    """Deploy an image and wait until its endpoint answers.

    Args:
        image: Registry reference, or an archive or OCI layout: a relative path, or one that exists
            here, is uploaded; oci:/path and oci-archive:/file.tar are on the platform's machine.
        name: Unique within the tenant; default: made of the image's name.
        replicas: VMs behind the endpoint; default: 1.
        vcpus: Virtual CPUs of each VM; default: 1.
        memory: Memory of each VM, for example 2GiB; default: 256MiB.
        disk: Disk of each VM for what it writes, for example 10GiB; it outlives reboots and goes
            with the VM. Default: 0, what is written goes to the VM's memory.
        port: TCP port of the application; default: the first that the image exposes, else 8080.
        env: NAME=value; may be given more than once.
        restart: When a VM whose application has ended is booted again: never, on-failure, always.
        health_path: HTTP path that must answer with a status from 200 to 399 for a VM to get
            traffic; default: its port must accept connections.
        egress: Network that VMs may connect to, with its ports if not all: 203.0.113.0/24:80,443.
            May be given more than once; default: they reach each other and nothing else.
        ready_within: Seconds that each VM may take until it is ready, 1 to 600; default: 120.
        detach: Answer as soon as the job is accepted.
    """
    spec = DeploySpec(
        image=image,
        name=name,
        replicas=replicas,
        vcpus=vcpus,
        memory_bytes=parse_bytes(memory),
        disk_bytes=parse_bytes(disk),
        port=port,
        env=parse_env(env),
        restart=restart,
        health_path=health_path,
        egress=egress,
        boot_timeout_seconds=ready_within,
    )
    await _ordered(spec, options, detach=detach)


async def _ordered(spec: DeploySpec, options: Options, *, detach: bool) -> None:
    out = options.output()
    async with options.client() as client:
        spec = replace(spec, image=await sent(client, spec.image, out.say))
        accepted = await submit(client, spec)
        if detach:
            _say_accepted(out, accepted)
            return
        result = await _followed(client, accepted, out)
    out.fields(as_fields(result), for_people(result))


async def _followed(
    client: AsyncIronworks, accepted: deployments_pb.CreateDeploymentResponse, out: Output
) -> DeployResult:
    try:
        return await follow(client, accepted, on_progress=out.say)
    except asyncio.CancelledError:
        out.say(f"The job goes on: `iron job watch {accepted.job_id}` follows it.")
        raise


def as_fields(result: DeployResult) -> dict[str, object]:
    """The line of JSON of `iron deploy --json`."""
    return {
        "deployment_id": result.deployment_id,
        "job_id": result.job_id,
        "endpoint": result.endpoint,
        "image_digest": result.image_digest,
        "build_id": result.build_id,
        "rootfs_asset_id": result.rootfs_asset_id,
        "build_ms": result.build_ms,
        "build_reused": result.build_reused,
        "boot_ms": result.boot_ms,
        "vm_ids": list(result.vm_ids),
    }


def for_people(result: DeployResult) -> dict[str, object]:
    """What `iron deploy` ends with."""
    reused = "built before, " if result.build_reused else ""
    return {
        "Endpoint": result.endpoint,
        "Deployment": result.deployment_id,
        "Image": result.image_digest,
        "Build": f"{result.build_id} ({reused}{duration(result.build_ms * NS_PER_MS)})",
        "Boot": duration(result.boot_ms * NS_PER_MS),
        "VMs": ", ".join(result.vm_ids),
    }
