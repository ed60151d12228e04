"""The metald of each host, as workflows and reconcilers need it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from protobuf import Oneof

from ironworks.gatewayd.types import Deployment, DeploymentSpec, Replica, RestartMode
from ironworks.gen.ironworks.common.v1.common_pb import PageRequest
from ironworks.gen.ironworks.metald.v1 import vm_pb
from ironworks.gen.ironworks.metald.v1.vm_connect import VmServiceClient
from ironworks.runtime.rpc.client import Clients

SERVICE = "metald"
CREATE_TIMEOUT_SECONDS = 120.0
STOP_MARGIN_SECONDS = 30.0
MS_PER_SECOND = 1000
_PAGE = 1000


class VmPhase(Enum):
    """Where a VM stands, as far as a deployment cares."""

    COMING = "coming"
    CREATED = "created"
    BOOTING = "booting"
    RUNNING = "running"
    ENDED = "ended"
    GONE = "gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class VmView:
    """A VM as it stands; `address` is empty before it is created, `reason` is a sentence."""

    vm_id: str
    phase: VmPhase
    ready: bool
    address: str
    reason: str


_STATE = vm_pb.VmState
_PHASES = {
    _STATE.REQUESTED: VmPhase.COMING,
    _STATE.CREATING: VmPhase.COMING,
    _STATE.CREATED: VmPhase.CREATED,
    _STATE.BOOTING: VmPhase.BOOTING,
    _STATE.RUNNING: VmPhase.RUNNING,
    _STATE.DELETED: VmPhase.GONE,
}
_RESTART = {
    RestartMode.NEVER: vm_pb.RestartMode.NEVER,
    RestartMode.ON_FAILURE: vm_pb.RestartMode.ON_FAILURE,
    RestartMode.ALWAYS: vm_pb.RestartMode.ALWAYS,
}


def view_of_vm(vm: vm_pb.Vm) -> VmView:
    """What a deployment reads from a VM."""
    sentence = vm.exit.sentence if vm.exit else ""
    tail = " | ".join(vm.exit.console_tail[-3:]) if vm.exit else ""
    reason = vm.reason or sentence
    if sentence and sentence not in reason:
        reason = f"{reason} {sentence}"
    return VmView(
        vm_id=vm.id,
        phase=_PHASES.get(vm.state, VmPhase.ENDED),
        ready=vm.ready,
        address=vm.network.fabric_address if vm.network else "",
        reason=f"{reason} Last on its console: {tail}" if tail else reason,
    )


def _egress(spec: DeploymentSpec) -> list[vm_pb.EgressRule]:
    rules: list[vm_pb.EgressRule] = []
    for rule in spec.egress:
        if not rule.ports:
            rules.append(vm_pb.EgressRule(cidr=rule.cidr))
        rules += [
            vm_pb.EgressRule(cidr=rule.cidr, first_port=port, last_port=port) for port in rule.ports
        ]
    return rules


def vm_spec(deployment: Deployment, replica: Replica) -> vm_pb.VmSpec:
    """The VM of a replica."""
    spec = deployment.spec
    check = vm_pb.ReadinessCheck(
        period_seconds=spec.readiness.period_ms / MS_PER_SECOND,
        timeout_seconds=spec.readiness.timeout_ms / MS_PER_SECOND,
        failure_threshold=spec.readiness.failure_threshold,
    )
    if spec.readiness.http_path:
        probe = vm_pb.HttpProbe(
            port=deployment.port,
            path=spec.readiness.http_path,
            expected_status=spec.readiness.http_status,
        )
        check.probe = Oneof("http", probe)
    else:
        check.probe = Oneof("tcp_port", deployment.port)
    return vm_pb.VmSpec(
        name=f"{deployment.name[:50].rstrip('-')}-{replica.index}",
        vcpus=spec.vcpus,
        memory_bytes=spec.memory_bytes,
        disk_bytes=spec.disk_bytes,
        assets=vm_pb.VmAssets(
            kernel_asset_id=spec.kernel_asset_id, rootfs_asset_id=deployment.rootfs_asset_id
        ),
        workload=vm_pb.Workload(
            argv=list(deployment.argv),
            env=[f"{name}={value}" for name, value in sorted(spec.env.items())],
        ),
        readiness=check,
        restart=vm_pb.RestartPolicy(mode=_RESTART[spec.restart]),
        network=vm_pb.VmNetworkSpec(egress=_egress(spec)),
        deployment_id=deployment.deployment_id,
    )


class Vms:
    """Calls the metald at `url` for a tenant. Every change carries a key: all are repeatable."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients

    def _client(self, url: str, tenant_id: str | None, timeout_seconds: float) -> VmServiceClient:
        return self._clients.of(
            VmServiceClient,
            SERVICE,
            tenant_id=tenant_id,
            timeout_seconds=timeout_seconds,
            url=url,
        )

    async def create(self, url: str, deployment: Deployment, replica: Replica) -> VmView:
        """Create the VM of a replica."""
        client = self._client(url, deployment.tenant_id, CREATE_TIMEOUT_SECONDS)
        request = vm_pb.CreateVmRequest(
            idempotency_key=f"create-{replica.vm_id}",
            vm_id=replica.vm_id,
            spec=vm_spec(deployment, replica),
        )
        return view_of_vm(await client.create_vm(request))

    async def boot(self, url: str, tenant_id: str, vm_id: str, timeout_seconds: float) -> VmView:
        """Order a VM to boot; answers as soon as it is booting."""
        request = vm_pb.BootVmRequest(
            idempotency_key=f"boot-{vm_id}",
            vm_id=vm_id,
            timeout_seconds=timeout_seconds,
            detach=True,
        )
        client = self._client(url, tenant_id, CREATE_TIMEOUT_SECONDS)
        return view_of_vm(await client.boot_vm(request))

    async def view(self, url: str, tenant_id: str, vm_id: str) -> VmView:
        """A VM as it stands."""
        client = self._client(url, tenant_id, CREATE_TIMEOUT_SECONDS)
        return view_of_vm(await client.get_vm(vm_pb.GetVmRequest(vm_id=vm_id)))

    async def shutdown(self, url: str, tenant_id: str, vm_id: str, grace_seconds: float) -> None:
        """Ask a guest to end, then end it."""
        request = vm_pb.ShutdownVmRequest(
            idempotency_key=f"stop-{vm_id}",
            vm_id=vm_id,
            timeout_seconds=max(0.1, grace_seconds),
            force=grace_seconds <= 0,
            reason="Its deployment is being deleted.",
        )
        client = self._client(url, tenant_id, grace_seconds + STOP_MARGIN_SECONDS)
        await client.shutdown_vm(request)

    async def delete(self, url: str, tenant_id: str, vm_id: str) -> None:
        """Remove a VM and everything of it, whatever its state."""
        request = vm_pb.DeleteVmRequest(idempotency_key=f"delete-{vm_id}", vm_id=vm_id, force=True)
        await self._client(url, tenant_id, CREATE_TIMEOUT_SECONDS).delete_vm(request)

    async def list_all(self, url: str) -> dict[str, VmView]:
        """Every VM of a host that is not deleted, by id."""
        client = self._client(url, None, CREATE_TIMEOUT_SECONDS)
        found: dict[str, VmView] = {}
        token = ""
        while True:
            page = PageRequest(page_size=_PAGE, page_token=token)
            answer = await client.list_vms(vm_pb.ListVmsRequest(page=page))
            found |= {vm.id: view_of_vm(vm) for vm in answer.vms}
            token = answer.page.next_page_token if answer.page else ""
            if not token:
                return found
