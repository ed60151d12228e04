"""Decisions of metald, pure and total: what may follow what, who fits, what a spec must satisfy.

The table below is the architecture's line "Requested → Creating → Created → Booting → Running ⇄
Paused → Stopping → Stopped → Deleting → Deleted; any active state → Failed" and nothing more. A VM
that has a VMM always leaves through STOPPING, so `CREATED` and `BOOTING` have that edge too.
"""

import signal as signals
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from ironworks.metald import types as t
from ironworks.metald.drivers.driver import ExitKind, ExitReport, GuestConfig
from ironworks.metald.types import HostState, RestartMode, Vm, VmSpec, VmState
from ironworks.model.errors import FailedPrecondition, InvalidRequest
from ironworks.model.units import NS_PER_HOUR, NS_PER_SECOND

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

MAX_DOUBLINGS: Final = 16
"""Of a wait before a restart: beyond it no float is needed."""

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
        # A boot ends when the check has passed; after a pause it has to pass again.
        ready=after is _S.RUNNING and (vm.state is _S.BOOTING or vm.spec.readiness is None),
        restart_at_ns=vm.restart_at_ns if after is _S.RUNNING else 0,
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
    if report.kind not in {ExitKind.CRASHED, ExitKind.LOST}:
        return report
    if oom_kills > 0:
        return replace(
            report,
            kind=ExitKind.OUT_OF_MEMORY,
            sentence="The host's kernel ended the VMM: it used more memory than its limit.",
        )
    if report.vmm_status == -signals.SIGSYS:
        return replace(
            report,
            kind=ExitKind.SECCOMP,
            sentence="The host's kernel ended the VMM: it made a system call that is forbidden.",
        )
    return report


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """What a VM's restart policy says to an end."""

    vm: Vm
    """RUNNING and not ready, or unchanged if the policy has given up."""
    line: t.Transition | None
    """For the history; None: the policy has given up."""
    reason: str


def restart(vm: Vm, report: ExitReport, host: HostState, *, now_ns: int) -> Restart | None:
    """What the restart policy makes of an end that nobody asked for; None: nothing.

    The wait doubles with every restart of the last hour, so it is short again after a calm hour.
    """
    policy = vm.spec.restart
    if vm.state not in {_S.RUNNING, _S.PAUSED} or host in {HostState.DRAINING, HostState.DRAINED}:
        return None
    if policy.mode is RestartMode.NEVER:
        return None
    # KILLED of a VM that should run is a boot that was given up: no end that anybody asked for.
    clean = report.clean and report.kind is not ExitKind.KILLED
    if policy.mode is RestartMode.ON_FAILURE and clean:
        return None
    recent = tuple(at_ns for at_ns in vm.recent_restarts if at_ns > now_ns - NS_PER_HOUR)
    if len(recent) >= policy.max_restarts:
        reason = (
            f"{report.sentence} It was booted again {len(recent)} times within an hour: enough."
        )
        return Restart(vm=vm, line=None, reason=reason)
    doublings = min(len(recent), MAX_DOUBLINGS)
    wait_seconds = min(policy.min_backoff_seconds * 2**doublings, policy.max_backoff_seconds)
    reason = f"{report.sentence} It is booted again in {wait_seconds:g} seconds."
    changed, line = note(vm, reason, now_ns=now_ns)
    changed = replace(
        changed,
        exit=report,
        exit_at_ns=now_ns,
        restarts=vm.restarts + 1,
        recent_restarts=(*recent, now_ns)[-policy.max_restarts :],
        restart_at_ns=now_ns + int(wait_seconds * NS_PER_SECOND),
    )
    return Restart(vm=changed, line=line, reason=reason)


def note(vm: Vm, reason: str, *, now_ns: int) -> tuple[Vm, t.Transition]:
    """The VM RUNNING and not ready for `reason`, and the line for its history.

    Of a VM that RUNS already this is no transition, but its people want to read it all the same.
    """
    if vm.state is not _S.RUNNING:
        check_transition(vm, _S.RUNNING)
    at_ns = max(now_ns, vm.state_changed_at_ns)
    changed = replace(
        vm,
        state=_S.RUNNING,
        reason=reason,
        generation=vm.generation + 1,
        state_changed_at_ns=vm.state_changed_at_ns if vm.state is _S.RUNNING else at_ns,
        ready=False,
    )
    line = t.Transition(
        before=vm.state,
        after=_S.RUNNING,
        at_ns=at_ns,
        reason=reason,
        generation=changed.generation,
    )
    return changed, line


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What a readiness check has come to."""

    ready: bool
    streak: int = 0
    """Tries in a row that said the contrary."""


def observe(health: Health, readiness: t.Readiness, *, passed: bool) -> Health:
    """The health after one more try."""
    if passed == health.ready:
        return Health(ready=health.ready)
    streak = health.streak + 1
    enough = readiness.success_threshold if passed else readiness.failure_threshold
    return Health(ready=passed) if streak >= enough else replace(health, streak=streak)


def after_restart(state: VmState) -> Interrupted | None:
    """What becomes of a VM that an earlier metald left in `state`; None: nothing to mend.

    A VM that was being made is undone, since its caller got no answer and will ask again; one that
    was being ended is ended. One that was booting boots on.
    """
    if state in {_S.REQUESTED, _S.CREATING}:
        return Interrupted(
            finish=_S.FAILED, reason="metald was restarted while the VM was being created."
        )
    if state is _S.STOPPING:
        return Interrupted(finish=_S.STOPPED, reason="Ended after a restart of metald.")
    return None


DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""PATH of a workload whose image and spec name none; what container engines do."""


def guest_config(spec: VmSpec, image: t.ImageDefaults) -> GuestConfig:
    """What the guest's init is to run: the spec's word where it has one, else the image's.

    Raises:
        InvalidRequest: neither names a program, or the directory is not absolute.
    """
    workload = spec.workload
    argv = workload.argv or (() if workload.image_init else (*image.entrypoint, *image.cmd))
    if not argv and not workload.image_init:
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
        image_init=workload.image_init,
    )
