from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from ironworks.metald import decide, store
from ironworks.metald.app import boot, create, stop
from ironworks.metald.app.recover import converge, recover_all
from ironworks.metald.drivers.driver import Evidence, ExitKind, ExitReport, Handle
from ironworks.metald.reconcilers import VmReconciler
from ironworks.metald.types import Vm, VmState
from ironworks.testkit.metald import TENANT, World, vm_spec, world
from ironworks.testkit.metald.vmm import MemoryDriver

S = VmState


async def created(w: World) -> Vm:
    return await create.create_vm(
        w.context, tenant_id=TENANT, vm_id="", spec=vm_spec(), idempotency_key=""
    )


async def booted(w: World) -> Vm:
    return await boot.boot_vm(w.context, await created(w), timeout_seconds=0, detach=False)


@asynccontextmanager
async def restarted(before: World) -> AsyncGenerator[World]:
    async with world(before.data_dir, before=before) as after:
        await recover_all(after.context)
        yield after


async def put(w: World, vm: Vm, state: VmState) -> None:
    """Write a state as if metald had died right after it."""
    now = await w.context.read(vm.vm_id)
    moved = replace(now, state=state, generation=now.generation + 1)
    await w.context.db.write(
        lambda connection: store.update_vm(connection, moved, decided_on=now.generation)
    )


async def test_a_restart_finds_running_vms_and_meters_them_on(tmp_path: Path) -> None:
    async with world(tmp_path) as before:
        running, paused = await booted(before), await booted(before)
        await stop.pause_vm(before.context, paused)
        waiting = await created(before)
    assert before.driver.alive == {running.vm_id, paused.vm_id, waiting.vm_id}
    async with restarted(before) as after:
        assert (await after.context.read(running.vm_id)).state is S.RUNNING
        assert (await after.context.read(paused.vm_id)).state is S.PAUSED
        assert set(after.sampler.attached) == {running.vm_id, paused.vm_id}
        assert after.sampler.attached[running.vm_id].boot_epoch == running.boot_epoch
        again = await boot.boot_vm(
            after.context, await after.context.read(waiting.vm_id), timeout_seconds=0, detach=False
        )
        assert again.state is S.RUNNING
        for vm_id in (running.vm_id, paused.vm_id, waiting.vm_id):
            vm = await after.context.read(vm_id)
            await stop.delete_vm(after.context, vm, force=True)
        assert await after.left() == {}


async def test_a_vm_that_cannot_be_found_now_keeps_metald_from_none_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path) as before:
        first, second = sorted([(await booted(before)).vm_id, (await booted(before)).vm_id])
    adopt = MemoryDriver.adopt

    async def refused(driver: MemoryDriver, evidence: Evidence) -> Handle | None:
        if evidence.vm_id == first:
            raise OSError(24, "Too many open files")
        return await adopt(driver, evidence)

    monkeypatch.setattr(MemoryDriver, "adopt", refused)
    async with restarted(before) as after:
        assert list(after.context.handles) == [second]
        monkeypatch.undo()
        await VmReconciler(after.context).activate()
        assert sorted(after.context.handles) == [first, second]


async def test_an_adopted_vms_end_is_noticed(tmp_path: Path) -> None:
    async with world(tmp_path) as before:
        vm = await booted(before)
    async with restarted(before) as after:
        done = ExitReport(kind=ExitKind.WORKLOAD, sentence="It ended.", workload_status=0)
        after.driver.vmms[vm.vm_id].end(done)
        while (now := await after.context.read(vm.vm_id)).state is not S.STOPPED:
            await after.context.clock.sleep(0.005)
        assert now.reason == "It ended."
        assert await after.left() == {}


@pytest.mark.parametrize(
    ("status", "state"), [(0, S.STOPPED), (3, S.FAILED)], ids=["well", "badly"]
)
async def test_what_ended_unseen_is_told_as_well_as_can_be(
    tmp_path: Path, status: int, state: VmState
) -> None:
    async with world(tmp_path) as before:
        vm = await booted(before)
    before.driver.vmms[vm.vm_id].end(
        ExitReport(kind=ExitKind.WORKLOAD, sentence=f"Status {status}.", workload_status=status)
    )
    async with restarted(before) as after:
        now = await after.context.read(vm.vm_id)
        assert (now.state, now.reason) == (state, f"Status {status}.")
        assert await after.left() == {}


@pytest.mark.parametrize("state", [S.REQUESTED, S.CREATING])
async def test_a_half_made_vm_is_undone(tmp_path: Path, state: VmState) -> None:
    async with world(tmp_path) as before:
        vm = await created(before)
        await put(before, vm, state)
    async with restarted(before) as after:
        now = await after.context.read(vm.vm_id)
        assert now.state is S.FAILED
        assert "restarted" in now.reason
        assert await after.left() == {}


async def test_a_boot_that_was_cut_off_goes_on_and_its_callers_repeat_finds_it(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as before:
        before.driver.ready_at_once = False
        vm = await created(before)
        await put(before, vm, S.BOOTING)
    async with restarted(before) as after:
        booting = await after.context.read(vm.vm_id)
        assert booting.state is S.BOOTING
        repeated = boot.boot_vm(after.context, booting, timeout_seconds=0, detach=False)
        after.driver.vmms[vm.vm_id].ready.set()
        running = await repeated
        assert (running.state, running.ready) == (S.RUNNING, True)
        assert list(after.sampler.attached) == [vm.vm_id]
        await stop.delete_vm(after.context, running, force=True)
        assert await after.left() == {}


async def test_a_boot_that_goes_on_and_fails_is_undone(tmp_path: Path) -> None:
    async with world(tmp_path) as before:
        before.driver.ready_at_once = False
        vm = await created(before)
        await put(before, vm, S.BOOTING)
    async with restarted(before) as after:
        report = ExitReport(kind=ExitKind.CRASHED, sentence="The VMM ended by SIGSEGV.")
        after.driver.vmms[vm.vm_id].end(report)
        await after.context.operations.settled(vm.vm_id)
        failed = await after.context.read(vm.vm_id)
        assert (failed.state, failed.reason) == (S.FAILED, report.sentence)
        assert await after.left() == {}


async def test_a_boot_whose_vmm_is_gone_has_failed(tmp_path: Path) -> None:
    async with world(tmp_path) as before:
        before.driver.ready_at_once = False
        vm = await created(before)
        await put(before, vm, S.BOOTING)
    before.driver.vmms[vm.vm_id].end(ExitReport(kind=ExitKind.LOST, sentence="Gone."))
    async with restarted(before) as after:
        assert (await after.context.read(vm.vm_id)).state is S.FAILED
        assert await after.left() == {}


@pytest.mark.parametrize("alive", [True, False])
async def test_a_shutdown_that_was_cut_off_is_finished(tmp_path: Path, alive: bool) -> None:
    async with world(tmp_path) as before:
        vm = await booted(before)
        await put(before, vm, S.STOPPING)
    if not alive:
        before.driver.vmms[vm.vm_id].end(ExitReport(kind=ExitKind.KILLED, sentence="Killed."))
    async with restarted(before) as after:
        assert (await after.context.read(vm.vm_id)).state is S.STOPPED
        assert await after.left() == {}


async def test_a_deletion_that_was_cut_off_is_finished(tmp_path: Path) -> None:
    async with world(tmp_path) as before:
        vm = await booted(before)
        await put(before, vm, S.DELETING)
    async with restarted(before) as after:
        assert (await after.context.read(vm.vm_id)).state is S.DELETED
        assert await after.left() == {}


async def test_a_vmm_that_does_not_obey_is_drift_and_can_still_be_ended(tmp_path: Path) -> None:
    async with world(tmp_path) as before:
        vm = await booted(before)
    async with world(tmp_path, before=before) as after:
        after.driver.deaf = True
        await recover_all(after.context)
        now = await after.context.read(vm.vm_id)
        assert now.state is S.RUNNING
        assert "cannot be controlled" in now.drift[0]
        ended = await stop.delete_vm(after.context, now, force=True)
        assert ended.state is S.DELETED
        assert await after.left() == {}


async def test_settled_vms_are_left_alone(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        vm = await booted(w)
        before = await w.context.read(vm.vm_id)
        assert not await converge(w.context, vm.vm_id)
        assert await w.context.read(vm.vm_id) == before
        assert not await converge(w.context, "vm_unknown")
        w.context.operations.begin(vm.vm_id, "boot")
        assert not await converge(w.context, vm.vm_id)
        w.context.operations.end(vm.vm_id)


def test_every_state_is_either_settled_or_recovered() -> None:
    settled = {S.STOPPED, S.FAILED, S.DELETED}
    recovered = {*decide.HAS_VMM, S.REQUESTED, S.CREATING, S.DELETING}
    assert settled | recovered == set(VmState)
