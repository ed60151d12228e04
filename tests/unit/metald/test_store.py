from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine

from ironworks.metald import store
from ironworks.metald.decide import transition
from ironworks.metald.drivers.driver import DriverKind, Evidence, ExitKind, ExitReport
from ironworks.metald.types import (
    MAX_HISTORY,
    Host,
    HostState,
    ImageDefaults,
    Lease,
    Readiness,
    Resources,
    StepTiming,
    Vm,
    VmFilter,
    VmmSize,
    VmState,
)
from ironworks.model.errors import Aborted, NotFound
from ironworks.model.ids import derived_id
from ironworks.model.pages import PageSpec
from ironworks.model.units import MIB
from ironworks.storage.migrate import upgrade
from ironworks.storage.sql import make_engine, sqlite_url
from ironworks.testkit.metald import OTHER_TENANT, ROOTFS, TENANT, vm_spec


@pytest.fixture
def engine(tmp_path: Path) -> Generator[Engine]:
    engine = make_engine(sqlite_url(tmp_path / "metald.db"))
    upgrade(engine, "ironworks.metald.migrations")
    yield engine
    engine.dispose()


@pytest.fixture
def connection(engine: Engine) -> Generator[Connection]:
    with engine.begin() as connection:
        yield connection


def make(
    number: int, *, state: VmState = VmState.RUNNING, tenant: str = TENANT, **spec: object
) -> Vm:
    return Vm(
        vm_id=derived_id("vm", str(number)),
        tenant_id=tenant,
        spec=vm_spec(**spec),
        state=state,
        reason="",
        generation=1,
        created_at_ns=1000 + number // 2,
        state_changed_at_ns=1000 + number,
        slot=number if state not in {VmState.DELETED, VmState.STOPPED} else None,
        committed=Resources(vcpus=1, memory_bytes=80 * MIB, vms=1),
    )


def test_a_vm_is_read_as_it_was_written(connection: Connection) -> None:
    vm = make(1, readiness=Readiness(port=80), labels={"b": "2", "a": "1"})
    vm = replace(
        vm,
        evidence=Evidence(
            kind=DriverKind.QEMU,
            vm_id=vm.vm_id,
            pid=7,
            pid_start_ticks=8,
            boot_id="x",
            jail_dir=Path("/jails/x"),
            details={"socket": "/x"},
        ),
        vmm=VmmSize(vcpus=3, memory_bytes=9),
        restarts=4,
        recent_restarts=(5, 6),
        restart_at_ns=7,
        exit=ExitReport(kind=ExitKind.PANIC, sentence="It panicked.", console_tail=("a", "b")),
        exit_at_ns=5,
        drift=("Its tap is gone.",),
    )
    store.insert_vm(connection, vm, "Admitted.")
    assert store.read_vm(connection, vm.vm_id) == vm
    (first,) = store.history(connection, vm.vm_id)
    assert (first.before, first.after, first.reason) == (None, VmState.RUNNING, "Admitted.")


def test_another_tenants_vm_is_as_unknown_as_none(connection: Connection) -> None:
    vm = make(1)
    store.insert_vm(connection, vm, "")
    with pytest.raises(NotFound) as foreign:
        store.read_vm(connection, vm.vm_id, OTHER_TENANT)
    unknown_id = derived_id("vm", "unknown")
    with pytest.raises(NotFound) as unknown:
        store.read_vm(connection, unknown_id, OTHER_TENANT)
    assert str(foreign.value).replace(vm.vm_id, "") == str(unknown.value).replace(unknown_id, "")


def test_a_change_decided_on_an_old_generation_is_refused(connection: Connection) -> None:
    vm = make(1)
    store.insert_vm(connection, vm, "")
    paused, line = transition(vm, VmState.PAUSED, "", now_ns=2000)
    store.update_vm(connection, paused, decided_on=1, line=line)
    stopping, line = transition(vm, VmState.STOPPING, "", now_ns=2000)
    with pytest.raises(Aborted):
        store.update_vm(connection, stopping, decided_on=1, line=line)
    assert store.read_vm(connection, vm.vm_id).state is VmState.PAUSED


def test_history_keeps_the_last_transitions_only(connection: Connection) -> None:
    vm = make(1)
    store.insert_vm(connection, vm, "")
    for number in range(MAX_HISTORY + 20):
        after = VmState.PAUSED if vm.state is VmState.RUNNING else VmState.RUNNING
        moved, line = transition(vm, after, str(number), now_ns=2000 + number)
        store.update_vm(connection, moved, decided_on=vm.generation, line=line)
        vm = moved
    lines = store.history(connection, vm.vm_id)
    assert len(lines) == MAX_HISTORY
    assert lines[-1].reason == str(MAX_HISTORY + 19)
    assert lines[0].generation == lines[-1].generation - MAX_HISTORY + 1


def walk(connection: Connection, wanted: VmFilter, size: int) -> list[str]:
    seen: list[str] = []
    after: tuple[str | int, ...] = ()
    while True:
        page = store.list_vms(connection, wanted, PageSpec(size=size, after=after))
        seen += [page.vms[key].vm_id for key in page.keys]
        if page.after is None:
            return seen
        after = page.after


def test_pages_show_every_vm_once_also_when_others_come_and_go(connection: Connection) -> None:
    vms = [make(number) for number in range(7)]
    for vm in vms:
        store.insert_vm(connection, vm, "")
    everything = walk(connection, VmFilter(), 100)
    assert sorted(everything) == sorted(vm.vm_id for vm in vms)
    assert walk(connection, VmFilter(), 2) == everything
    first = store.list_vms(connection, VmFilter(), PageSpec(size=3))
    assert first.after is not None
    store.insert_vm(connection, make(100), "")
    rest = store.list_vms(connection, VmFilter(), PageSpec(size=100, after=first.after))
    assert [key[0] for key in [*first.keys, *rest.keys]] == [*everything, make(100).vm_id]


def test_a_page_that_just_fits_is_the_last(connection: Connection) -> None:
    for number in range(3):
        store.insert_vm(connection, make(number), "")
    page = store.list_vms(connection, VmFilter(), PageSpec(size=3))
    assert len(page.keys) == 3
    assert page.after is None


def test_a_page_has_of_what_is_known_only_what_changed(connection: Connection) -> None:
    vms = [make(number) for number in range(3)]
    for vm in vms:
        store.insert_vm(connection, vm, "")
    known = store.list_vms(connection, VmFilter(), PageSpec(size=9)).vms
    moved, line = transition(vms[1], VmState.PAUSED, "Asked for.", now_ns=9)
    store.update_vm(connection, moved, decided_on=1, line=line)
    page = store.list_vms(connection, VmFilter(), PageSpec(size=9), known)
    assert sorted(key[0] for key in page.keys) == sorted(vm.vm_id for vm in vms)
    assert list(page.vms.values()) == [moved]
    # Who makes a VM under an id that has been forgotten makes another one.
    connection.exec_driver_sql("DELETE FROM vms")
    again = replace(vms[0], created_at_ns=77, tenant_id=OTHER_TENANT)
    store.insert_vm(connection, again, "")
    page = store.list_vms(connection, VmFilter(), PageSpec(size=9), known)
    assert list(page.vms.values()) == [again]


def test_a_tenants_page_is_read_in_order_and_not_sorted(connection: Connection) -> None:
    query = "SELECT id FROM vms WHERE tenant_id = '' AND state != '' ORDER BY created_at_ns, id"
    plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}").all()
    assert [row.detail for row in plan] == [
        "SEARCH vms USING INDEX ix_vms_tenant_page (tenant_id=?)"
    ]


def test_filters_must_all_hold(connection: Connection) -> None:
    deployment = derived_id("dep", "1")
    mine = make(1, labels={"tier": "web", "zone": "a"}, deployment_id=deployment)
    for vm in (
        mine,
        make(2, labels={"tier": "web", "zone": "b"}),
        make(3, name="other", state=VmState.PAUSED),
        make(4, tenant=OTHER_TENANT, labels={"tier": "web", "zone": "a"}),
        make(5, state=VmState.DELETED),
    ):
        store.insert_vm(connection, vm, "")

    def found(wanted: VmFilter) -> set[int]:
        ids = walk(connection, wanted, 100)
        return {number for number in range(1, 6) if make(number).vm_id in ids}

    assert found(VmFilter()) == {1, 2, 3, 4}
    assert found(VmFilter(states=(VmState.DELETED,))) == {5}
    assert found(VmFilter(states=(VmState.PAUSED, VmState.DELETED))) == {3, 5}
    assert found(VmFilter(name="other")) == {3}
    assert found(VmFilter(deployment_id=deployment)) == {1}
    assert found(VmFilter(labels=(("tier", "web"),))) == {1, 2, 4}
    assert found(VmFilter(labels=(("tier", "web"), ("zone", "a")))) == {1, 4}
    assert found(VmFilter(labels=(("tier", "web"), ("zone", "a")), tenant_id=TENANT)) == {1}


def test_only_vms_with_a_process_are_committed(connection: Connection) -> None:
    assert store.committed(connection) == Resources()
    for number, state in enumerate(VmState):
        store.insert_vm(connection, make(number, state=state), "")
    # Requested, creating, created, booting, running, paused, stopping.
    assert store.committed(connection) == Resources(vcpus=7, memory_bytes=7 * 80 * MIB, vms=7)


def test_restarts_come_when_they_are_due_and_in_turn(connection: Connection) -> None:
    for number, at_ns in enumerate((0, 30, 10, 99), start=1):
        store.insert_vm(connection, replace(make(number), restart_at_ns=at_ns), "")
    ended = replace(make(9, state=VmState.FAILED), slot=None, restart_at_ns=1)
    store.insert_vm(connection, ended, "")
    due = store.restarts_due(connection, 30, 10)
    assert [vm.restart_at_ns for vm in due] == [10, 30]
    assert len(store.restarts_due(connection, 30, 1)) == 1


def test_a_slot_belongs_to_one_vm(connection: Connection) -> None:
    store.insert_vm(connection, make(1), "")
    assert store.taken_slots(connection) == {1}
    clash = replace(make(2), slot=1)
    with pytest.raises(Exception, match="slot"):
        store.insert_vm(connection, clash, "")


def test_an_ended_vm_with_parts_is_not_clean(connection: Connection) -> None:
    clean = make(1, state=VmState.STOPPED)
    slotted = replace(make(2, state=VmState.FAILED), slot=9)
    leased = make(3, state=VmState.STOPPED)
    running = make(4)
    for vm in (clean, slotted, leased, running):
        store.insert_vm(connection, vm, "")
    store.write_lease(connection, leased.vm_id, Lease(lease_id="", rootfs_asset_id=ROOTFS))
    found = {vm.vm_id for vm in store.ended_but_not_clean(connection)}
    assert found == {slotted.vm_id, leased.vm_id}


def test_leases_are_kept_and_dropped(connection: Connection) -> None:
    vm = make(1)
    store.insert_vm(connection, vm, "")
    intended = Lease(
        lease_id="",
        rootfs_asset_id=ROOTFS,
        kernel_asset_id="k",
        initrd_asset_id="i",
        rootfs_format="ext4",
        image=ImageDefaults(cmd=("/a",)),
    )
    assert intended.asset_ids == (ROOTFS, "k", "i")
    store.write_lease(connection, vm.vm_id, intended)
    assert store.leases(connection) == [(vm, intended)]
    assert store.unleased(connection) == {vm.vm_id}
    held = replace(intended, lease_id="lse_1")
    store.write_lease(connection, vm.vm_id, held)
    assert store.leases(connection) == [(vm, held)]
    lost = replace(held, lease_id="")
    store.change_lease(connection, vm.vm_id, lost)
    assert store.find_lease(connection, vm.vm_id) == lost
    store.change_lease(connection, vm.vm_id, held)
    assert store.find_lease(connection, vm.vm_id) == held
    store.drop_lease(connection, vm.vm_id)
    assert store.find_lease(connection, vm.vm_id) is None
    # A lease that was given back meanwhile does not come back.
    store.change_lease(connection, vm.vm_id, held)
    assert store.find_lease(connection, vm.vm_id) is None


def test_the_last_time_of_a_step_counts(connection: Connection) -> None:
    vm = make(1)
    store.insert_vm(connection, vm, "")
    early = StepTiming(step="vmm.spawn", started_at_ns=5, duration_ns=1)
    late = StepTiming(step="vmm.spawn", started_at_ns=9, duration_ns=2)
    other = StepTiming(step="asset.lease", started_at_ns=1, duration_ns=3)
    store.write_timings(connection, vm.vm_id, [early])
    store.write_timings(connection, vm.vm_id, [late, other])
    assert store.timings(connection, vm.vm_id) == [other, late]
    store.write_timings(connection, vm.vm_id, [])
    assert len(store.timings(connection, vm.vm_id)) == 2


def test_tombstones_go_in_time_and_only_clean_ones(connection: Connection) -> None:
    old = make(1, state=VmState.DELETED, labels={"a": "b"})
    unclean = replace(make(2, state=VmState.DELETED), slot=4)
    live = make(3)
    for vm in (old, unclean, live):
        store.insert_vm(connection, vm, "")
    assert store.forget_deleted(connection, 1001, 1001, 10) == 0
    assert store.forget_deleted(connection, 5000, 5000, 10) == 1
    assert store.find_vm(connection, old.vm_id) is None
    assert store.history(connection, old.vm_id) == []
    assert store.find_vm(connection, unclean.vm_id) is not None
    assert store.vms_with_parts(connection) == {live.vm_id}


def test_the_host_is_one_row(connection: Connection) -> None:
    assert store.read_host(connection) is None
    host = Host(host_id="hst_1", tag="abcdef", state=HostState.ACTIVE, reason="", generation=1)
    store.write_host(connection, host)
    changed = replace(host, generation=2, default_kernel_asset_id="ast_k")
    store.write_host(connection, changed)
    assert store.read_host(connection) == changed
