import signal
from dataclasses import replace

import pytest

from ironworks.metald import decide
from ironworks.metald.decide import Health
from ironworks.metald.drivers.driver import ExitKind, ExitReport
from ironworks.metald.types import (
    HostState,
    ImageDefaults,
    Readiness,
    RestartMode,
    RestartPolicy,
    Vm,
    VmState,
    Workload,
)
from ironworks.model.errors import FailedPrecondition, InvalidRequest
from ironworks.model.units import NS_PER_HOUR, NS_PER_SECOND
from ironworks.testkit.metald import TENANT, vm_spec

S = VmState


def vm(state: VmState, reason: str = "") -> Vm:
    return Vm(
        vm_id="vm_x",
        tenant_id=TENANT,
        spec=vm_spec(),
        state=state,
        reason=reason,
        generation=7,
        created_at_ns=5,
        state_changed_at_ns=100,
        slot=1,
    )


def test_a_transition_counts_tells_and_is_dated() -> None:
    after, line = decide.transition(vm(S.BOOTING), S.RUNNING, "It runs.", now_ns=200)
    assert (after.state, after.reason, after.generation, after.ready) == (
        S.RUNNING,
        "It runs.",
        8,
        True,
    )
    assert (line.before, line.after, line.at_ns, line.generation) == (S.BOOTING, S.RUNNING, 200, 8)


def test_history_never_goes_back_in_time_with_the_clock() -> None:
    after, line = decide.transition(vm(S.RUNNING), S.PAUSED, "", now_ns=50)
    assert after.state_changed_at_ns == line.at_ns == 100
    assert not after.ready


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (S.STOPPED, S.BOOTING),
        (S.STOPPED, S.RUNNING),
        (S.DELETED, S.DELETING),
        (S.CREATED, S.PAUSED),
    ],
)
def test_what_the_table_lacks_is_refused_with_what_to_do(before: VmState, after: VmState) -> None:
    with pytest.raises(FailedPrecondition) as error:
        decide.transition(vm(before), after, "", now_ns=200)
    assert before.value in error.value.message
    assert after.value in error.value.message
    assert error.value.hint


def test_the_refusal_of_a_failed_vm_quotes_why_it_failed() -> None:
    with pytest.raises(FailedPrecondition, match="The kernel panicked"):
        decide.check_transition(vm(S.FAILED, "The kernel panicked."), S.BOOTING)


@pytest.mark.parametrize(
    ("state", "force", "path"),
    [
        (S.STOPPED, False, ()),
        (S.FAILED, False, ()),
        (S.DELETING, False, ()),
        (S.CREATED, False, (S.STOPPING, S.STOPPED)),
        (S.RUNNING, True, (S.STOPPING, S.STOPPED)),
        (S.PAUSED, True, (S.STOPPING, S.STOPPED)),
        (S.STOPPING, False, (S.STOPPED,)),
        (S.CREATING, False, (S.FAILED,)),
    ],
)
def test_the_way_to_deletion(state: VmState, force: bool, path: tuple[VmState, ...]) -> None:
    assert decide.path_to_deleting(vm(state), force=force) == path


@pytest.mark.parametrize("state", [S.BOOTING, S.RUNNING, S.PAUSED])
def test_a_guest_that_runs_is_deleted_by_force_only(state: VmState) -> None:
    with pytest.raises(FailedPrecondition) as error:
        decide.path_to_deleting(vm(state), force=False)
    assert "force" in error.value.hint


def test_after_a_restart_what_was_being_made_is_undone_and_what_was_ended_is_ended() -> None:
    for state in (S.REQUESTED, S.CREATING):
        found = decide.after_restart(state)
        assert found is not None
        assert found.finish is S.FAILED
    stopping = decide.after_restart(S.STOPPING)
    assert stopping is not None
    assert stopping.finish is S.STOPPED


@pytest.mark.parametrize("state", [S.CREATED, S.BOOTING, S.RUNNING, S.PAUSED])
def test_after_a_restart_what_has_a_vmm_goes_on(state: VmState) -> None:
    assert decide.after_restart(state) is None


@pytest.mark.parametrize(
    ("state", "kind", "status", "after"),
    [
        (S.RUNNING, ExitKind.WORKLOAD, 0, S.STOPPED),
        (S.RUNNING, ExitKind.WORKLOAD, 3, S.FAILED),
        (S.RUNNING, ExitKind.POWEROFF, None, S.STOPPED),
        (S.RUNNING, ExitKind.CRASHED, None, S.FAILED),
        (S.RUNNING, ExitKind.LOST, None, S.FAILED),
        (S.PAUSED, ExitKind.OUT_OF_MEMORY, None, S.FAILED),
        (S.CREATED, ExitKind.POWEROFF, None, S.FAILED),
        (S.BOOTING, ExitKind.WORKLOAD, 0, S.FAILED),
        (S.STOPPING, ExitKind.CRASHED, None, S.STOPPED),
    ],
)
def test_what_an_end_makes_of_a_vm(
    state: VmState, kind: ExitKind, status: int | None, after: VmState
) -> None:
    report = ExitReport(kind=kind, sentence="", workload_status=status)
    assert decide.after_end(state, report) is after


def test_the_cgroup_explains_a_crash_and_does_not_touch_what_is_known() -> None:
    crashed = ExitReport(kind=ExitKind.CRASHED, sentence="by SIGKILL", vmm_status=-9)
    assert decide.explain_end(crashed, oom_kills=0) is crashed
    explained = decide.explain_end(crashed, oom_kills=1)
    assert explained.kind is ExitKind.OUT_OF_MEMORY
    assert explained.vmm_status == -9
    done = ExitReport(kind=ExitKind.WORKLOAD, sentence="", workload_status=0)
    assert decide.explain_end(done, oom_kills=3) is done


def test_the_spec_wins_over_the_image_and_its_environment_is_added() -> None:
    image = ImageDefaults(
        entrypoint=("/entry",),
        cmd=("default",),
        env=("A=image", "B=image", "PATH=/image"),
        user="app",
        working_directory="/srv",
        stop_signal="SIGQUIT",
    )
    from_image = decide.guest_config(vm_spec(workload=Workload()), image)
    assert from_image.argv == ("/entry", "default")
    assert dict(from_image.env) == {
        "PATH": "/image",
        "HOSTNAME": "web",
        "A": "image",
        "B": "image",
    }
    assert (from_image.user, from_image.workdir, from_image.stop_signal) == (
        "app",
        "/srv",
        "SIGQUIT",
    )
    own = Workload(argv=("/mine",), env=("A=mine=yes",), user="0", working_directory="/")
    from_spec = decide.guest_config(vm_spec(workload=own), image)
    assert from_spec.argv == ("/mine",)
    assert dict(from_spec.env)["A"] == "mine=yes"
    assert (from_spec.user, from_spec.workdir) == ("0", "/")


def test_a_bare_image_gets_a_path_and_a_root() -> None:
    guest = decide.guest_config(vm_spec(), ImageDefaults())
    assert dict(guest.env)["PATH"] == decide.DEFAULT_PATH
    assert (guest.user, guest.workdir, guest.stop_signal) == ("", "/", "SIGTERM")


def test_an_image_that_says_nothing_to_run_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="neither entrypoint nor command"):
        decide.guest_config(vm_spec(workload=Workload()), ImageDefaults())


def test_an_image_with_a_relative_directory_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="not absolute"):
        decide.guest_config(vm_spec(), ImageDefaults(working_directory="srv"))


def test_a_forbidden_system_call_is_named() -> None:
    killed = ExitReport(kind=ExitKind.CRASHED, sentence="", vmm_status=-signal.SIGSYS)
    explained = decide.explain_end(killed, oom_kills=0)
    assert explained.kind is ExitKind.SECCOMP
    assert "system call" in explained.sentence


CRASH = ExitReport(kind=ExitKind.CRASHED, sentence="It crashed.")
DONE = ExitReport(kind=ExitKind.WORKLOAD, sentence="Status 0.", workload_status=0)
NOT_READY = ExitReport(kind=ExitKind.KILLED, sentence="The guest was not ready in time.")


def restartable(mode: RestartMode, state: VmState = S.RUNNING, **policy: object) -> Vm:
    spec = vm_spec(restart=RestartPolicy(mode=mode, **policy))  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    return replace(vm(state), spec=spec)


@pytest.mark.parametrize(
    ("mode", "report", "again"),
    [
        (RestartMode.NEVER, CRASH, False),
        (RestartMode.NEVER, DONE, False),
        (RestartMode.ON_FAILURE, CRASH, True),
        (RestartMode.ON_FAILURE, NOT_READY, True),
        (RestartMode.ON_FAILURE, DONE, False),
        (RestartMode.ALWAYS, CRASH, True),
        (RestartMode.ALWAYS, DONE, True),
    ],
)
def test_the_policy_says_what_is_booted_again(
    mode: RestartMode, report: ExitReport, again: bool
) -> None:
    plan = decide.restart(restartable(mode), report, HostState.ACTIVE, now_ns=5)
    assert (plan is not None) == again
    if plan is not None:
        assert (plan.vm.state, plan.vm.ready, plan.vm.restarts) == (S.RUNNING, False, 1)
        assert plan.vm.restart_at_ns == 5 + NS_PER_SECOND
        assert plan.line is not None
        assert report.sentence in plan.line.reason


@pytest.mark.parametrize("host", [HostState.DRAINING, HostState.DRAINED])
def test_a_host_that_drains_boots_nothing_again(host: HostState) -> None:
    assert decide.restart(restartable(RestartMode.ALWAYS), CRASH, host, now_ns=5) is None


def test_only_what_ran_is_booted_again() -> None:
    for state in set(VmState) - {S.RUNNING, S.PAUSED}:
        vm_now = restartable(RestartMode.ALWAYS, state)
        assert decide.restart(vm_now, CRASH, HostState.ACTIVE, now_ns=5) is None
    paused = restartable(RestartMode.ALWAYS, S.PAUSED)
    plan = decide.restart(paused, CRASH, HostState.ACTIVE, now_ns=5)
    assert plan is not None
    assert plan.vm.state is S.RUNNING


def test_the_wait_doubles_up_to_its_bound_and_starts_anew_after_an_hour() -> None:
    now = restartable(RestartMode.ALWAYS, min_backoff_seconds=1, max_backoff_seconds=5)
    waits: list[float] = []
    for at_ns in range(1, 6):
        plan = decide.restart(now, CRASH, HostState.ACTIVE, now_ns=at_ns)
        assert plan is not None
        now = plan.vm
        waits.append((now.restart_at_ns - at_ns) / NS_PER_SECOND)
    assert waits == [1, 2, 4, 5, 5]
    later = NS_PER_HOUR + 10
    plan = decide.restart(now, CRASH, HostState.ACTIVE, now_ns=later)
    assert plan is not None
    assert plan.vm.restart_at_ns == later + NS_PER_SECOND
    assert plan.vm.restarts == 6


def test_the_policy_gives_up_and_says_how_often_it_has_tried() -> None:
    now = replace(restartable(RestartMode.ALWAYS, max_restarts=2), recent_restarts=(1, 2))
    plan = decide.restart(now, CRASH, HostState.ACTIVE, now_ns=3)
    assert plan is not None
    assert plan.line is None
    assert "2 times within an hour" in plan.reason


def test_a_transition_to_an_end_forgets_the_restart() -> None:
    waiting = replace(vm(S.RUNNING), restart_at_ns=9)
    stopping, _ = decide.transition(waiting, S.STOPPING, "", now_ns=10)
    assert stopping.restart_at_ns == 0


def test_a_resumed_vm_is_ready_when_its_check_passes_again() -> None:
    checked = replace(vm(S.PAUSED), spec=vm_spec(readiness=Readiness(port=80)))
    assert decide.transition(checked, S.RUNNING, "", now_ns=1)[0].ready is False
    assert decide.transition(vm(S.PAUSED), S.RUNNING, "", now_ns=1)[0].ready is True


def test_readiness_turns_only_after_as_many_tries_in_a_row_as_asked() -> None:
    check = Readiness(port=80, failure_threshold=3, success_threshold=2)
    health = Health(ready=True)
    seen: list[bool] = []
    for passed in (False, False, True, False, False, False, True, False, True, True):
        health = decide.observe(health, check, passed=passed)
        seen.append(health.ready)
    assert seen == [True, True, True, True, True, False, False, False, False, True]
