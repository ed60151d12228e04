"""Use cases on the real machine with the fake driver: many at once, faults, restarts."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from ironworks.metald.app import boot, create, stop
from ironworks.metald.app.recover import recover_all
from ironworks.metald.purge import purge
from ironworks.metald.reconcilers import LeftoverReconciler, VmReconciler
from ironworks.metald.steps import Step
from ironworks.metald.types import Readiness, Vm, VmState, Workload
from ironworks.model.errors import DeadlineExceeded, FailedPrecondition, IronError
from ironworks.testkit.metald import TENANT, World, vm_spec, world

pytestmark = pytest.mark.root
BURST = 12


@pytest.fixture
async def w(tmp_path: Path) -> AsyncGenerator[World]:
    async with world(tmp_path, real=True) as made:
        yield made
    await purge(made.context.settings)


async def booted(w: World, **changes: object) -> Vm:
    spec = vm_spec(**{"readiness": Readiness(port=8080), **changes})
    vm = await create.create_vm(
        w.context, tenant_id=TENANT, vm_id="", spec=spec, idempotency_key=""
    )
    return await boot.boot_vm(w.context, vm, timeout_seconds=10, detach=False)


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def with_env(*pairs: str) -> Workload:
    return Workload(argv=("/any",), env=pairs)


async def test_a_burst_comes_and_goes_without_a_trace(w: World) -> None:
    vms = await asyncio.gather(*(booted(w) for _ in range(BURST)))
    assert {vm.state for vm in vms} == {VmState.RUNNING}
    assert len({vm.slot for vm in vms}) == BURST
    pids = [vm.evidence.pid for vm in vms if vm.evidence is not None]
    await asyncio.gather(*(stop.delete_vm(w.context, vm, force=True) for vm in vms))
    assert await w.left() == {}
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


FAILS_THE_BOOT = (
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
    Step.READINESS_PORT,
)
MENDED_LATER = (
    Step.GUEST_SHUTDOWN,
    Step.METERING_DETACH,
    Step.VMM_DESTROY,
    Step.JAIL_REMOVE,
    Step.CGROUP_REMOVE,
    Step.NETWORK_REMOVE,
    Step.ASSET_RELEASE,
)


@pytest.mark.parametrize("step", FAILS_THE_BOOT, ids=str)
async def test_a_fault_at_any_step_leaves_the_machine_as_it_was(w: World, step: Step) -> None:
    w.faults.step = step
    with pytest.raises(IronError):
        await booted(w)
    assert step in w.faults.seen
    assert await w.left() == {}


@pytest.mark.parametrize("step", MENDED_LATER, ids=str)
async def test_a_fault_at_the_end_is_mended_by_the_reconciler(w: World, step: Step) -> None:
    vm = await booted(w)
    w.faults.step = step
    request = stop.shutdown_request(w.context, timeout_seconds=5, force=False, reason="")
    assert (await stop.shutdown_vm(w.context, vm, request)).state is VmState.STOPPED
    assert step in w.faults.seen
    w.faults.step = None
    await LeftoverReconciler(w.context).activate()
    assert await w.left() == {}


async def late(w: World, **changes: object) -> None:
    """Boot what is not ready within its time."""
    spec = vm_spec(**changes)
    vm = await create.create_vm(
        w.context, tenant_id=TENANT, vm_id="", spec=spec, idempotency_key=""
    )
    await boot.boot_vm(w.context, vm, timeout_seconds=1, detach=False)


async def test_failures_of_a_guest_have_a_sentence(w: World) -> None:
    dies = with_env(
        "IW_FAKE_NEVER_READY=1", "IW_FAKE_EXIT_AFTER_SECONDS=0.05", "IW_FAKE_EXIT_STATUS=3"
    )
    with pytest.raises(FailedPrecondition, match="status 3"):
        await booted(w, workload=dies)
    with pytest.raises(FailedPrecondition, match=r"vmm\.spawn"):
        await booted(w, workload=with_env("IW_FAKE_FAIL_AT=vmm.spawn"))
    with pytest.raises(DeadlineExceeded, match="within 1 seconds"):
        await late(w, workload=with_env("IW_FAKE_NEVER_READY=1"))
    with pytest.raises(DeadlineExceeded, match="within 1 seconds"):
        await late(w, readiness=Readiness(port=81))
    assert await w.left() == {}


async def test_a_guest_that_does_not_obey_is_ended(w: World) -> None:
    vm = await booted(w, workload=with_env("IW_FAKE_IGNORE_SHUTDOWN=1"))
    request = stop.shutdown_request(w.context, timeout_seconds=0.2, force=False, reason="")
    stopped = await stop.shutdown_vm(w.context, vm, request)
    assert stopped.state is VmState.STOPPED
    assert await w.left() == {}


async def test_a_restart_finds_what_lives_and_what_died(tmp_path: Path) -> None:
    async with world(tmp_path, real=True) as before:
        lives, died = await booted(before), await booted(before)
    assert died.evidence is not None
    end(died.evidence.pid)
    async with world(tmp_path, real=True) as after:
        after.lessor.held = before.lessor.held
        await recover_all(after.context)
        assert (await after.context.read(lives.vm_id)).state is VmState.RUNNING
        gone = await after.context.read(died.vm_id)
        assert gone.state is VmState.FAILED
        assert "not known" in gone.reason
        await stop.delete_vm(after.context, await after.context.read(lives.vm_id), force=True)
        assert await after.left() == {}
    await purge(after.context.settings)


async def test_what_is_removed_behind_our_back_is_drift_and_does_not_hinder_the_end(
    w: World,
) -> None:
    vm = await booted(w)
    assert vm.slot is not None
    await w.context.network.remove(vm.slot)
    await VmReconciler(w.context).activate()
    drifted = await w.context.read(vm.vm_id)
    assert any("gone" in sentence for sentence in drifted.drift)
    deleted = await stop.delete_vm(w.context, drifted, force=True)
    assert deleted.state is VmState.DELETED
    assert await w.left() == {}
