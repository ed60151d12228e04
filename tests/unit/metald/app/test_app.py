import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import pytest

from ironworks.metald.app import boot, create, queries, stop
from ironworks.metald.app.context import Once
from ironworks.metald.app.stop import Shutdown
from ironworks.metald.drivers.driver import DriverError, ExitKind, ExitReport
from ironworks.metald.steps import Step
from ironworks.metald.types import Vm, VmState
from ironworks.model.errors import (
    Aborted,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    IronError,
    Unavailable,
)
from ironworks.model.units import GIB
from ironworks.testkit.metald import TENANT, World, vm_spec, world

S = VmState
ASK = Shutdown(timeout_seconds=5, force=False, reason="asked")
CRASH = ExitReport(
    kind=ExitKind.CRASHED, sentence="The VMM ended by SIGSEGV.", console_tail=("oops",)
)


@pytest.fixture
async def w(tmp_path: Path) -> AsyncGenerator[World]:
    async with world(tmp_path) as made:
        yield made


async def created(w: World) -> Vm:
    return await create.create_vm(
        w.context, tenant_id=TENANT, vm_id="", spec=vm_spec(), idempotency_key=""
    )


async def booted(w: World) -> Vm:
    return await boot.boot_vm(w.context, await created(w), timeout_seconds=0, detach=False)


async def until(w: World, vm_id: str, *states: VmState) -> Vm:
    async with asyncio.timeout(10):
        while True:
            vm = await w.context.read(vm_id)
            if vm.state in states and not w.context.operations.busy(vm_id):
                return vm
            await asyncio.sleep(0.005)


async def states(w: World, vm_id: str) -> list[VmState]:
    details = await queries.get_details(w.context, vm_id, TENANT)
    return [line.after for line in details.history]


async def test_a_vm_is_metered_before_it_runs_and_until_its_vmm_has_ended(w: World) -> None:
    vm = await booted(w)
    assert (vm.state, vm.ready) == (S.RUNNING, True)
    source = w.sampler.attached[vm.vm_id]
    assert (source.tenant_id, source.boot_epoch, source.tap) == (TENANT, 1, "iwtap0")
    assert source.disk_bytes == len(b"file")
    assert source.read_blocks is not None
    assert (await source.read_blocks()).write_bytes == 2
    stopped = await stop.shutdown_vm(w.context, vm, ASK)
    assert stopped.state is S.STOPPED
    assert stopped.exit is not None
    assert stopped.exit.workload_status == 0
    assert w.sampler.events == [("attach", vm.vm_id), ("detach", vm.vm_id)]
    assert await w.left() == {}
    seen = w.faults.seen
    assert seen.index(Step.METERING_ATTACH) > seen.index(Step.GUEST_READY)
    assert seen.index(Step.CGROUP_REMOVE) > seen.index(Step.METERING_DETACH)


async def test_a_disk_that_takes_what_the_guest_writes_is_metered_too(w: World) -> None:
    vm = await created(w)
    larger = await w.context.amend(replace(vm, spec=replace(vm.spec, disk_bytes=GIB)))
    await boot.boot_vm(w.context, larger, timeout_seconds=0, detach=False)
    assert w.sampler.attached[vm.vm_id].disk_bytes == GIB + len(b"file")


async def test_the_whole_life_is_in_the_history(w: World) -> None:
    vm = await booted(w)
    vm = await stop.pause_vm(w.context, vm)
    assert (await stop.pause_vm(w.context, vm)).state is S.PAUSED
    vm = await stop.resume_vm(w.context, vm)
    assert (await stop.resume_vm(w.context, vm)).state is S.RUNNING
    vm = await stop.shutdown_vm(w.context, vm, ASK)
    assert (await stop.shutdown_vm(w.context, vm, ASK)).state is S.STOPPED
    vm = await stop.delete_vm(w.context, vm, force=False)
    assert (await stop.delete_vm(w.context, vm, force=False)).state is S.DELETED
    assert await states(w, vm.vm_id) == [
        S.REQUESTED,
        S.CREATING,
        S.CREATED,
        S.BOOTING,
        S.RUNNING,
        S.PAUSED,
        S.RUNNING,
        S.STOPPING,
        S.STOPPED,
        S.DELETING,
        S.DELETED,
    ]


async def test_booting_twice_answers_the_running_vm_and_stopped_ones_stay_so(w: World) -> None:
    vm = await booted(w)
    assert await boot.boot_vm(w.context, vm, timeout_seconds=0, detach=False) == vm
    vm = await stop.shutdown_vm(w.context, vm, ASK)
    with pytest.raises(FailedPrecondition, match="stopped"):
        await boot.boot_vm(w.context, vm, timeout_seconds=0, detach=False)


async def test_a_repeated_call_joins_the_first(w: World) -> None:
    w.driver.ready_at_once = False
    vm = await created(w)
    booting = await boot.boot_vm(w.context, vm, timeout_seconds=60, detach=True)
    assert await boot.boot_vm(w.context, booting, timeout_seconds=60, detach=True) == booting
    w.driver.vmms[vm.vm_id].ready.set()
    running = await boot.boot_vm(w.context, booting, timeout_seconds=60, detach=False)
    assert running.state is S.RUNNING
    stopped = await asyncio.gather(*(stop.shutdown_vm(w.context, running, ASK) for _ in range(3)))
    assert {one.state for one in stopped} == {S.STOPPED}
    deleted = await asyncio.gather(
        *(stop.delete_vm(w.context, stopped[0], force=False) for _ in range(3))
    )
    assert {one.state for one in deleted} == {S.DELETED}
    assert (await states(w, vm.vm_id)).count(S.STOPPING) == 1


async def test_a_repeated_boot_that_failed_says_why(w: World) -> None:
    w.driver.ready_at_once = False
    vm = await created(w)
    booting = await boot.boot_vm(w.context, vm, timeout_seconds=60, detach=True)
    w.driver.vmms[vm.vm_id].end(CRASH)
    with pytest.raises(FailedPrecondition, match="SIGSEGV"):
        await boot.boot_vm(w.context, booting, timeout_seconds=60, detach=False)


async def test_a_boot_that_comes_again_with_its_key_is_told_how_the_first_ended(w: World) -> None:
    w.driver.ready_at_once = False
    vm, once = await created(w), Once(scope="BootVm", key="k", request=b"")
    await boot.boot_vm(w.context, vm, timeout_seconds=60, detach=True, once=once)
    w.driver.vmms[vm.vm_id].end(CRASH)
    failed = await until(w, vm.vm_id, S.FAILED)
    for again, said in ((once, "did not boot: .*SIGSEGV"), (None, "cannot become booting")):
        with pytest.raises(FailedPrecondition, match=said):
            await boot.boot_vm(w.context, failed, timeout_seconds=60, detach=False, once=again)


@pytest.mark.parametrize("seconds", [0.5, 601])
async def test_bounds_of_a_boot(w: World, seconds: float) -> None:
    with pytest.raises(InvalidRequest):
        await boot.boot_vm(w.context, await created(w), timeout_seconds=seconds, detach=False)


async def test_a_guest_that_ends_before_it_is_ready_is_failed_with_its_last_words(w: World) -> None:
    w.driver.ready_at_once = False
    vm = await created(w)
    booting = await boot.boot_vm(w.context, vm, timeout_seconds=5, detach=True)
    assert booting.state is S.BOOTING
    w.driver.vmms[vm.vm_id].end(CRASH)
    failed = await until(w, vm.vm_id, S.FAILED)
    assert failed.reason == CRASH.sentence
    assert failed.exit is not None
    assert failed.exit.console_tail == ("oops",)
    assert await w.left() == {}


async def test_the_caller_of_a_failed_boot_is_told_the_reason(w: World) -> None:
    w.driver.ready_at_once = False
    vm = await created(w)
    w.driver.vmms[vm.vm_id].end(CRASH)
    w.context.handles[vm.vm_id].wait  # noqa: B018 - it has ended before the boot
    with pytest.raises(IronError) as error:
        await boot.boot_vm(w.context, vm, timeout_seconds=5, detach=False)
    assert "SIGSEGV" in str(error.value) or isinstance(error.value, Aborted)


async def test_a_guest_that_is_never_ready_is_ended_in_time(w: World) -> None:
    w.driver.ready_at_once = False
    vm = await created(w)
    with pytest.raises(DeadlineExceeded) as error:
        await boot.boot_vm(w.context, vm, timeout_seconds=1, detach=False)
    assert "within 1 seconds" in error.value.message
    assert "booting" in error.value.hint
    assert (await w.context.read(vm.vm_id)).state is S.FAILED
    assert await w.left() == {}


async def test_a_shutdown_cuts_a_boot_short(w: World) -> None:
    w.driver.ready_at_once = False
    vm = await created(w)
    booting = await boot.boot_vm(w.context, vm, timeout_seconds=60, detach=True)
    stopped = await stop.shutdown_vm(w.context, booting, ASK)
    assert stopped.state is S.STOPPED
    assert S.RUNNING not in await states(w, vm.vm_id)
    assert await w.left() == {}


async def test_a_guest_that_does_not_listen_is_ended_by_force(w: World) -> None:
    vm = await booted(w)
    w.driver.vmms[vm.vm_id].obeys_shutdown = False
    short = Shutdown(timeout_seconds=0.1, force=False, reason="asked")
    stopped = await stop.shutdown_vm(w.context, vm, short)
    assert stopped.exit is not None
    assert stopped.exit.kind is ExitKind.KILLED


async def test_force_asks_nobody(w: World) -> None:
    vm = await booted(w)
    now = Shutdown(timeout_seconds=5, force=True, reason="asked")
    await stop.shutdown_vm(w.context, vm, now)
    assert Step.GUEST_SHUTDOWN not in w.faults.seen


async def test_metering_is_told_of_a_pause_and_of_its_end(w: World) -> None:
    vm = await stop.pause_vm(w.context, await booted(w))
    assert w.sampler.attached[vm.vm_id].paused
    vm = await stop.resume_vm(w.context, vm)
    assert not w.sampler.attached[vm.vm_id].paused


async def test_a_paused_guest_is_woken_to_be_asked(w: World) -> None:
    vm = await stop.pause_vm(w.context, await booted(w))
    stopped = await stop.shutdown_vm(w.context, vm, ASK)
    assert stopped.exit is not None
    assert stopped.exit.kind is ExitKind.WORKLOAD


async def test_a_shutdown_has_a_default_time_that_is_not_zero(w: World) -> None:
    request = stop.shutdown_request(w.context, timeout_seconds=0, force=False, reason="")
    assert request.timeout_seconds == 30
    assert request.reason
    for seconds in (0.05, 601):
        with pytest.raises(InvalidRequest):
            stop.shutdown_request(w.context, timeout_seconds=seconds, force=False, reason="")
    with pytest.raises(InvalidRequest):
        stop.shutdown_request(w.context, timeout_seconds=1, force=False, reason="x" * 256)


async def test_a_workload_that_ends_well_stops_the_vm(w: World) -> None:
    vm = await booted(w)
    done = ExitReport(kind=ExitKind.WORKLOAD, sentence="It ended with 0.", workload_status=0)
    w.driver.vmms[vm.vm_id].end(done)
    stopped = await until(w, vm.vm_id, S.STOPPED)
    assert stopped.reason == "It ended with 0."
    assert await w.left() == {}


async def test_a_crash_fails_the_vm_and_its_memory_limit_is_named(w: World) -> None:
    vm = await booted(w)
    w.groups.kills[vm.vm_id] = 1
    w.driver.vmms[vm.vm_id].end(CRASH)
    failed = await until(w, vm.vm_id, S.FAILED)
    assert "memory" in failed.reason
    assert failed.exit is not None
    assert failed.exit.kind is ExitKind.OUT_OF_MEMORY
    assert await w.left() == {}


async def test_a_vmm_that_dies_before_the_boot_fails_the_vm(w: World) -> None:
    vm = await created(w)
    w.driver.vmms[vm.vm_id].end(CRASH)
    assert (await until(w, vm.vm_id, S.FAILED)).reason == CRASH.sentence


async def test_one_transition_at_a_time(w: World) -> None:
    w.driver.ready_at_once = False
    vm = await created(w)
    booting = await boot.boot_vm(w.context, vm, timeout_seconds=60, detach=True)
    with pytest.raises(FailedPrecondition):
        await stop.pause_vm(w.context, booting)
    with pytest.raises(FailedPrecondition):
        await stop.delete_vm(w.context, booting, force=False)
    w.context.operations.begin("vm_other", "boot")
    with pytest.raises(Aborted, match="boot"):
        w.context.operations.begin("vm_other", "delete")
    deleted = await stop.delete_vm(w.context, booting, force=True)
    assert deleted.state is S.DELETED
    assert await w.left() == {}


async def test_a_call_that_is_given_up_does_not_cut_the_transition_off(w: World) -> None:
    vm = await created(w)
    w.driver.ready_at_once = False
    async with asyncio.TaskGroup() as group:
        call = group.create_task(boot.boot_vm(w.context, vm, timeout_seconds=60, detach=False))
        await until_started(w, vm.vm_id)
        call.cancel()
    w.driver.vmms[vm.vm_id].ready.set()
    assert (await until(w, vm.vm_id, S.RUNNING)).ready


async def until_started(w: World, vm_id: str) -> None:
    async with asyncio.timeout(5):
        while True:
            if (await w.context.read(vm_id)).state is S.BOOTING:
                return
            await asyncio.sleep(0.005)


async def test_the_console_outlives_the_vm_until_it_is_deleted(w: World) -> None:
    vm = await booted(w)
    console = w.context.handles[vm.vm_id].console_path
    console.write_text("one\ntwo\nthree\n")

    async def read(start: queries.ConsoleStart, *, follow: bool = False) -> list[tuple[int, bytes]]:
        now = await w.context.read(vm.vm_id)
        return [
            piece async for piece in queries.stream_console(w.context, now, start, follow=follow)
        ]

    everything = [(0, b"one\ntwo\nthree\n")]
    assert await read(queries.ConsoleStart()) == everything
    assert await read(queries.ConsoleStart(offset=4)) == [(4, b"two\nthree\n")]
    assert await read(queries.ConsoleStart(offset=1000)) == []
    assert await read(queries.ConsoleStart(tail_lines=2)) == [(4, b"two\nthree\n")]
    assert await read(queries.ConsoleStart(tail_lines=100)) == everything
    assert await read(queries.ConsoleStart(tail_lines=0)) == []
    for start in (queries.ConsoleStart(offset=-1), queries.ConsoleStart(tail_lines=10_001)):
        with pytest.raises(InvalidRequest):
            await read(start)
    await stop.shutdown_vm(w.context, vm, ASK)
    assert await read(queries.ConsoleStart(), follow=True) == everything
    await stop.delete_vm(w.context, await w.context.read(vm.vm_id), force=False)
    with pytest.raises(FailedPrecondition, match="no console"):
        await read(queries.ConsoleStart())


async def test_a_console_that_is_flooded_is_read_to_where_it_was(w: World) -> None:
    vm = await booted(w)
    console = w.context.handles[vm.vm_id].console_path
    console.write_bytes(b"a" * 100)
    seen = 0
    async for _, data in queries.stream_console(
        w.context, vm, queries.ConsoleStart(), follow=False
    ):
        seen += len(data)
        with console.open("ab") as file:
            file.write(b"b" * 100)
    assert seen == 100


async def test_a_console_that_is_cut_is_followed_on(w: World) -> None:
    vm = await booted(w)
    console = w.context.handles[vm.vm_id].console_path
    console.write_bytes(b"a" * 100)
    pieces = queries.stream_console(w.context, vm, queries.ConsoleStart(), follow=True)
    assert await anext(pieces) == (0, b"a" * 100)
    console.write_bytes(b"a" * 50)
    following = asyncio.ensure_future(anext(pieces))  # noqa: TID251 - a caller's own task
    await asyncio.sleep(0.3)
    with console.open("ab") as file:
        file.write(b"new")
    assert await following == (100, b"new")
    await stop.shutdown_vm(w.context, vm, ASK)
    rest = b"".join([data async for _, data in pieces])
    assert b"a" not in rest


async def test_a_lease_that_cannot_be_given_back_does_not_hold_the_vm(w: World) -> None:
    vm = await booted(w)
    w.lessor.down = Unavailable("assetmanagerd does not answer.")
    deleted = await stop.delete_vm(w.context, vm, force=True)
    assert deleted.state is S.DELETED
    assert await w.left() == {"leases": w.lessor.held}


async def test_a_delete_that_cannot_finish_says_so_and_can_be_repeated(w: World) -> None:
    vm = await stop.shutdown_vm(w.context, await created(w), ASK)
    w.faults.step, w.faults.error = Step.CGROUP_REMOVE, OSError(16, "busy")
    with pytest.raises(FailedPrecondition, match="could be removed"):
        await stop.delete_vm(w.context, vm, force=False)
    assert (await w.context.read(vm.vm_id)).state is S.DELETING
    w.faults.step = None
    again = await w.context.read(vm.vm_id)
    assert (await stop.delete_vm(w.context, again, force=False)).state is S.DELETED


CREATE_AND_BOOT = (
    Step.ASSET_LEASE,
    Step.NETWORK_SLOT,
    Step.CGROUP_CREATE,
    Step.JAIL_DIRECTORY,
    Step.ASSET_PREPARE,
    Step.JAIL_PREPARE,
    Step.VMM_CONFIGURE,
    Step.VMM_SPAWN,
    Step.VMM_CONNECT,
    Step.GUEST_START,
    Step.GUEST_READY,
    Step.METERING_ATTACH,
)
REMOVE = (
    Step.VMM_KILL,
    Step.METERING_DETACH,
    Step.VMM_DESTROY,
    Step.JAIL_REMOVE,
    Step.CGROUP_REMOVE,
    Step.NETWORK_REMOVE,
    Step.ASSET_RELEASE,
)
ERRORS = (DriverError(Step.VMM_SPAWN, "made to fail"), OSError(28, "No space left"), KeyError("x"))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("step", CREATE_AND_BOOT, ids=str)
async def test_a_fault_at_any_step_leaves_a_reason_and_nothing_else(
    w: World, step: Step, error: Exception
) -> None:
    w.faults.step, w.faults.error = step, error
    with pytest.raises(IronError):
        await booted(w)
    assert w.faults.seen.count(step) == 1
    assert await w.left() == {}
    w.faults.step = None
    assert (await booted(w)).state is S.RUNNING


@pytest.mark.parametrize("step", REMOVE, ids=str)
async def test_a_fault_while_removing_is_made_good_later(w: World, step: Step) -> None:
    vm = await booted(w)
    w.faults.step, w.faults.error = step, OSError(16, "busy")
    stopped = await stop.shutdown_vm(w.context, vm, ASK)
    assert stopped.state is S.STOPPED
    assert w.faults.seen.count(step) >= 1
    w.faults.step = None
    assert (await stop.delete_vm(w.context, stopped, force=False)).state is S.DELETED
    assert await w.left() == {}


def test_no_step_is_skipped_by_these_tests() -> None:
    switches = {Step.GUEST_PAUSE, Step.GUEST_RESUME, Step.GUEST_SHUTDOWN, Step.READINESS_PORT}
    assert set(Step) == {*CREATE_AND_BOOT, *REMOVE, *switches}


@pytest.mark.parametrize("step", [Step.GUEST_PAUSE, Step.GUEST_RESUME])
async def test_a_pause_that_fails_changes_no_state(w: World, step: Step) -> None:
    vm = await booted(w)
    if step is Step.GUEST_RESUME:
        vm = await stop.pause_vm(w.context, vm)
    w.faults.step = step
    with pytest.raises(FailedPrecondition, match="made to fail"):
        await (stop.resume_vm if step is Step.GUEST_RESUME else stop.pause_vm)(w.context, vm)
    assert (await w.context.read(vm.vm_id)).state is vm.state


async def test_a_guest_that_cannot_be_asked_is_ended_by_force(w: World) -> None:
    vm = await booted(w)
    w.faults.step = Step.GUEST_SHUTDOWN
    stopped = await stop.shutdown_vm(w.context, vm, ASK)
    assert stopped.exit is not None
    assert stopped.exit.kind is ExitKind.KILLED
