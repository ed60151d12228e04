from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ironworks.metald import admission, decide
from ironworks.metald.drivers.driver import ExitKind, ExitReport
from ironworks.metald.types import Host, HostState, Limits, Resources, Vm, VmState
from ironworks.model.errors import FailedPrecondition, IronError
from ironworks.testkit.metald import TENANT, vm_spec

S = VmState
STATES = st.sampled_from(list(VmState))
ORDER = [
    S.REQUESTED,
    S.CREATING,
    S.CREATED,
    S.BOOTING,
    S.RUNNING,
    S.STOPPING,
    S.STOPPED,
    S.DELETING,
    S.DELETED,
]
"""The architecture's line; PAUSED stands beside RUNNING, FAILED apart."""


def vm(state: VmState) -> Vm:
    return Vm(
        vm_id="vm_x",
        tenant_id=TENANT,
        spec=vm_spec(),
        state=state,
        reason="",
        generation=1,
        created_at_ns=0,
        state_changed_at_ns=0,
        slot=1,
    )


def next_states(state: VmState) -> set[VmState]:
    found: set[VmState] = set()
    for after in VmState:
        try:
            decide.check_transition(vm(state), after)
        except FailedPrecondition:
            continue
        found.add(after)
    return found


def test_the_table_is_the_architectures_line() -> None:
    for before, after in pairwise(ORDER):
        assert after in next_states(before), (before, after)
    assert next_states(S.PAUSED) == {S.RUNNING, S.STOPPING, S.FAILED}
    assert S.PAUSED in next_states(S.RUNNING)
    for state in decide.ACTIVE:
        assert S.FAILED in next_states(state)
    assert next_states(S.STOPPED) == next_states(S.FAILED) == {S.DELETING}
    assert next_states(S.DELETED) == set()


@given(STATES)
def test_nothing_leads_to_itself_or_back_to_the_start(state: VmState) -> None:
    after = next_states(state)
    assert state not in after
    assert S.REQUESTED not in after


@given(STATES)
def test_every_state_can_come_to_deleted(state: VmState) -> None:
    reached, frontier = {state}, {state}
    while frontier:
        frontier = set[VmState]().union(*(next_states(one) for one in frontier)) - reached
        reached |= frontier
    assert S.DELETED in reached


@given(st.lists(st.tuples(STATES, st.integers(0, 10**12)), max_size=40))
def test_any_walk_keeps_its_books(wishes: list[tuple[VmState, int]]) -> None:
    now = vm(S.REQUESTED)
    for wish, at_ns in wishes:
        if wish not in decide.TABLE[now.state]:
            with pytest.raises(FailedPrecondition) as error:
                decide.transition(now, wish, "why", now_ns=at_ns)
            assert error.value.hint
            continue
        moved, line = decide.transition(now, wish, "why", now_ns=at_ns)
        assert moved.generation == line.generation == now.generation + 1
        assert moved.state_changed_at_ns >= now.state_changed_at_ns
        assert (line.before, line.after) == (now.state, wish)
        assert moved.ready == (wish is S.RUNNING)
        now = moved


@given(STATES, st.booleans())
def test_the_way_to_deletion_is_always_a_way(state: VmState, force: bool) -> None:
    now = vm(state)
    if state is S.DELETED:
        return
    try:
        path = decide.path_to_deleting(now, force=force)
    except FailedPrecondition:
        assert state in decide.HAS_GUEST
        assert not force
        return
    for step in path:
        now, _ = decide.transition(now, step, "", now_ns=0)
    if now.state is not S.DELETING:
        now, _ = decide.transition(now, S.DELETING, "", now_ns=0)
    assert now.state is S.DELETING


@given(STATES)
def test_what_a_restart_decides_is_allowed(state: VmState) -> None:
    found = decide.after_restart(state)
    if found is not None:
        decide.check_transition(vm(state), found.finish)
        assert found.reason


@given(
    st.sampled_from(sorted(decide.HAS_VMM)),
    st.sampled_from(list(ExitKind)),
    st.none() | st.integers(0, 255),
)
def test_what_an_end_decides_is_allowed(state: VmState, kind: ExitKind, status: int | None) -> None:
    report = ExitReport(kind=kind, sentence="", workload_status=status)
    after = decide.after_end(state, report)
    now = vm(state)
    if after is S.STOPPED and state is not S.STOPPING:
        now, _ = decide.transition(now, S.STOPPING, "", now_ns=0)
    decide.check_transition(now, after)


HOST = Host(host_id="hst_x", tag="", state=HostState.ACTIVE, reason="", generation=1)
AMOUNTS = st.builds(
    Resources,
    vcpus=st.integers(1, 8),
    memory_bytes=st.integers(1, 100),
    disk_bytes=st.integers(0, 100),
    vms=st.just(1),
)


@given(
    st.lists(st.tuples(AMOUNTS, st.booleans()), max_size=60),
    st.builds(
        Limits,
        capacity=st.builds(
            Resources,
            vcpus=st.integers(0, 40),
            memory_bytes=st.integers(0, 400),
            disk_bytes=st.integers(0, 400),
            vms=st.integers(0, 20),
        ),
        largest=AMOUNTS,
    ),
)
def test_admission_never_exceeds_and_never_refuses_what_fits(
    requests: list[tuple[Resources, bool]], limits: Limits
) -> None:
    running: list[Vm] = []
    for want, leaves in requests:
        taken = admission.committed(running)
        denial = admission.admit(want, taken=taken, limits=limits, host=HOST)
        fits = (
            want.vcpus <= min(limits.largest.vcpus, limits.capacity.vcpus - taken.vcpus)
            and want.memory_bytes
            <= min(limits.largest.memory_bytes, limits.capacity.memory_bytes - taken.memory_bytes)
            and want.disk_bytes
            <= min(limits.largest.disk_bytes, limits.capacity.disk_bytes - taken.disk_bytes)
            and taken.vms < limits.capacity.vms
        )
        assert (denial is None) == fits
        if denial is not None:
            assert isinstance(denial, IronError)
            continue
        running.append(replace(vm(S.RUNNING), committed=want))
        total = admission.committed(running)
        assert total.vcpus <= limits.capacity.vcpus
        assert total.memory_bytes <= limits.capacity.memory_bytes
        assert total.disk_bytes <= limits.capacity.disk_bytes
        assert total.vms <= limits.capacity.vms
        if leaves:
            running[0] = replace(running[0], state=S.STOPPED)


@given(st.frozensets(st.integers(0, 15), max_size=15), st.integers(0, 15))
def test_a_free_slot_is_free(taken: frozenset[int], first: int) -> None:
    slot = admission.free_slot(taken, first=first, count=16)
    assert slot not in taken
    assert 0 <= slot < 16
