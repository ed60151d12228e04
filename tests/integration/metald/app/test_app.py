"""Use cases on the real machine with the fake driver: many at once, faults, restarts."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from ironworks.metald.app import boot, create, stop
from ironworks.metald.app.recover import recover_all
from ironworks.metald.network.naming import TAP
from ironworks.metald.purge import purge
from ironworks.metald.reconcilers import RestartReconciler, VmReconciler
from ironworks.metald.types import Readiness, RestartMode, RestartPolicy, Vm, VmState, Workload
from ironworks.model.errors import DeadlineExceeded, FailedPrecondition
from ironworks.runtime.process import run
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


async def drifted(w: World, vm: Vm) -> Vm:
    """The VM after the drift was noted, and after it was looked at once more."""
    reconciler = VmReconciler(w.context)
    await reconciler.activate()
    noted = await w.context.read(vm.vm_id)
    assert noted.state is VmState.RUNNING
    assert any("gone" in sentence for sentence in noted.drift)
    await reconciler.activate()
    return await w.context.read(vm.vm_id)


async def test_a_network_that_is_removed_behind_our_back_is_made_again(w: World) -> None:
    vm = await booted(w)
    assert vm.slot is not None
    await w.context.network.remove(vm.slot)
    mended = await drifted(w, vm)
    assert (mended.state, mended.drift) == (VmState.RUNNING, ())
    assert not await w.context.network.drift(vm.slot)
    await stop.delete_vm(w.context, mended, force=True)
    assert await w.left() == {}


async def test_a_tap_that_is_removed_behind_our_back_ends_the_vm(w: World) -> None:
    vm = await booted(w)
    assert vm.slot is not None
    netns = w.context.network.names(vm.slot).netns
    await run(["ip", "-n", netns, "link", "delete", TAP], timeout_seconds=10)
    failed = await drifted(w, vm)
    assert failed.state is VmState.FAILED
    assert "tap" in failed.reason
    assert await w.left() == {}


async def test_a_cgroup_that_is_removed_behind_our_back_is_made_again(w: World) -> None:
    vm = await booted(w)
    assert vm.evidence is not None
    group = w.context.groups.group(vm.vm_id)
    for directory in group.directories:
        for pid in (directory / "cgroup.procs").read_text().split():
            (directory.parents[2] / "cgroup.procs").write_text(pid)
        directory.rmdir()
    reconciler = VmReconciler(w.context)
    await reconciler.activate()
    await reconciler.activate()
    mended = await w.context.read(vm.vm_id)
    assert (mended.state, mended.drift) == (VmState.RUNNING, ())
    for path in group.join_paths:
        assert str(vm.evidence.pid) in path.read_text().split()
    await stop.delete_vm(w.context, mended, force=True)
    assert await w.left() == {}


async def test_after_a_reboot_of_the_host_names_addresses_and_rules_come_from_the_store(
    tmp_path: Path,
) -> None:
    policy = RestartPolicy(
        mode=RestartMode.ALWAYS, min_backoff_seconds=0.1, max_backoff_seconds=0.1
    )
    async with world(tmp_path, real=True) as before:
        again, gone = await booted(before, restart=policy), await booted(before)
    # What a reboot takes: every process, namespace and cgroup. The store and the jails are left.
    for vm in (again, gone):
        assert vm.evidence is not None
        assert vm.slot is not None
        end(vm.evidence.pid)
        await before.context.network.remove(vm.slot)
        await before.context.groups.remove(vm.vm_id)
    async with world(tmp_path, real=True) as after:
        after.lessor.held = before.lessor.held
        await recover_all(after.context)
        assert (await after.context.read(gone.vm_id)).state is VmState.FAILED
        async with asyncio.timeout(20):
            while not (now := await after.context.read(again.vm_id)).ready:
                await RestartReconciler(after.context).activate()
                await after.context.clock.sleep(0.05)
        assert (now.slot, now.restarts) == (again.slot, 1)
        assert not await after.context.network.drift(again.slot or 0)
        # Its check has passed: the address that the store has is the one that answers.
        await stop.delete_vm(after.context, now, force=True)
        assert await after.left() == {}
    await purge(after.context.settings)
