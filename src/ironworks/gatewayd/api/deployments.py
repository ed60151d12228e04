"""DeploymentService and GatewayService."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from connectrpc.request import RequestContext

from ironworks.gatewayd.api.paging import cut, page_of
from ironworks.gatewayd.app.deployments import DeploymentApp, Seen
from ironworks.gatewayd.app.edge import EdgeApp
from ironworks.gatewayd.types import (
    Deployment,
    DeploymentSpec,
    DeploymentState,
    EgressRule,
    Readiness,
    Replica,
    ReplicaState,
    RestartMode,
)
from ironworks.gen.ironworks.gatewayd.v1 import deployments_pb, policies_pb
from ironworks.gen.ironworks.gatewayd.v1.deployments_connect import DeploymentService
from ironworks.gen.ironworks.gatewayd.v1.policies_connect import GatewayService
from ironworks.model.errors import InvalidRequest
from ironworks.model.units import MIB
from ironworks.runtime.identity import current_caller

_Context = RequestContext[Any, Any]
DEFAULT_GRACE_MS = 10_000
_STATES = {state: deployments_pb.DeploymentState[state.name] for state in DeploymentState}
_STATES_BACK = {wire: state for state, wire in _STATES.items()}
_REPLICA_STATES = {state: deployments_pb.ReplicaState[state.name] for state in ReplicaState}
_RESTARTS = {
    deployments_pb.RestartPolicy.UNSPECIFIED: RestartMode.NEVER,
    deployments_pb.RestartPolicy.NEVER: RestartMode.NEVER,
    deployments_pb.RestartPolicy.ON_FAILURE: RestartMode.ON_FAILURE,
    deployments_pb.RestartPolicy.ALWAYS: RestartMode.ALWAYS,
}
_RESTARTS_BACK = {mode: wire for wire, mode in _RESTARTS.items()}
_MAX_PORT = 65_535


def _readiness_from_wire(wire: deployments_pb.ReadinessCheck | None) -> Readiness:
    default = Readiness()
    if wire is None:
        return default
    return Readiness(
        http_path=(wire.http.path or "/") if wire.http else "",
        http_status=wire.http.expected_status if wire.http else 0,
        period_ms=wire.period_ms or default.period_ms,
        timeout_ms=wire.timeout_ms or default.timeout_ms,
        failure_threshold=wire.failure_threshold or default.failure_threshold,
    )


def _egress_from_wire(index: int, rule: deployments_pb.EgressRule) -> EgressRule:
    field = f"spec.egress[{index}]"
    try:
        network = ip_network(rule.cidr)
    except ValueError:
        raise InvalidRequest(
            f"{field}.cidr {rule.cidr[:64]!r} is no IPv4 or IPv6 network.",
            hint="Write it as 203.0.113.0/24 or 2001:db8::/32, without bits beyond its prefix.",
        ) from None
    if not all(1 <= port <= _MAX_PORT for port in rule.ports):
        raise InvalidRequest(f"{field}.ports must each be 1 to {_MAX_PORT}.")
    return EgressRule(cidr=str(network), ports=tuple(rule.ports))


def spec_from_wire(wire: deployments_pb.DeploymentSpec | None) -> DeploymentSpec:
    """What shall run, defaults filled in."""
    if wire is None:
        raise InvalidRequest("spec is missing.", hint="Name at least spec.image.")
    if wire.restart_policy not in _RESTARTS:
        raise InvalidRequest("spec.restart_policy is none that exists.")
    shape = wire.shape or deployments_pb.VmShape()
    placement = wire.placement or deployments_pb.Placement()
    return DeploymentSpec(
        image=wire.image,
        replicas=wire.replicas if wire.has_field("replicas") else 1,
        vcpus=shape.vcpus or 1,
        memory_bytes=shape.memory_bytes or 256 * MIB,
        disk_bytes=shape.disk_bytes,
        port=wire.port,
        env=dict(wire.env),
        entrypoint=tuple(wire.entrypoint),
        args=tuple(wire.args),
        restart=_RESTARTS[wire.restart_policy],
        readiness=_readiness_from_wire(wire.readiness),
        egress=tuple(_egress_from_wire(index, rule) for index, rule in enumerate(wire.egress)),
        zones=tuple(placement.zones),
        host_labels=dict(placement.host_labels),
        kernel_asset_id=wire.kernel_asset_id,
        boot_timeout_ms=wire.boot_timeout_ms or 120_000,
    )


def spec_to_wire(spec: DeploymentSpec) -> deployments_pb.DeploymentSpec:
    """What shall run, as callers see it."""
    readiness = deployments_pb.ReadinessCheck(
        period_ms=spec.readiness.period_ms,
        timeout_ms=spec.readiness.timeout_ms,
        failure_threshold=spec.readiness.failure_threshold,
    )
    if spec.readiness.http_path:
        readiness.http = deployments_pb.HttpCheck(
            path=spec.readiness.http_path, expected_status=spec.readiness.http_status
        )
    return deployments_pb.DeploymentSpec(
        image=spec.image,
        replicas=spec.replicas,
        shape=deployments_pb.VmShape(
            vcpus=spec.vcpus, memory_bytes=spec.memory_bytes, disk_bytes=spec.disk_bytes
        ),
        port=spec.port,
        env=dict(spec.env),
        entrypoint=list(spec.entrypoint),
        args=list(spec.args),
        restart_policy=_RESTARTS_BACK[spec.restart],
        readiness=readiness,
        egress=[
            deployments_pb.EgressRule(cidr=rule.cidr, ports=list(rule.ports))
            for rule in spec.egress
        ],
        placement=deployments_pb.Placement(
            zones=list(spec.zones), host_labels=dict(spec.host_labels)
        ),
        kernel_asset_id=spec.kernel_asset_id,
        boot_timeout_ms=spec.boot_timeout_ms,
    )


def _replica_to_wire(replica: Replica) -> deployments_pb.Replica:
    return deployments_pb.Replica(
        index=replica.index,
        vm_id=replica.vm_id,
        host_id=replica.host_id,
        zone=replica.zone,
        state=_REPLICA_STATES[replica.state],
        generation=replica.generation,
        reason=replica.reason,
        boot_ms=replica.boot_ms,
    )


def deployment_to_wire(
    deployment: Deployment, replicas: tuple[Replica, ...], endpoint: str
) -> deployments_pb.Deployment:
    """A deployment as callers see it."""
    return deployments_pb.Deployment(
        deployment_id=deployment.deployment_id,
        tenant_id=deployment.tenant_id,
        name=deployment.name,
        spec=spec_to_wire(deployment.spec),
        state=_STATES[deployment.state],
        reason=deployment.reason,
        endpoint=endpoint,
        image_digest=deployment.image_digest,
        replicas=[_replica_to_wire(one) for one in replicas],
        generation=deployment.generation,
        job_id=deployment.job_id,
        labels=dict(deployment.labels),
        created_at_ns=deployment.created_at_ns,
        updated_at_ns=deployment.updated_at_ns,
        port=deployment.port,
    )


class DeploymentHandlers(DeploymentService):
    """DeploymentService."""

    def __init__(self, app: DeploymentApp, edge: EdgeApp) -> None:
        self._app = app
        self._edge = edge

    def _wire(self, seen: Seen) -> deployments_pb.Deployment:
        url = self._edge.url_of(seen.deployment.host_label)
        return deployment_to_wire(seen.deployment, seen.replicas, url)

    async def create_deployment(
        self, request: deployments_pb.CreateDeploymentRequest, ctx: _Context
    ) -> deployments_pb.CreateDeploymentResponse:
        """See the API's reference."""
        del ctx
        seen = await self._app.create(
            name=request.name,
            spec=spec_from_wire(request.spec),
            labels=dict(request.labels),
            idempotency_key=request.idempotency_key,
        )
        return deployments_pb.CreateDeploymentResponse(
            deployment=self._wire(seen), job_id=seen.deployment.job_id
        )

    async def get_deployment(
        self, request: deployments_pb.GetDeploymentRequest, ctx: _Context
    ) -> deployments_pb.GetDeploymentResponse:
        """See the API's reference."""
        del ctx
        seen = await self._app.get(current_caller(), request.deployment_id)
        return deployments_pb.GetDeploymentResponse(deployment=self._wire(seen))

    async def list_deployments(
        self, request: deployments_pb.ListDeploymentsRequest, ctx: _Context
    ) -> deployments_pb.ListDeploymentsResponse:
        """See the API's reference."""
        del ctx
        states = [_STATES_BACK[state] for state in request.states if state in _STATES_BACK]
        labels = dict(request.labels)
        filters = (sorted(state.value for state in states), sorted(labels.items()))
        page = page_of(request.page, *filters)
        found = await self._app.list(current_caller(), page, states, labels)
        items, info = cut(
            found,
            page,
            lambda one: (one.deployment.created_at_ns, one.deployment.deployment_id),
            *filters,
        )
        return deployments_pb.ListDeploymentsResponse(
            deployments=[self._wire(one) for one in items], page=info
        )

    async def delete_deployment(
        self, request: deployments_pb.DeleteDeploymentRequest, ctx: _Context
    ) -> deployments_pb.DeleteDeploymentResponse:
        """See the API's reference."""
        del ctx
        grace_ms = request.grace_ms if request.has_field("grace_ms") else DEFAULT_GRACE_MS
        job_id = await self._app.delete(current_caller(), request.deployment_id, grace_ms)
        return deployments_pb.DeleteDeploymentResponse(job_id=job_id)


class GatewayHandlers(GatewayService):
    """GatewayService."""

    def __init__(self, edge: EdgeApp) -> None:
        self._edge = edge

    async def get_gateway_status(
        self, request: policies_pb.GetGatewayStatusRequest, ctx: _Context
    ) -> policies_pb.GetGatewayStatusResponse:
        """See the API's reference."""
        del request, ctx
        problem = await self._edge.plane.why_not_ready()
        written = self._edge.plane.written
        return policies_pb.GetGatewayStatusResponse(
            envoy_ready=not problem,
            configuration_version=written.versions["rds.json"] if written else "",
            configuration_written_at_ns=written.at_ns if written else 0,
            endpoints=self._edge.endpoint_count,
            problems=[problem] if problem else [],
        )
