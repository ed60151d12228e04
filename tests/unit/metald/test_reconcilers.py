from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from ironworks.metald import store
from ironworks.metald.app import boot, create, stop
from ironworks.metald.cgroup.groups import GroupLimits
from ironworks.metald.drivers.driver import DriverError
from ironworks.metald.reconcilers import (
    LeaseReconciler,
    LeftoverReconciler,
    TombstoneReconciler,
    VmReconciler,
    lifecycle_reconcilers,
)
from ironworks.metald.steps import Step
from ironworks.metald.types import Vm, VmState
from ironworks.model.errors import Internal, Unavailable
from ironworks.model.ids import derived_id
from ironworks.testkit.clock import FakeClock
from ironworks.testkit.metald import TENANT, World, vm_spec, world

GHOST = derived_id("vm", "ghost")


@pytest.fixture
async def w(tmp_path: Path) -> AsyncGenerator[World]:
    async with world(tmp_path) as made:
        yield made


async def booted(w: World) -> Vm:
    vm = await create.create_vm(
        w.context, tenant_id=TENANT, vm_id="", spec=vm_spec(), idempotency_key=""
    )
    return await boot.boot_vm(w.context, vm, timeout_seconds=0, detach=False)


async def test_what_goes_missing_behind_our_back_is_noted_and_mended_note(w: World) -> None:
    vm = await booted(w)
    reconciler = VmReconciler(w.context)
    assert (await reconciler.activate()).counts == {"vms": 1, "changed": 0, "drifted": 0}
    assert vm.slot is not None
    w.network.made.discard(vm.slot)
    assert (await reconciler.activate()).counts["drifted"] == 1
    drifted = await w.context.read(vm.vm_id)
    assert drifted.drift == ("Its network is gone.",)
    assert drifted.state is VmState.RUNNING
    w.network.made.add(vm.slot)
    await reconciler.activate()
    assert (await w.context.read(vm.vm_id)).drift == ()


async def test_drift_is_looked_for_in_turn(w: World) -> None:
    vms = [await booted(w) for _ in range(3)]
    w.network.made.clear()
    reconciler = VmReconciler(w.context)
    await reconciler.activate()
    assert all([(await w.context.read(vm.vm_id)).drift for vm in vms])


async def test_leases_are_renewed_and_lost_ones_taken_anew(w: World) -> None:
    reconciler = LeaseReconciler(w.context)
    assert (await reconciler.activate()).counts == {"held": 0, "lost": 0, "taken_anew": 0}
    vm = await booted(w)
    old = w.lessor.held[vm.vm_id]
    assert (await reconciler.activate()).counts == {"held": 1, "lost": 0, "taken_anew": 0}
    w.lessor.lost = {old}
    assert (await reconciler.activate()).counts == {"held": 1, "lost": 1, "taken_anew": 1}
    lease = await w.context.db.read(lambda c: store.find_lease(c, vm.vm_id))
    assert lease is not None
    assert lease.lease_id == w.lessor.held[vm.vm_id] != old


async def test_leftovers_without_a_vm_go_and_what_belongs_to_one_stays(w: World) -> None:
    vm = await booted(w)
    limits = GroupLimits(memory_bytes=1, cpus=1, cpu_weight=1, pids=1)
    await w.groups.create(GHOST, limits)
    await w.context.jails.create(GHOST, 0)
    await w.network.create(7, 0)
    (w.context.settings.jails_dir / "not-a-vm").mkdir()
    report = await LeftoverReconciler(w.context).activate()
    assert report.counts == {"vms": 1, "networks": 1, "unclean": 0}
    assert w.network.made == {vm.slot}
    assert set(w.groups.made) == {vm.vm_id}
    jails = {path.name for path in w.context.settings.jails_dir.iterdir()}
    assert jails == {vm.vm_id, "not-a-vm"}
    assert not w.context.reaping_slots


@pytest.mark.parametrize(
    "error",
    [
        OSError(16, "busy"),
        DriverError(Step.JAIL_REMOVE, "It hangs.", detail="in the kernel"),
        # What is private must not collide with what the line of the log says itself.
        Internal("A process does not end.", context={"error": "EBUSY", "vm_id": "", "event": ""}),
    ],
)
async def test_a_leftover_that_cannot_go_keeps_none_of_the_others(
    w: World, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    ghosts = sorted(derived_id("vm", str(number)) for number in range(3))
    for ghost in ghosts:
        await w.context.jails.create(ghost, 0)
    remove = w.context.jails.remove

    async def stuck(vm_id: str) -> None:
        if vm_id == ghosts[0]:
            raise error
        await remove(vm_id)

    monkeypatch.setattr(w.context.jails, "remove", stuck)
    assert (await LeftoverReconciler(w.context).activate()).counts["vms"] == 2
    assert [path.name for path in w.context.settings.jails_dir.iterdir()] == ghosts[:1]


async def test_a_clean_up_that_was_cut_off_is_finished(w: World) -> None:
    vm = await booted(w)
    w.faults.step, w.faults.error = Step.NETWORK_REMOVE, OSError(16, "busy")
    w.lessor.down = Unavailable("down")
    request = stop.shutdown_request(w.context, timeout_seconds=1, force=True, reason="")
    await stop.shutdown_vm(w.context, vm, request)
    assert (await w.left()).keys() == {"networks", "leases", "slots"}
    reconciler = LeftoverReconciler(w.context)
    assert (await reconciler.activate()).counts["unclean"] == 1
    assert (await w.left()).keys() == {"networks", "leases", "slots"}
    w.faults.step, w.lessor.down = None, None
    await reconciler.activate()
    assert await w.left() == {}
    assert (await reconciler.activate()).counts["unclean"] == 0


async def test_a_deleted_vms_lease_is_given_back_when_that_is_possible(w: World) -> None:
    vm = await booted(w)
    w.lessor.down = Unavailable("down")
    await stop.delete_vm(w.context, vm, force=True)
    w.lessor.down = None
    await LeftoverReconciler(w.context).activate()
    assert await w.left() == {}


async def test_tombstones_go_after_their_time(tmp_path: Path) -> None:
    clock = FakeClock()
    async with world(tmp_path, clock=clock) as w:
        vm = await stop.delete_vm(w.context, await booted(w), force=True)
        reconciler = TombstoneReconciler(w.context)
        await clock.advance(w.context.settings.tombstone_seconds - 1)
        assert (await reconciler.activate()).counts == {"forgotten": 0, "expired": 0}
        await clock.advance(2)
        assert (await reconciler.activate()).counts == {"forgotten": 1, "expired": 0}
        found = await w.context.db.read(lambda c: store.find_vm(c, vm.vm_id))
        assert found is None


def test_leases_are_renewed_often_enough(w: World) -> None:
    periods = {one.name: one.period_seconds for one in lifecycle_reconcilers(w.context)}
    assert periods["leases"] * 3 <= 60
