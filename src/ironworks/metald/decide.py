"""Decisions of metald, pure and total: what may follow what, who fits, what a spec must satisfy.

The table below is the architecture's line "Requested → Creating → Created → Booting → Running ⇄
Paused → Stopping → Stopped → Deleting → Deleted; any active state → Failed" and nothing more. A VM
that has a VMM always leaves through STOPPING, so `CREATED` and `BOOTING` have that edge too.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from ironworks.metald import types as t
from ironworks.metald.drivers.driver import ExitKind, ExitReport, GuestConfig
from ironworks.metald.types import HostState, Limits, Resources, Vm, VmSpec, VmState
from ironworks.model.errors import (
    FailedPrecondition,
    InvalidRequest,
    IronError,
    ResourceExhausted,
)
from ironworks.model.ids import check_id, check_name
from ironworks.model.units import MIB, format_bytes

_S = VmState

ACTIVE: Final = frozenset(
    {_S.REQUESTED, _S.CREATING, _S.CREATED, _S.BOOTING, _S.RUNNING, _S.PAUSED, _S.STOPPING}
)
"""States from which a VM can fail."""

TABLE: Final = MappingProxyType(
    {
        _S.REQUESTED: frozenset({_S.CREATING, _S.FAILED}),
        _S.CREATING: frozenset({_S.CREATED, _S.FAILED}),
        _S.CREATED: frozenset({_S.BOOTING, _S.STOPPING, _S.FAILED}),
        _S.BOOTING: frozenset({_S.RUNNING, _S.STOPPING, _S.FAILED}),
        _S.RUNNING: frozenset({_S.PAUSED, _S.STOPPING, _S.FAILED}),
        _S.PAUSED: frozenset({_S.RUNNING, _S.STOPPING, _S.FAILED}),
        _S.STOPPING: frozenset({_S.STOPPED, _S.FAILED}),
        _S.STOPPED: frozenset({_S.DELETING}),
        _S.FAILED: frozenset({_S.DELETING}),
        _S.DELETING: frozenset({_S.DELETED}),
        _S.DELETED: frozenset[VmState](),
    }
)
"""What may follow what."""

HAS_VMM: Final = frozenset({_S.CREATED, _S.BOOTING, _S.RUNNING, _S.PAUSED, _S.STOPPING})
"""States in which a VMM is alive, or should be."""

HAS_GUEST: Final = frozenset({_S.BOOTING, _S.RUNNING, _S.PAUSED})
"""States in which a guest runs, or could."""

COUNTED: Final = frozenset(_S) - {_S.STOPPED, _S.FAILED, _S.DELETING, _S.DELETED}
"""States in which a VM takes its share of the host: the others have no process."""

HOLDS_RESOURCES: Final = frozenset(_S) - {_S.DELETED}
"""States in which something may be there that `DeleteVm` would remove."""

_ENV = re.compile(r"[^=\0]+=[^\0]*")
_LABEL_KEY = re.compile(r"[a-z0-9._/-]{1,63}")
_SIGNAL = re.compile(r"(SIG)?[A-Z][A-Z0-9+-]{1,15}|[0-9]{1,2}")
_LABEL_VALUE_CHARS = 255
_NEXT_STEP = MappingProxyType(
    {
        _S.REQUESTED: "It is still being created.",
        _S.CREATING: "It is still being created.",
        _S.CREATED: "BootVm boots it.",
        _S.BOOTING: "It is booting: wait until it runs, or shut it down.",
        _S.RUNNING: "It runs already.",
        _S.PAUSED: "ResumeVm lets it run on.",
        _S.STOPPING: "Wait until it is stopped.",
        _S.STOPPED: "A stopped VM can only be deleted; create another one.",
        _S.FAILED: "A failed VM can only be deleted; create another one.",
        _S.DELETING: "It is being deleted.",
        _S.DELETED: "It is deleted.",
    }
)


def transition(vm: Vm, after: VmState, reason: str, *, now_ns: int) -> tuple[Vm, t.Transition]:
    """The VM in its next state, and the line for its history.

    Raises:
        FailedPrecondition: the table does not have this transition; says why.
    """
    check_transition(vm, after)
    changed = replace(
        vm,
        state=after,
        reason=reason,
        generation=vm.generation + 1,
        state_changed_at_ns=max(now_ns, vm.state_changed_at_ns),
        ready=after is _S.RUNNING,
    )
    line = t.Transition(
        before=vm.state,
        after=after,
        at_ns=changed.state_changed_at_ns,
        reason=reason,
        generation=changed.generation,
    )
    return changed, line


def check_transition(vm: Vm, after: VmState) -> None:
    """Refuse what the table does not have.

    Raises:
        FailedPrecondition: says what the VM's state is and what can be done instead.
    """
    if after in TABLE[vm.state]:
        return
    why = f" ({vm.reason})" if vm.state is _S.FAILED and vm.reason else ""
    raise FailedPrecondition(
        f"VM {vm.vm_id} is {vm.state}{why} and cannot become {after}.", hint=_NEXT_STEP[vm.state]
    )


def path_to_deleting(vm: Vm, *, force: bool) -> tuple[VmState, ...]:
    """The states that DeleteVm goes through before DELETING.

    Raises:
        FailedPrecondition: a guest runs and `force` is not set, or the VM is in the midst of
            another transition.
    """
    if vm.state in {_S.STOPPED, _S.FAILED, _S.DELETING, _S.DELETED}:
        return ()
    if vm.state is _S.CREATED:
        return (_S.STOPPING, _S.STOPPED)
    if vm.state is _S.STOPPING:
        return (_S.STOPPED,)
    if vm.state in HAS_GUEST:
        if not force:
            raise FailedPrecondition(
                f"VM {vm.vm_id} is {vm.state}.", hint="Shut it down first, or delete it with force."
            )
        return (_S.STOPPING, _S.STOPPED)
    return (_S.FAILED,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupted:
    """What a restarted metald does with a VM whose transition was cut off."""

    finish: VmState
    reason: str


def after_end(state: VmState, report: ExitReport) -> VmState:
    """What becomes of a VM whose VMM ended: STOPPED if that is no cause for alarm, else FAILED."""
    if state is _S.STOPPING or (state in {_S.RUNNING, _S.PAUSED} and report.clean):
        return _S.STOPPED
    return _S.FAILED


def explain_end(report: ExitReport, *, oom_kills: int) -> ExitReport:
    """The driver's report, corrected by what the VM's cgroup knows and the driver cannot."""
    if oom_kills == 0 or report.kind not in {ExitKind.CRASHED, ExitKind.LOST}:
        return report
    return replace(
        report,
        kind=ExitKind.OUT_OF_MEMORY,
        sentence="The host's kernel ended the VMM: it used more memory than its limit.",
    )


def after_restart(state: VmState, *, vmm_alive: bool) -> Interrupted | None:
    """What becomes of a VM that an earlier metald left in `state`; None: nothing to mend.

    A VM that was being made is undone, since its caller got no answer and will ask again; one that
    was being ended is ended.
    """
    if state in {_S.REQUESTED, _S.CREATING}:
        return Interrupted(
            finish=_S.FAILED, reason="metald was restarted while the VM was being created."
        )
    if state is _S.BOOTING and vmm_alive:
        return Interrupted(
            finish=_S.FAILED, reason="metald was restarted while the VM was booting."
        )
    if state is _S.STOPPING:
        return Interrupted(finish=_S.STOPPED, reason="Ended after a restart of metald.")
    return None


def committed(vms: Sequence[Vm]) -> Resources:
    """What these VMs take of the host; those without a process take nothing."""
    counted = [vm for vm in vms if vm.state in COUNTED]
    return Resources(
        vcpus=sum(vm.spec.vcpus for vm in counted),
        memory_bytes=sum(vm.committed_memory_bytes for vm in counted),
        vms=len(counted),
    )


def admit(
    want: Resources, *, taken: Resources, limits: Limits, host_state: HostState, host_reason: str
) -> IronError | None:
    """Whether a VM fits on the host now; a denial says what is short and by how much.

    `want.memory_bytes` includes the VMM's own share.
    """
    if host_state is not HostState.ACTIVE:
        return FailedPrecondition(
            f"This host takes no new VMs: it is {host_state}"
            + (f" ({host_reason})." if host_reason else "."),
            hint="Use another host, or uncordon this one.",
        )
    return _too_large(want, limits.largest) or _no_room(want, taken, limits.capacity)


def _too_large(want: Resources, largest: Resources) -> IronError | None:
    if want.vcpus > largest.vcpus:
        return InvalidRequest(
            f"The VM asks for {want.vcpus} vCPUs, and the largest VM of this host has "
            f"{largest.vcpus}.",
            hint="Ask for fewer.",
        )
    if want.memory_bytes > largest.memory_bytes:
        return InvalidRequest(
            f"The VM needs {format_bytes(want.memory_bytes)} of memory, its VMM's share included, "
            f"and the largest VM of this host has {format_bytes(largest.memory_bytes)}.",
            hint="Ask for less.",
        )
    return None


def _no_room(want: Resources, taken: Resources, capacity: Resources) -> IronError | None:
    hint = "Delete VMs, or use another host."
    if taken.vms + want.vms > capacity.vms:
        return ResourceExhausted(f"The host has its {capacity.vms} VMs already.", hint=hint)
    if taken.vcpus + want.vcpus > capacity.vcpus:
        return ResourceExhausted(
            f"The host has {max(0, capacity.vcpus - taken.vcpus)} of its {capacity.vcpus} vCPUs "
            f"left, the VM asks for {want.vcpus}.",
            hint=hint,
        )
    if taken.memory_bytes + want.memory_bytes > capacity.memory_bytes:
        left = max(0, capacity.memory_bytes - taken.memory_bytes)
        return ResourceExhausted(
            f"The host has {format_bytes(left)} of memory left, the VM needs "
            f"{format_bytes(want.memory_bytes)}.",
            hint=hint,
        )
    return None


def free_slot(taken: frozenset[int], *, first: int, count: int) -> int:
    """The next free network slot, searched upwards from `first` and around.

    Raises:
        ResourceExhausted: all are taken.
    """
    for step in range(count):
        slot = (first + step) % count
        if slot not in taken:
            return slot
    raise ResourceExhausted("Every network slot of this host is taken.", hint="Delete VMs.")


DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""PATH of a workload whose image and spec name none; what container engines do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageDefaults:
    """What the rootfs asset says of how to run it; OCI image configuration."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    user: str = ""
    working_directory: str = ""
    stop_signal: str = ""


def guest_config(spec: VmSpec, image: ImageDefaults) -> GuestConfig:
    """What the guest's init is to run: the spec's word where it has one, else the image's.

    Raises:
        InvalidRequest: neither names a program, or the directory is not absolute.
    """
    workload = spec.workload
    argv = workload.argv or (*image.entrypoint, *image.cmd)
    if not argv:
        raise InvalidRequest(
            "The image has neither entrypoint nor command.",
            hint="Give the program in spec.workload.argv.",
        )
    env: dict[str, str] = {"PATH": DEFAULT_PATH, "HOSTNAME": spec.name}
    for pair in (*image.env, *workload.env):
        name, _, value = pair.partition("=")
        env[name] = value
    workdir = workload.working_directory or image.working_directory or "/"
    if not workdir.startswith("/"):
        raise InvalidRequest(f"The image's working directory {workdir!r} is not absolute.")
    return GuestConfig(
        hostname=spec.name,
        argv=argv,
        env=tuple(env.items()),
        user=workload.user or image.user,
        workdir=workdir,
        stop_signal=workload.stop_signal or image.stop_signal or "SIGTERM",
        stop_grace_seconds=workload.stop_grace_seconds,
    )


def _bounded(value: float, low: float, high: float, what: str) -> None:
    if not low <= value <= high:
        raise InvalidRequest(f"{what} must be {low:g} to {high:g}.")


def check_spec(spec: VmSpec) -> VmSpec:
    """The spec if all of it is within bounds.

    Raises:
        InvalidRequest: it is not; says what.
    """
    check_name(spec.name, "spec.name")
    _bounded(spec.vcpus, t.MIN_VCPUS, t.MAX_VCPUS, "spec.vcpus")
    if not t.MIN_MEMORY_BYTES <= spec.memory_bytes <= t.MAX_MEMORY_BYTES:
        raise InvalidRequest(
            f"spec.memory_bytes must be {format_bytes(t.MIN_MEMORY_BYTES)} to "
            f"{format_bytes(t.MAX_MEMORY_BYTES)}."
        )
    if spec.memory_bytes % MIB:
        raise InvalidRequest("spec.memory_bytes must be a multiple of 1 MiB.")
    _bounded(spec.cpu_weight, t.MIN_CPU_WEIGHT, t.MAX_CPU_WEIGHT, "spec.cpu_weight")
    check_id(spec.rootfs_asset_id, "ast", "spec.assets.rootfs_asset_id")
    for asset_id, field in (
        (spec.kernel_asset_id, "spec.assets.kernel_asset_id"),
        (spec.initrd_asset_id, "spec.assets.initrd_asset_id"),
    ):
        if asset_id:
            check_id(asset_id, "ast", field)
    if spec.deployment_id:
        check_id(spec.deployment_id, "dep", "spec.deployment_id")
    _check_workload(spec.workload)
    if spec.readiness is not None:
        _check_readiness(spec.readiness)
    _check_labels(spec)
    return spec


def _check_workload(workload: t.Workload) -> None:
    if len(workload.argv) > t.MAX_ARGV or len(workload.env) > t.MAX_ENV:
        raise InvalidRequest(
            f"spec.workload has more than {t.MAX_ARGV} arguments or {t.MAX_ENV} variables."
        )
    texts = (*workload.argv, *workload.env, workload.user, workload.working_directory)
    if any("\0" in text for text in texts):
        raise InvalidRequest("spec.workload has a NUL character.")
    if sum(len(text.encode()) + 1 for text in texts) > t.MAX_ARGV_BYTES:
        raise InvalidRequest(f"spec.workload is larger than {format_bytes(t.MAX_ARGV_BYTES)}.")
    if workload.argv and not workload.argv[0]:
        raise InvalidRequest("The first word of spec.workload.argv, the program, is empty.")
    for pair in workload.env:
        if not _ENV.fullmatch(pair):
            raise InvalidRequest("Every item of spec.workload.env must read NAME=value.")
    if workload.working_directory and not workload.working_directory.startswith("/"):
        raise InvalidRequest("spec.workload.working_directory must be an absolute path.")
    if workload.stop_signal and not _SIGNAL.fullmatch(workload.stop_signal):
        raise InvalidRequest(
            "spec.workload.stop_signal must be a name such as SIGTERM, or a number."
        )
    _bounded(workload.stop_grace_seconds, 0.1, 300, "spec.workload.stop_grace_seconds")


def _check_readiness(readiness: t.Readiness) -> None:
    _bounded(readiness.tcp_port, 1, t.MAX_PORT, "spec.readiness.tcp_port")
    _bounded(readiness.period_seconds, 0.05, 60, "spec.readiness.period_seconds")
    _bounded(readiness.timeout_seconds, 0.05, 60, "spec.readiness.timeout_seconds")


def _check_labels(spec: VmSpec) -> None:
    if len(spec.labels) > t.MAX_LABELS:
        raise InvalidRequest(f"spec.labels has more than {t.MAX_LABELS} labels.")
    for key, value in spec.labels.items():
        if not _LABEL_KEY.fullmatch(key) or len(value) > _LABEL_VALUE_CHARS:
            raise InvalidRequest(
                "Keys of spec.labels must be 1 to 63 characters of a-z, 0-9 and ._/-, values at "
                f"most {_LABEL_VALUE_CHARS} characters."
            )
