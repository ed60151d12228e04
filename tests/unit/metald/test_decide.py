from dataclasses import replace

import pytest

from ironworks.metald import decide
from ironworks.metald.decide import ImageDefaults
from ironworks.metald.drivers.driver import ExitKind, ExitReport
from ironworks.metald.types import HostState, Readiness, Resources, Vm, VmState, Workload
from ironworks.model.errors import FailedPrecondition, InvalidRequest, ResourceExhausted
from ironworks.model.units import GIB, MIB
from ironworks.testkit.metald import LIMITS, TENANT, vm_spec

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
        for alive in (True, False):
            found = decide.after_restart(state, vmm_alive=alive)
            assert found is not None
            assert found.finish is S.FAILED
    booting = decide.after_restart(S.BOOTING, vmm_alive=True)
    assert booting is not None
    assert booting.finish is S.FAILED
    stopping = decide.after_restart(S.STOPPING, vmm_alive=True)
    assert stopping is not None
    assert stopping.finish is S.STOPPED


@pytest.mark.parametrize("state", [S.CREATED, S.RUNNING, S.PAUSED])
def test_after_a_restart_a_settled_vm_is_left_alone(state: VmState) -> None:
    assert decide.after_restart(state, vmm_alive=True) is None


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


def admit(
    want: Resources, taken: Resources | None = None, state: HostState = HostState.ACTIVE
) -> Exception | None:
    return decide.admit(
        want, taken=taken or Resources(), limits=LIMITS, host_state=state, host_reason="disk swap"
    )


def test_what_fits_exactly_is_admitted() -> None:
    capacity = LIMITS.capacity
    taken = Resources(
        vcpus=capacity.vcpus - 1, memory_bytes=capacity.memory_bytes - GIB, vms=capacity.vms - 1
    )
    assert admit(Resources(vcpus=1, memory_bytes=GIB, vms=1), taken) is None


@pytest.mark.parametrize(
    ("taken", "names"),
    [
        (Resources(vcpus=16), "vCPUs"),
        (Resources(memory_bytes=8 * GIB), "memory"),
        (Resources(vms=100), "VMs"),
    ],
)
def test_a_full_host_says_what_is_short(taken: Resources, names: str) -> None:
    denial = admit(Resources(vcpus=1, memory_bytes=GIB, vms=1), taken)
    assert isinstance(denial, ResourceExhausted)
    assert names in denial.message


def test_a_vm_larger_than_the_machine_is_wrong_and_not_just_too_early() -> None:
    assert isinstance(admit(Resources(vcpus=5, memory_bytes=GIB, vms=1)), InvalidRequest)
    assert isinstance(admit(Resources(vcpus=1, memory_bytes=5 * GIB, vms=1)), InvalidRequest)


def test_a_cordoned_host_takes_none_and_says_why() -> None:
    denial = admit(Resources(vcpus=1, memory_bytes=GIB, vms=1), state=HostState.CORDONED)
    assert isinstance(denial, FailedPrecondition)
    assert "disk swap" in denial.message


def test_vms_without_a_process_take_nothing() -> None:
    running = replace(vm(S.RUNNING), committed_memory_bytes=80 * MIB)
    stopped = replace(vm(S.STOPPED), committed_memory_bytes=80 * MIB)
    taken = decide.committed([running, stopped])
    assert taken == Resources(vcpus=1, memory_bytes=80 * MIB, vms=1)


def test_slots_are_searched_from_the_platforms_own_start_and_around() -> None:
    assert decide.free_slot(frozenset(), first=6, count=8) == 6
    assert decide.free_slot(frozenset({6, 7}), first=6, count=8) == 0
    with pytest.raises(ResourceExhausted):
        decide.free_slot(frozenset(range(8)), first=6, count=8)


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


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"name": "Web"}, "name"),
        ({"name": "a" * 64}, "name"),
        ({"vcpus": 0}, "vcpus"),
        ({"vcpus": 33}, "vcpus"),
        ({"memory_bytes": 63 * MIB}, "memory_bytes"),
        ({"memory_bytes": 65 * GIB}, "memory_bytes"),
        ({"memory_bytes": 64 * MIB + 1}, "multiple"),
        ({"cpu_weight": 0}, "cpu_weight"),
        ({"rootfs_asset_id": "../etc"}, "rootfs_asset_id"),
        ({"kernel_asset_id": "x"}, "kernel_asset_id"),
        ({"deployment_id": "x"}, "deployment_id"),
        ({"labels": {"Bad Key": "x"}}, "labels"),
        ({"labels": {"k": "x" * 256}}, "labels"),
        ({"labels": {f"k{n}": "" for n in range(33)}}, "labels"),
        ({"readiness": Readiness(tcp_port=0)}, "tcp_port"),
        ({"readiness": Readiness(tcp_port=65_536)}, "tcp_port"),
        ({"readiness": Readiness(tcp_port=80, period_seconds=0)}, "period_seconds"),
        ({"readiness": Readiness(tcp_port=80, timeout_seconds=61)}, "timeout_seconds"),
        ({"workload": Workload(argv=("",))}, "argv"),
        ({"workload": Workload(argv=("a\0b",))}, "NUL"),
        ({"workload": Workload(argv=("a",) * 1025)}, "arguments"),
        ({"workload": Workload(argv=("a" * 140_000,))}, "larger"),
        ({"workload": Workload(env=("NOVALUE",))}, "NAME=value"),
        ({"workload": Workload(env=("=x",))}, "NAME=value"),
        ({"workload": Workload(working_directory="srv")}, "absolute"),
        ({"workload": Workload(stop_signal="kill -9")}, "stop_signal"),
        ({"workload": Workload(stop_grace_seconds=0)}, "stop_grace_seconds"),
        ({"workload": Workload(stop_grace_seconds=float("nan"))}, "stop_grace_seconds"),
    ],
)
def test_a_spec_out_of_bounds_is_refused_by_name(changes: dict[str, object], names: str) -> None:
    with pytest.raises(InvalidRequest, match=names):
        decide.check_spec(vm_spec(**changes))


def test_the_bounds_themselves_are_allowed() -> None:
    for spec in (
        vm_spec(vcpus=1, memory_bytes=64 * MIB),
        vm_spec(vcpus=32, memory_bytes=64 * GIB, readiness=Readiness(tcp_port=65_535)),
    ):
        assert decide.check_spec(spec) is spec
