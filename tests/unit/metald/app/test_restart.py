import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import pytest

from ironworks.metald import store
from ironworks.metald.app import boot, create, queries, restart, stop
from ironworks.metald.app.context import Once
from ironworks.metald.app.recover import recover_all
from ironworks.metald.app.stop import Shutdown
from ironworks.metald.drivers.driver import DriverError, ExitKind, ExitReport
from ironworks.metald.reconcilers import RestartReconciler, VmReconciler
from ironworks.metald.steps import Step
from ironworks.metald.types import RestartMode, RestartPolicy, Vm, VmState
from ironworks.model.errors import DeadlineExceeded, FailedPrecondition
from ironworks.testkit.metald import TENANT, World, vm_spec, world

S = VmState
ASK = Shutdown(timeout_seconds=5, force=False, reason="asked")
CRASH = ExitReport(kind=ExitKind.CRASHED, sentence="It crashed.", console_tail=("oops",))
SOON = RestartPolicy(mode=RestartMode.ON_FAILURE, min_backoff_seconds=0.1, max_backoff_seconds=0.1)
LATE = RestartPolicy(mode=RestartMode.ON_FAILURE, min_backoff_seconds=60)


@pytest.fixture
async def w(tmp_path: Path) -> AsyncGenerator[World]:
    async with world(tmp_path) as made:
        yield made


async def booted(w: World, policy: RestartPolicy = SOON) -> Vm:
    vm = await create.create_vm(
        w.context, tenant_id=TENANT, vm_id="", spec=vm_spec(restart=policy), idempotency_key=""
    )
    return await boot.boot_vm(w.context, vm, timeout_seconds=0, detach=False)


async def crashed(w: World, vm: Vm) -> Vm:
    """The VM when its end has been noticed."""
    w.driver.vmms[vm.vm_id].end(CRASH)
    async with asyncio.timeout(10):
        while True:
            now = await w.context.read(vm.vm_id)
            if now.generation != vm.generation and not w.context.operations.busy(vm.vm_id):
                return now
            await asyncio.sleep(0.005)


async def until_ready(w: World, vm: Vm) -> Vm:
    reconciler = RestartReconciler(w.context)
    async with asyncio.timeout(10):
        while True:
            await reconciler.activate()
            now = await w.context.read(vm.vm_id)
            if now.ready or now.state is not S.RUNNING:
                await w.context.operations.settled(vm.vm_id)
                return await w.context.read(vm.vm_id)
            await asyncio.sleep(0.02)


async def reasons(w: World, vm: Vm) -> list[str]:
    details = await queries.get_details(w.context, vm.vm_id, TENANT)
    return [line.reason for line in details.history]


async def test_a_crash_is_followed_by_a_fresh_vmm_at_the_same_place(w: World) -> None:
    before = await booted(w)
    waiting = await crashed(w, before)
    assert (waiting.state, waiting.ready, waiting.restarts) == (S.RUNNING, False, 1)
    assert waiting.exit is not None
    assert waiting.exit.console_tail == ("oops",)
    assert w.sampler.attached == {}
    after = await until_ready(w, before)
    assert (after.state, after.ready, after.restart_at_ns) == (S.RUNNING, True, 0)
    assert (after.slot, after.boot_epoch) == (before.slot, before.boot_epoch + 1)
    assert after.evidence != before.evidence
    assert w.sampler.attached[after.vm_id].boot_epoch == after.boot_epoch
    told = await reasons(w, after)
    assert told[-2:] == [
        "It crashed. It is booted again in 0.1 seconds.",
        "The workload runs again.",
    ]
    await stop.delete_vm(w.context, after, force=True)
    assert await w.left() == {}


async def test_a_vm_that_ends_again_and_again_is_given_up(w: World) -> None:
    policy = RestartPolicy(
        mode=RestartMode.ALWAYS,
        min_backoff_seconds=0.1,
        max_backoff_seconds=0.1,
        max_restarts=2,
    )
    vm = await booted(w, policy)
    for _ in range(2):
        vm = await until_ready(w, await crashed(w, vm))
    failed = await crashed(w, vm)
    assert failed.state is S.FAILED
    assert "2 times within an hour" in failed.reason
    assert await w.left() == {}


async def test_a_restart_that_fails_is_tried_again(w: World) -> None:
    vm = await booted(w)
    await crashed(w, vm)
    w.faults.step = Step.VMM_SPAWN
    reconciler = RestartReconciler(w.context)
    async with asyncio.timeout(10):
        while (await w.context.read(vm.vm_id)).restarts < 2:
            await reconciler.activate()
            await asyncio.sleep(0.02)
    now = await w.context.read(vm.vm_id)
    assert now.state is S.RUNNING
    assert "made to fail" in now.reason
    w.faults.step = None
    assert (await until_ready(w, vm)).ready


async def test_a_vm_that_waits_for_its_restart_can_be_ended(w: World) -> None:
    vm = await crashed(w, await booted(w, LATE))
    assert await RestartReconciler(w.context).activate()
    with pytest.raises(FailedPrecondition, match="booted again"):
        await stop.pause_vm(w.context, vm)
    console = [
        piece
        async for piece in queries.stream_console(
            w.context, vm, queries.ConsoleStart(), follow=False
        )
    ]
    assert console
    stopped = await stop.shutdown_vm(w.context, vm, ASK)
    assert (stopped.state, stopped.restart_at_ns) == (S.STOPPED, 0)
    assert await w.left() == {}


async def test_a_restart_outlives_metald(tmp_path: Path) -> None:
    async with world(tmp_path) as before:
        vm = await crashed(before, await booted(before, LATE))
        # As if metald had died in the midst of the restart: a new VMM runs that nobody knows.
        due = 1
        now = await before.context.read(vm.vm_id)
        await before.context.db.write(
            lambda connection: store.update_vm(
                connection,
                _replaced(now, due),
                decided_on=now.generation,
            )
        )
    async with world(tmp_path, before=before) as after:
        await recover_all(after.context)
        assert (await after.context.read(vm.vm_id)).state is S.RUNNING
        await VmReconciler(after.context).activate()
        again = await until_ready(after, vm)
        assert again.ready
        await stop.delete_vm(after.context, again, force=True)
        assert await after.left() == {}


def _replaced(vm: Vm, restart_at_ns: int) -> Vm:
    return replace(vm, restart_at_ns=restart_at_ns, generation=vm.generation + 1)


async def test_what_ended_while_metald_was_away_is_booted_again(tmp_path: Path) -> None:
    async with world(tmp_path) as before:
        vm = await booted(before)
    before.driver.vmms[vm.vm_id].end(CRASH)
    async with world(tmp_path, before=before) as after:
        await recover_all(after.context)
        assert (await until_ready(after, vm)).boot_epoch == 2


async def test_the_network_of_a_vm_is_made_anew_in_its_slot(tmp_path: Path) -> None:
    # As after a reboot of the host: processes, namespaces and cgroups are gone, files are not.
    async with world(tmp_path) as before:
        vm = await booted(before)
    before.driver.vmms[vm.vm_id].end(CRASH)
    before.network.made.clear()
    before.groups.made.clear()
    async with world(tmp_path, before=before) as after:
        await recover_all(after.context)
        again = await until_ready(after, vm)
        assert again.slot == vm.slot
        assert after.network.made == {vm.slot}
        assert set(after.groups.made) == {vm.vm_id}


async def test_a_jail_that_is_gone_is_filled_anew(w: World) -> None:
    vm = await booted(w)
    await crashed(w, vm)
    await w.context.jails.remove(vm.vm_id)
    assert (await until_ready(w, vm)).ready
    assert (w.context.jails.path(vm.vm_id) / "rootfs").exists()


async def test_a_reboot_keeps_the_place_and_answers_when_the_vm_is_ready(w: World) -> None:
    before = await booted(w, RestartPolicy())
    after = await restart.reboot_vm(w.context, before, ASK)
    assert (after.state, after.ready, after.restarts) == (S.RUNNING, True, 0)
    assert (after.slot, after.boot_epoch) == (before.slot, 2)
    assert after.exit is not None
    assert after.exit.workload_status == 0
    assert w.driver.alive == {after.vm_id}


async def test_a_reboot_that_is_repeated_with_its_key_is_done_once(w: World) -> None:
    vm = await booted(w, RestartPolicy())
    once = Once(scope=f"{TENANT}/RebootVm", key="k", request=b"")
    await restart.reboot_vm(w.context, vm, ASK, once=once)
    again = await restart.reboot_vm(w.context, vm, ASK, once=once)
    assert again.boot_epoch == 2


async def test_a_guest_that_does_not_listen_is_rebooted_by_force(w: World) -> None:
    vm = await booted(w, RestartPolicy())
    w.driver.vmms[vm.vm_id].obeys_shutdown = False
    short = Shutdown(timeout_seconds=0.1, force=False, reason="")
    assert (await restart.reboot_vm(w.context, vm, short)).boot_epoch == 2


async def test_a_reboot_that_fails_fails_a_vm_without_a_policy(w: World) -> None:
    vm = await booted(w, RestartPolicy())
    w.faults.step, w.faults.error = Step.GUEST_START, DriverError(Step.GUEST_START, "No.")
    with pytest.raises(FailedPrecondition, match="No"):
        await restart.reboot_vm(w.context, vm, ASK)
    assert (await w.context.read(vm.vm_id)).state is S.FAILED
    assert await w.left() == {}


async def test_a_rebooted_guest_that_is_never_ready_fails_in_time(w: World) -> None:
    w.context.settings = w.context.settings.model_copy(update={"boot_timeout_seconds": 1})
    vm = await booted(w, RestartPolicy())
    w.driver.ready_at_once = False
    with pytest.raises(DeadlineExceeded, match="within 1 seconds"):
        await restart.reboot_vm(w.context, vm, ASK)
    failed = await w.context.read(vm.vm_id)
    assert failed.exit is not None
    assert failed.exit.console_tail == ("booting", "booting")


async def test_a_shutdown_cuts_a_reboot_short(w: World) -> None:
    vm = await booted(w, RestartPolicy())
    w.driver.ready_at_once = False
    async with asyncio.TaskGroup() as group:
        call = group.create_task(_outcome(restart.reboot_vm(w.context, vm, ASK)))
        async with asyncio.timeout(5):
            while (await w.context.read(vm.vm_id)).boot_epoch < 2:
                await w.context.clock.sleep(0.005)
        stopped = await stop.shutdown_vm(w.context, await w.context.read(vm.vm_id), ASK)
    assert "shut down" in await call
    assert stopped.state is S.STOPPED
    assert await w.left() == {}


async def _outcome(work: object) -> str:
    try:
        await work  # type: ignore[misc] # pyright: ignore[reportGeneralTypeIssues]
    except Exception as error:  # noqa: BLE001 - told by value
        return str(error)
    return ""


@pytest.mark.parametrize("state", [S.CREATED, S.PAUSED, S.STOPPED])
async def test_only_a_running_vm_can_be_rebooted(w: World, state: VmState) -> None:
    vm = await booted(w)
    if state is S.PAUSED:
        vm = await stop.pause_vm(w.context, vm)
    elif state is S.STOPPED:
        vm = await stop.shutdown_vm(w.context, vm, ASK)
    else:
        vm = await create.create_vm(
            w.context, tenant_id=TENANT, vm_id="", spec=vm_spec(), idempotency_key=""
        )
    with pytest.raises(FailedPrecondition, match="only one that is running"):
        await restart.reboot_vm(w.context, vm, ASK)


async def test_only_so_many_restarts_are_under_way_at_once(w: World) -> None:
    vms = [await booted(w) for _ in range(6)]
    for vm in vms:
        await crashed(w, vm)
    w.driver.ready_at_once = False
    await asyncio.sleep(0.15)
    assert await restart.start_due(w.context) == (restart.AT_ONCE, 0)
    assert await restart.start_due(w.context) == (0, 2)
    for vm in vms:
        await stop.delete_vm(w.context, await w.context.read(vm.vm_id), force=True)
    assert await w.left() == {}
