"""How VMs and their specifications look on the wire; pure."""

from dataclasses import replace

from protobuf import Oneof

from ironworks.gen.ironworks.metald.v1 import vm_pb as pb
from ironworks.metald import types as t
from ironworks.metald.api.network_messages import (
    network_message,
    place_message,
    rate_limits_message,
    read_network,
    read_rate_limits,
)
from ironworks.metald.app.changes import VmChange
from ironworks.metald.app.context import Context
from ironworks.metald.drivers.driver import ExitKind
from ironworks.metald.types import Transition, Vm, VmFilter, VmSpec, VmState
from ironworks.model.errors import InvalidRequest

_STATES_IN = {getattr(pb.VmState, state.name): state for state in VmState}
_STATES_OUT = {state: number for number, state in _STATES_IN.items()}
_EXITS = {kind: getattr(pb.VmExitKind, kind.name) for kind in ExitKind}
_RESTARTS = {
    pb.RestartMode.UNSPECIFIED: t.RestartMode.NEVER,
    pb.RestartMode.NEVER: t.RestartMode.NEVER,
    pb.RestartMode.ON_FAILURE: t.RestartMode.ON_FAILURE,
    pb.RestartMode.ALWAYS: t.RestartMode.ALWAYS,
}
_RESTARTS_OUT = {mode: number for number, mode in _RESTARTS.items()}
_DEFAULT_GRACE_SECONDS = 10.0


def read_spec(message: pb.VmSpec | None) -> VmSpec:
    """A specification with its defaults; bounds are checked by `decide`.

    Raises:
        InvalidRequest: there is none, or a part that is needed is missing.
    """
    if message is None:
        raise InvalidRequest("spec is missing.")
    if message.assets is None or not message.assets.rootfs_asset_id:
        raise InvalidRequest("spec.assets.rootfs_asset_id is missing.")
    return VmSpec(
        name=message.name,
        vcpus=message.vcpus,
        memory_bytes=message.memory_bytes,
        rootfs_asset_id=message.assets.rootfs_asset_id,
        kernel_asset_id=message.assets.kernel_asset_id,
        initrd_asset_id=message.assets.initrd_asset_id,
        workload=_read_workload(message.workload),
        disk_bytes=message.disk_bytes,
        readiness=_read_readiness(message.readiness),
        restart=read_restart(message.restart),
        network=read_network(message.network),
        rate_limits=read_rate_limits(message.rate_limits),
        cpu_weight=message.cpu_weight or t.CPU_WEIGHT_PER_VCPU * max(1, message.vcpus),
        deployment_id=message.deployment_id,
        labels=dict(sorted(message.labels.items())),
    )


def _read_workload(message: pb.Workload | None) -> t.Workload:
    if message is None:
        return t.Workload()
    return t.Workload(
        argv=tuple(message.argv),
        env=tuple(message.env),
        user=message.user,
        working_directory=message.working_directory,
        stop_signal=message.stop_signal,
        stop_grace_seconds=message.stop_grace_seconds or _DEFAULT_GRACE_SECONDS,
        image_init=message.image_init,
    )


def _read_readiness(message: pb.ReadinessCheck | None) -> t.Readiness | None:
    if message is None:
        return None
    match message.probe:
        case Oneof(field="tcp_port", value=int(port)):
            check = t.Readiness(port=port)
        case Oneof(field="http", value=pb.HttpProbe() as http):
            check = t.Readiness(
                port=http.port, http_path=http.path or "/", expected_status=http.expected_status
            )
        case _:
            return None
    return replace(
        check,
        period_seconds=message.period_seconds or check.period_seconds,
        timeout_seconds=message.timeout_seconds or check.timeout_seconds,
        failure_threshold=message.failure_threshold or check.failure_threshold,
        success_threshold=message.success_threshold or check.success_threshold,
    )


def read_restart(message: pb.RestartPolicy | None) -> t.RestartPolicy:
    """A restart policy with its defaults.

    Raises:
        InvalidRequest: its mode is none.
    """
    default = t.RestartPolicy()
    if message is None:
        return default
    if message.mode not in _RESTARTS:
        raise InvalidRequest("spec.restart.mode is none that exists.")
    low = message.min_backoff_seconds or default.min_backoff_seconds
    return t.RestartPolicy(
        mode=_RESTARTS[message.mode],
        min_backoff_seconds=low,
        max_backoff_seconds=message.max_backoff_seconds or max(low, default.max_backoff_seconds),
        max_restarts=message.max_restarts or default.max_restarts,
    )


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
        restarts=vm.restarts,
        network=place_message(vm, context),
        exit=_exit_message(vm),
        driver=vm.driver,
        accel=vm.accel,
        drift=list(vm.drift),
    )


def _readiness_message(readiness: t.Readiness) -> pb.ReadinessCheck:
    http = pb.HttpProbe(
        port=readiness.port,
        path=readiness.http_path,
        expected_status=readiness.expected_status,
    )
    return pb.ReadinessCheck(
        probe=Oneof("http", http) if readiness.http_path else Oneof("tcp_port", readiness.port),
        period_seconds=readiness.period_seconds,
        timeout_seconds=readiness.timeout_seconds,
        failure_threshold=readiness.failure_threshold,
        success_threshold=readiness.success_threshold,
    )


def _spec_message(spec: VmSpec) -> pb.VmSpec:
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
            image_init=workload.image_init,
        ),
        disk_bytes=spec.disk_bytes,
        readiness=None if spec.readiness is None else _readiness_message(spec.readiness),
        restart=pb.RestartPolicy(
            mode=_RESTARTS_OUT[spec.restart.mode],
            min_backoff_seconds=spec.restart.min_backoff_seconds,
            max_backoff_seconds=spec.restart.max_backoff_seconds,
            max_restarts=spec.restart.max_restarts,
        ),
        network=network_message(spec.network),
        rate_limits=rate_limits_message(spec.rate_limits),
        cpu_weight=spec.cpu_weight,
        deployment_id=spec.deployment_id,
        labels=dict(spec.labels),
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


def change_message(change: VmChange, context: Context) -> pb.VmEvent:
    """One event of a watch."""
    before = pb.VmState.UNSPECIFIED if change.before is None else _STATES_OUT[change.before]
    return pb.VmEvent(
        sequence=change.sequence,
        at_ns=change.at_ns,
        vm=vm_message(change.vm, context),
        previous_state=before,
    )
