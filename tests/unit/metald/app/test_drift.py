from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from ironworks.metald import store
from ironworks.metald.app import boot, create, restart, stop
from ironworks.metald.app.stop import Shutdown
from ironworks.metald.reconcilers import LeaseReconciler, VmReconciler
from ironworks.metald.types import RestartMode, RestartPolicy, Vm, VmState
from ironworks.model.errors import NotFound, Unavailable
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
