"""Deployments: N replicas of an image behind one endpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ironworks.gen.ironworks.common.v1 import common_pb
from ironworks.gen.ironworks.gatewayd.v1 import deployments_pb, jobs_pb
from ironworks.gen.ironworks.gatewayd.v1.deployments_connect import DeploymentServiceClient
from ironworks.model.errors import Internal
from ironworks.sdk.jobs import Jobs
from ironworks.sdk.resource import DEFAULT_LIMIT, Page, Resource, present, walk


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployResult:
    """A deployment that runs.

    Attributes:
        deployment_id: `dep_…`.
        job_id: The job that brought it up.
        endpoint: URL that answers.
        image_digest: Digest that the reference meant, `sha256:…`.
        build_id: Build that made the root file system, `bld_…`.
        rootfs_asset_id: Asset of the root file system, `ast_…`.
        build_ms: Time that the build took, milliseconds; of finding it where it existed.
        build_reused: Whether the root file system existed before.
        boot_ms: From the order to boot until the port accepted a connection, milliseconds, of the
            slowest replica.
        vm_ids: VMs, in the order of their replicas.
        job: The job, ended, with its stages.
    """

    deployment_id: str
    job_id: str
    endpoint: str
    image_digest: str
    build_id: str
    rootfs_asset_id: str
    build_ms: int
    build_reused: bool
    boot_ms: int
    vm_ids: tuple[str, ...]
    job: jobs_pb.Job


def deploy_result(job: jobs_pb.Job) -> DeployResult:
    """What a completed job that brought a deployment up says of it.

    Raises:
        Internal: it says nothing of a deployment.
    """
    outcome = None if job.result is None else job.result.outcome
    if outcome is None or not isinstance(outcome.value, jobs_pb.DeploymentResult):
        raise Internal(f"The job {job.job_id} ended well but names no deployment.")
    made = outcome.value
    return DeployResult(
        deployment_id=made.deployment_id,
        job_id=job.job_id,
        endpoint=made.endpoint,
        image_digest=made.image_digest,
        build_id=made.build_id,
        rootfs_asset_id=made.rootfs_asset_id,
        build_ms=made.build_ms,
        build_reused=made.build_reused,
        boot_ms=made.boot_ms,
        vm_ids=tuple(made.vm_ids),
        job=job,
    )


class Deployments(Resource):
    """Deployments of the caller's tenant."""

    async def create(  # noqa: PLR0913 - the words of an order, all by name
        self,
        image: str,
        *,
        name: str = "",
        replicas: int = 1,
        vcpus: int = 0,
        memory_bytes: int = 0,
        disk_bytes: int = 0,
        port: int = 0,
        env: Mapping[str, str] | None = None,
        args: Sequence[str] = (),
        restart: deployments_pb.RestartPolicy = deployments_pb.RestartPolicy.NEVER,
        health_path: str = "",
        egress: Sequence[deployments_pb.EgressRule] = (),
        boot_timeout_seconds: float = 0,
        labels: Mapping[str, str] | None = None,
        idempotency_key: str = "",
    ) -> deployments_pb.CreateDeploymentResponse:
        """Accept a deployment; the job in the answer brings it up.

        Args:
            image: Registry reference, or layout or archive on the platform's machine.
            name: Unique within the tenant; empty: made of the image's name.
            replicas: VMs wanted.
            vcpus: Of each VM; 0: the platform's default, 1.
            memory_bytes: Of each VM; 0: the platform's default, 256 MiB.
            disk_bytes: Of each VM, for what it writes; 0: it writes to its memory.
            port: On which the application listens; 0: the first that the image exposes.
            env: Environment above the image's.
            args: Replace the image's command, if any.
            restart: When a VM whose application has ended is booted again.
            health_path: HTTP path that must answer 200 to 399 for a VM to get traffic; empty: its
                port must accept connections.
            egress: What the VMs may connect to; empty: nothing but each other.
            boot_timeout_seconds: Of each VM, until it is ready, 1 to 600; 0: the platform's
                default, 120.
            labels: For people and filters.
            idempotency_key: Made if empty.
        """
        spec = deployments_pb.DeploymentSpec(
            image=image,
            replicas=replicas,
            shape=deployments_pb.VmShape(
                vcpus=vcpus, memory_bytes=memory_bytes, disk_bytes=disk_bytes
            ),
            port=port,
            env=dict(env or {}),
            args=[*args],
            restart_policy=restart,
            egress=[*egress],
            boot_timeout_ms=round(boot_timeout_seconds * 1000),
        )
        if health_path:
            check = deployments_pb.HttpCheck(path=health_path)
            spec.readiness = deployments_pb.ReadinessCheck(http=check)
        return await self.submit(spec, name=name, labels=labels, idempotency_key=idempotency_key)

    async def submit(
        self,
        spec: deployments_pb.DeploymentSpec,
        *,
        name: str = "",
        labels: Mapping[str, str] | None = None,
        idempotency_key: str = "",
    ) -> deployments_pb.CreateDeploymentResponse:
        """As `create`, with a whole specification."""
        request = deployments_pb.CreateDeploymentRequest(
            name=name, spec=spec, labels=dict(labels or {}), idempotency_key=idempotency_key
        )
        return await self._connection.call(
            DeploymentServiceClient, DeploymentServiceClient.create_deployment, request
        )

    async def wait(
        self,
        job_id: str,
        *,
        on_progress: Callable[[jobs_pb.Job], None] | None = None,
        timeout_seconds: float | None = None,
    ) -> DeployResult:
        """The outcome of the job that `create` answered; see `jobs.wait`."""
        job = await Jobs(self._connection).wait(
            job_id, on_progress=on_progress, timeout_seconds=timeout_seconds
        )
        return deploy_result(job)

    async def get(self, deployment: str) -> deployments_pb.Deployment:
        """One deployment, by id or name."""
        request = deployments_pb.GetDeploymentRequest(deployment_id=deployment)
        answer = await self._connection.call(
            DeploymentServiceClient, DeploymentServiceClient.get_deployment, request
        )
        return present(answer.deployment)

    async def list(
        self,
        *,
        states: Sequence[deployments_pb.DeploymentState] = (),
        labels: Mapping[str, str] | None = None,
        limit: int = DEFAULT_LIMIT,
        page_token: str = "",
    ) -> Page[deployments_pb.Deployment]:
        """Deployments, newest first; without `states` all but deleted ones."""

        async def ask(page: common_pb.PageRequest) -> deployments_pb.ListDeploymentsResponse:
            request = deployments_pb.ListDeploymentsRequest(
                page=page, states=[*states], labels=dict(labels or {})
            )
            return await self._connection.call(
                DeploymentServiceClient, DeploymentServiceClient.list_deployments, request
            )

        return await walk(ask, lambda a: a.deployments, limit=limit, page_token=page_token)

    async def delete(
        self, deployment: str, *, grace_ms: int | None = None, idempotency_key: str = ""
    ) -> str:
        """Withdraw the endpoint and remove every VM; returns the job that does it.

        Args:
            deployment: `dep_…`, or the name.
            grace_ms: Time that applications get to end by themselves; None: the default.
            idempotency_key: Made if empty.
        """
        request = deployments_pb.DeleteDeploymentRequest(
            deployment_id=deployment, grace_ms=grace_ms, idempotency_key=idempotency_key
        )
        answer = await self._connection.call(
            DeploymentServiceClient, DeploymentServiceClient.delete_deployment, request
        )
        return answer.job_id
