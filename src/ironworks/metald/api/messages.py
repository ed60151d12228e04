"""How VMs and their specifications look on the wire; pure."""

from protobuf import Oneof

from ironworks.gen.ironworks.metald.v1 import vm_pb as pb
from ironworks.metald import types as t
from ironworks.metald.app.context import Context
from ironworks.metald.drivers.driver import ExitKind
from ironworks.metald.network import naming
from ironworks.metald.types import Transition, Vm, VmFilter, VmSpec, VmState
from ironworks.model.errors import InvalidRequest, Unimplemented

_STATES_IN = {getattr(pb.VmState, state.name): state for state in VmState}
_STATES_OUT = {state: number for number, state in _STATES_IN.items()}
_EXITS = {kind: getattr(pb.VmExitKind, kind.name) for kind in ExitKind}
_DEFAULT_GRACE_SECONDS = 10.0
_DEFAULT_PERIOD_SECONDS = 0.1
_DEFAULT_TIMEOUT_SECONDS = 1.0


def later(what: str, field: str) -> Unimplemented:
    """The refusal of a field that a later version will understand: never ignored in silence."""
    return Unimplemented(f"{what} are not built yet.", hint=f"Leave {field} empty.")


def read_spec(message: pb.VmSpec | None) -> VmSpec:
    """A specification with its defaults; bounds are checked by `decide`.

    Raises:
        InvalidRequest: there is none, or a part that is needed is missing.
        Unimplemented: it asks for what is not built yet.
    """
    if message is None:
        raise InvalidRequest("spec is missing.")
    if message.assets is None or not message.assets.rootfs_asset_id:
        raise InvalidRequest("spec.assets.rootfs_asset_id is missing.")
    _refuse_later(message)
    return VmSpec(
        name=message.name,
        vcpus=message.vcpus,
        memory_bytes=message.memory_bytes,
        rootfs_asset_id=message.assets.rootfs_asset_id,
        kernel_asset_id=message.assets.kernel_asset_id,
        initrd_asset_id=message.assets.initrd_asset_id,
        workload=_read_workload(message.workload),
        readiness=_read_readiness(message.readiness),
        cpu_weight=message.cpu_weight or t.CPU_WEIGHT_PER_VCPU * max(1, message.vcpus),
        deployment_id=message.deployment_id,
        labels=dict(sorted(message.labels.items())),
    )


def _refuse_later(message: pb.VmSpec) -> None:
    if message.disk_bytes:
        raise later("Writable disks", "spec.disk_bytes")
    restart = message.restart
    if restart is not None and restart.mode not in {
        pb.RestartMode.UNSPECIFIED,
        pb.RestartMode.NEVER,
    }:
        raise later("Restart policies", "spec.restart")
    network = message.network
    if network is not None and (network.egress or network.published_ports or network.nameservers):
        raise later("Egress rules, published ports and name servers", "spec.network")
    limits = message.rate_limits
    if limits is not None and (
        limits.disk_bytes_per_second
        or limits.disk_operations_per_second
        or limits.network_in_bytes_per_second
        or limits.network_out_bytes_per_second
    ):
        raise later("Rate limits", "spec.rate_limits")


def _read_workload(message: pb.Workload | None) -> t.Workload:
    if message is None:
        return t.Workload()
    if message.image_init:
        raise later("Images' own inits", "spec.workload.image_init")
    return t.Workload(
        argv=tuple(message.argv),
        env=tuple(message.env),
        user=message.user,
        working_directory=message.working_directory,
        stop_signal=message.stop_signal,
        stop_grace_seconds=message.stop_grace_seconds or _DEFAULT_GRACE_SECONDS,
    )


def _read_readiness(message: pb.ReadinessCheck | None) -> t.Readiness | None:
    if message is None:
        return None
    match message.probe:
        case Oneof(field="tcp_port", value=int(port)):
            return t.Readiness(
                tcp_port=port,
                period_seconds=message.period_seconds or _DEFAULT_PERIOD_SECONDS,
                timeout_seconds=message.timeout_seconds or _DEFAULT_TIMEOUT_SECONDS,
            )
        case None:
            return None
        case _:
            raise later("HTTP readiness checks", "spec.readiness.http")


def read_filter(message: pb.VmFilter | None, tenant_id: str | None) -> VmFilter:
    """A filter, narrowed to what the caller may see.

    Raises:
        InvalidRequest: too many labels, or a state that is none.
    """
    message = message or pb.VmFilter()
    if len(message.labels) > t.MAX_LABEL_FILTERS:
        raise InvalidRequest(f"filter.labels may have at most {t.MAX_LABEL_FILTERS} labels.")
    if any(state not in _STATES_IN for state in message.states):
        raise InvalidRequest("filter.states has a state that is none.")
    return VmFilter(
        states=tuple(_STATES_IN[state] for state in message.states),
        name=message.name,
        deployment_id=message.deployment_id,
        labels=tuple(sorted(message.labels.items())),
        tenant_id=tenant_id or message.tenant_id,
    )


def vm_message(vm: Vm, context: Context) -> pb.Vm:
    """A VM without history and timings."""
    return pb.Vm(
        id=vm.vm_id,
        tenant_id=vm.tenant_id,
        host_id=context.host.host_id,
        spec=_spec_message(vm.spec),
        state=_STATES_OUT[vm.state],
        reason=vm.reason,
        generation=vm.generation,
        created_at_ns=vm.created_at_ns,
        state_changed_at_ns=vm.state_changed_at_ns,
        boot_epoch=vm.boot_epoch,
        ready=vm.ready,
        network=_network_message(vm, context),
        exit=_exit_message(vm),
        driver=vm.driver,
        accel=vm.accel,
        drift=list(vm.drift),
    )


def _spec_message(spec: VmSpec) -> pb.VmSpec:
    readiness: pb.ReadinessCheck | None = None
    if spec.readiness is not None:
        readiness = pb.ReadinessCheck(
            probe=Oneof("tcp_port", spec.readiness.tcp_port),
            period_seconds=spec.readiness.period_seconds,
            timeout_seconds=spec.readiness.timeout_seconds,
        )
    workload = spec.workload
    return pb.VmSpec(
        name=spec.name,
        vcpus=spec.vcpus,
        memory_bytes=spec.memory_bytes,
        assets=pb.VmAssets(
            kernel_asset_id=spec.kernel_asset_id,
            initrd_asset_id=spec.initrd_asset_id,
            rootfs_asset_id=spec.rootfs_asset_id,
        ),
        workload=pb.Workload(
            argv=list(workload.argv),
            env=list(workload.env),
            user=workload.user,
            working_directory=workload.working_directory,
            stop_signal=workload.stop_signal,
            stop_grace_seconds=workload.stop_grace_seconds,
        ),
        readiness=readiness,
        cpu_weight=spec.cpu_weight,
        deployment_id=spec.deployment_id,
        labels=dict(spec.labels),
    )


def _network_message(vm: Vm, context: Context) -> pb.VmNetwork | None:
    if vm.slot is None or vm.evidence is None:
        return None
    return pb.VmNetwork(
        fabric_address=str(context.network.names(vm.slot).address),
        mac=naming.GUEST_MAC,
        guest_address=str(naming.GUEST_ADDRESS),
    )


def _exit_message(vm: Vm) -> pb.VmExit | None:
    if vm.exit is None:
        return None
    return pb.VmExit(
        kind=_EXITS[vm.exit.kind],
        sentence=vm.exit.sentence,
        workload_status=vm.exit.workload_status,
        vmm_status=vm.exit.vmm_status,
        console_tail=list(vm.exit.console_tail),
        at_ns=vm.exit_at_ns,
    )


def transition_message(line: Transition) -> pb.VmTransition:
    """One line of a history."""
    before = pb.VmState.UNSPECIFIED if line.before is None else _STATES_OUT[line.before]
    return pb.VmTransition(
        from_=before,
        to=_STATES_OUT[line.after],
        at_ns=line.at_ns,
        reason=line.reason,
        generation=line.generation,
    )


def timing_message(timing: t.StepTiming) -> pb.StepTiming:
    """How long one step took."""
    return pb.StepTiming(
        step=timing.step,
        started_at_ns=timing.started_at_ns,
        duration_ns=timing.duration_ns,
    )
