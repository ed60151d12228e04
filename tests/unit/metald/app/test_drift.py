import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from ironworks.metald import store
from ironworks.metald.app import boot, create, restart, stop, watch
from ironworks.metald.app.drift import RUNS_ON, STANDS_STILL
from ironworks.metald.app.stop import Shutdown
from ironworks.metald.drivers.driver import DEAF, DriverError, ExitKind, ExitReport
from ironworks.metald.reconcilers import LeaseReconciler, VmReconciler
from ironworks.metald.steps import Step
from ironworks.metald.types import RestartMode, RestartPolicy, Vm, VmState
from ironworks.model.errors import FailedPrecondition, NotFound, Unavailable
from ironworks.testkit.metald import ROOTFS, TENANT, World, vm_spec, world

S = VmState


@pytest.fixture
async def w(tmp_path: Path) -> AsyncGenerator[World]:
    async with world(tmp_path) as made:
        yield made


async def booted(w: World, mode: RestartMode = RestartMode.NEVER) -> Vm:
    spec = vm_spec(restart=RestartPolicy(mode=mode, min_backoff_seconds=60))
    vm = await create.create_vm(
        w.context, tenant_id=TENANT, vm_id="", spec=spec, idempotency_key=""
    )
    return await boot.boot_vm(w.context, vm, timeout_seconds=0, detach=False)


async def look(w: World, vm: Vm) -> Vm:
    await VmReconciler(w.context).activate()
    return await w.context.read(vm.vm_id)


async def test_a_cgroup_that_is_gone_is_made_again_with_the_vm_in_it(w: World) -> None:
    vm = await booted(w)
    limits = w.groups.made.pop(vm.vm_id)
    assert (await look(w, vm)).drift == ("Its cgroup is gone.",)
    mended = await look(w, vm)
    assert (mended.state, mended.drift) == (S.RUNNING, ())
    assert w.groups.made == {vm.vm_id: limits}
    assert vm.evidence is not None
    assert w.groups.entered == [(vm.vm_id, vm.evidence.pid)]
    # The cgroup's counters begin anew, and must not be taken for the old ones.
    assert w.sampler.attached[vm.vm_id].boot_epoch == mended.boot_epoch == vm.boot_epoch + 1


async def test_a_network_that_is_gone_is_made_again_around_the_vm(w: World) -> None:
    vm = await booted(w)
    w.network.made.clear()
    assert (await look(w, vm)).drift == ("Its network is gone.",)
    mended = await look(w, vm)
    assert (mended.state, mended.drift) == (S.RUNNING, ())
    assert w.network.made == {vm.slot}


async def test_a_lost_tap_ends_the_vm_with_a_sentence(w: World) -> None:
    vm = await booted(w)
    w.network.without_tap.add(vm.slot or 0)
    assert (await look(w, vm)).state is S.RUNNING
    failed = await look(w, vm)
    assert failed.state is S.FAILED
    assert "somebody removed it" in failed.reason
    assert await w.left() == {}


async def test_a_vm_with_a_policy_is_booted_again_with_a_fresh_network(w: World) -> None:
    vm = await booted(w, RestartMode.ON_FAILURE)
    w.network.without_tap.add(vm.slot or 0)
    await look(w, vm)
    waiting = await look(w, vm)
    assert (waiting.state, waiting.ready, waiting.restarts) == (S.RUNNING, False, 1)
    ask = Shutdown(timeout_seconds=1, force=False, reason="")
    again = await restart.reboot_vm(w.context, waiting, ask)
    assert (again.ready, again.drift) == (True, ())
    assert w.network.made == {vm.slot}


async def test_a_lease_that_cannot_be_taken_anew_is_kept_as_drift_and_tried_on(w: World) -> None:
    vm, other = await booted(w), await booted(w)
    w.lessor.lost = {w.lessor.held[vm.vm_id], w.lessor.held[other.vm_id]}
    rootfs = w.lessor.assets.pop(ROOTFS)
    assert (await LeaseReconciler(w.context).activate()).counts["taken_anew"] == 0
    drifted = await look(w, vm)
    assert drifted.state is S.RUNNING
    assert "lease" in drifted.drift[0]
    assert (await look(w, vm)).state is S.RUNNING
    w.lessor.assets[ROOTFS] = rootfs
    w.lessor.lost = set()
    assert (await LeaseReconciler(w.context).activate()).counts["taken_anew"] == 2
    assert (await look(w, vm)).drift == ()
    await stop.delete_vm(w.context, await w.context.read(vm.vm_id), force=True)
    await stop.delete_vm(w.context, await w.context.read(other.vm_id), force=True)
    assert await w.left() == {}


async def test_one_lease_that_fails_does_not_hinder_the_others(
    w: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    vms = [await booted(w) for _ in range(3)]
    w.lessor.lost = set(w.lessor.held.values())
    acquire = w.lessor.acquire
    answers = iter((Unavailable("down"), NotFound("gone"), None))

    async def one_by_one(*arguments: object) -> object:
        if (error := next(answers)) is not None:
            raise error
        return await acquire(*arguments)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(w.lessor, "acquire", one_by_one)
    counts = (await LeaseReconciler(w.context).activate()).counts
    assert counts == {"held": 3, "lost": 3, "taken_anew": 1}
    unleased = await w.context.db.read(store.unleased)
    assert len(unleased) == 1
    assert unleased < {vm.vm_id for vm in vms}


async def test_vcpus_that_stand_still_though_nobody_asked_are_let_run(w: World) -> None:
    vm = await booted(w)
    await w.context.handles[vm.vm_id].pause()  # and killed before it was written
    assert (await look(w, vm)).drift == (STANDS_STILL,)
    assert w.driver.vmms[vm.vm_id].paused
    assert (await look(w, vm)).drift == ()
    assert not w.driver.vmms[vm.vm_id].paused


async def test_a_paused_vm_that_runs_is_paused(w: World) -> None:
    vm = await stop.pause_vm(w.context, await booted(w))
    await w.context.handles[vm.vm_id].resume()
    assert (await look(w, vm)).drift == (RUNS_ON,)
    mended = await look(w, vm)
    assert (mended.state, mended.drift) == (S.PAUSED, ())
    assert w.driver.vmms[vm.vm_id].paused


async def test_a_vmm_that_does_not_answer_is_shown_and_left_alone(
    w: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = await booted(w)

    async def deaf() -> bool:
        raise DriverError(Step.GUEST_PAUSE, DEAF)

    monkeypatch.setattr(w.context.handles[vm.vm_id], "stands_still", deaf)
    for _ in range(3):
        shown = await look(w, vm)
        assert (shown.state, shown.drift) == (S.RUNNING, (DEAF,))
    monkeypatch.undo()
    assert (await look(w, vm)).drift == ()


async def test_what_the_vmm_refuses_stays_to_be_seen(w: World) -> None:
    vm = await booted(w)
    await w.context.handles[vm.vm_id].pause()
    w.faults.step = Step.GUEST_RESUME
    await look(w, vm)
    assert (await look(w, vm)).drift == (STANDS_STILL,)


async def test_an_end_that_cannot_be_written_is_told_when_it_can(
    w: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm, refused = await booted(w), asyncio.Event()

    async def full(_work: object) -> None:
        refused.set()
        raise FailedPrecondition("The disk of the database is full.")

    monkeypatch.setattr(watch, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(w.context.db, "write", full)
    report = ExitReport(kind=ExitKind.CRASHED, sentence="The VMM ended by SIGSEGV.")
    w.driver.vmms[vm.vm_id].end(report)
    await refused.wait()
    monkeypatch.undo()
    async with asyncio.timeout(10):
        while (now := await w.context.read(vm.vm_id)).state is not S.FAILED:
            await w.context.clock.sleep(0.01)
    await w.context.operations.settled(vm.vm_id)
    assert now.reason == report.sentence
    assert await w.left() == {}
