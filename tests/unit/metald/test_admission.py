import pytest

from ironworks.metald import admission
from ironworks.metald.types import Host, HostState, Resources, Vm, VmState
from ironworks.model.errors import FailedPrecondition, InvalidRequest, ResourceExhausted
from ironworks.model.units import GIB, MIB
from ironworks.testkit.metald import LIMITS, TENANT, vm_spec

SHARE = Resources(memory_bytes=16 * MIB, disk_bytes=MIB)


def vm(state: VmState, committed: Resources) -> Vm:
    return Vm(
        vm_id="vm_x",
        tenant_id=TENANT,
        spec=vm_spec(),
        state=state,
        reason="",
        generation=7,
        created_at_ns=1,
        state_changed_at_ns=1,
        slot=1,
        committed=committed,
    )


def test_a_vm_counts_with_what_its_vmm_needs() -> None:
    spec = vm_spec(vcpus=2, memory_bytes=64 * MIB, disk_bytes=GIB)
    assert admission.need(spec, SHARE) == Resources(
        vcpus=2, memory_bytes=80 * MIB, disk_bytes=GIB + MIB, vms=1
    )


def admit(
    want: Resources, taken: Resources | None = None, state: HostState = HostState.ACTIVE
) -> Exception | None:
    host = Host(host_id="hst_x", tag="", state=state, reason="disk swap", generation=1)
    return admission.admit(want, taken=taken or Resources(), limits=LIMITS, host=host)


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
        (Resources(disk_bytes=64 * GIB), "disk"),
    ],
)
def test_a_full_host_says_what_is_short(taken: Resources, names: str) -> None:
    denial = admit(Resources(vcpus=1, memory_bytes=GIB, disk_bytes=1, vms=1), taken)
    assert isinstance(denial, ResourceExhausted)
    assert names in denial.message


def test_a_vm_larger_than_the_machine_is_wrong_and_not_just_too_early() -> None:
    assert isinstance(admit(Resources(vcpus=5, memory_bytes=GIB, vms=1)), InvalidRequest)
    assert isinstance(admit(Resources(vcpus=1, memory_bytes=5 * GIB, vms=1)), InvalidRequest)
    assert isinstance(admit(Resources(vcpus=1, disk_bytes=65 * GIB, vms=1)), InvalidRequest)
    denial = admit(Resources(vcpus=5, memory_bytes=GIB, vms=1))
    assert "5 vCPUs" in str(denial)
    assert "has 4" in str(denial)


@pytest.mark.parametrize("state", set(HostState) - {HostState.ACTIVE})
def test_a_cordoned_host_takes_none_and_says_why(state: HostState) -> None:
    denial = admit(Resources(vcpus=1, memory_bytes=GIB, vms=1), state=state)
    assert isinstance(denial, FailedPrecondition)
    assert "disk swap" in denial.message


def test_vms_without_a_process_take_nothing() -> None:
    need = Resources(vcpus=1, memory_bytes=80 * MIB, vms=1)
    running, stopped = vm(VmState.RUNNING, need), vm(VmState.STOPPED, need)
    taken = admission.committed([running, stopped])
    assert taken == need


def test_slots_are_searched_from_the_platforms_own_start_and_around() -> None:
    assert admission.free_slot(frozenset(), first=6, count=8) == 6
    assert admission.free_slot(frozenset({6, 7}), first=6, count=8) == 0
    with pytest.raises(ResourceExhausted):
        admission.free_slot(frozenset(range(8)), first=6, count=8)


@pytest.mark.parametrize(
    ("limit", "names"),
    [
        (Resources(vms=3), "3 VMs"),
        (Resources(vcpus=7), "7 vCPUs"),
        (Resources(memory_bytes=3 * GIB), "3.0 GiB of memory"),
        (Resources(disk_bytes=3 * GIB), "3.0 GiB of disk"),
    ],
)
def test_a_quota_says_what_the_tenant_has_and_asks_for(limit: Resources, names: str) -> None:
    used = Resources(vcpus=6, memory_bytes=3 * GIB, disk_bytes=3 * GIB, vms=3)
    want = Resources(vcpus=2, memory_bytes=GIB, disk_bytes=GIB, vms=1)
    denial = admission.over_quota(want, used=used, limit=limit)
    assert isinstance(denial, ResourceExhausted)
    assert names in denial.message


def test_no_quota_is_no_limit_and_one_that_is_used_up_lets_nothing_else_be_taken() -> None:
    used = Resources(vcpus=6, memory_bytes=3 * GIB, vms=3)
    want = Resources(vcpus=2, memory_bytes=GIB, vms=1)
    assert admission.over_quota(want, used=used, limit=Resources()) is None
    # What the tenant asks no more of is no reason to refuse the rest.
    only_more_memory = Resources(memory_bytes=GIB)
    assert admission.over_quota(only_more_memory, used=used, limit=Resources(vms=1)) is None


def reservation(**changes: object) -> Resources:
    made = admission.reservation(
        reservation_id="job-1",
        tenant_id=TENANT,
        resources=Resources(**changes),  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        share=SHARE,
        at_ns=1,
    )
    return made.committed


def test_a_reservation_sets_the_vmms_own_share_aside_too() -> None:
    assert reservation(vcpus=2, memory_bytes=GIB, vms=2) == Resources(
        vcpus=2, memory_bytes=GIB + 32 * MIB, disk_bytes=2 * MIB, vms=2
    )
    assert reservation(vcpus=1).vms == 1


@pytest.mark.parametrize(
    ("changes", "names"),
    [({}, "nothing"), ({"vcpus": -1}, "vcpus"), ({"memory_bytes": 1 << 63}, "memory_bytes")],
)
def test_a_reservation_of_nothing_or_nonsense_is_refused(
    changes: dict[str, object], names: str
) -> None:
    with pytest.raises(InvalidRequest, match=names):
        reservation(**changes)
