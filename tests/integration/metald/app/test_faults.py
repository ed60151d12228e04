"""A fault, and metald's own end, at every named step of a VM's life; nothing is left behind.

On the real machine with the fake driver: a real process in real namespaces and cgroups.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from ironworks.metald import store
from ironworks.metald.app import boot, create, restart, stop
from ironworks.metald.app.recover import recover_all
from ironworks.metald.app.stop import Shutdown
from ironworks.metald.purge import purge
from ironworks.metald.reconcilers import LeftoverReconciler, VmReconciler
from ironworks.metald.steps import Step
from ironworks.metald.types import Readiness, Vm, VmState
from ironworks.model.errors import IronError
from ironworks.testkit.metald import TENANT, World, vm_spec, world

pytestmark = pytest.mark.root
ASK = Shutdown(timeout_seconds=5, force=False, reason="asked")
SETTLED = frozenset(
    {
        VmState.CREATED,
        VmState.RUNNING,
        VmState.PAUSED,
        VmState.STOPPED,
        VmState.FAILED,
        VmState.DELETED,
    }
)


async def life(w: World, done: list[str]) -> None:
    """Everything that a VM can be asked for; what fails does not keep the rest from being asked."""
    vm = await create.create_vm(
        w.context,
        tenant_id=TENANT,
        vm_id="",
        spec=vm_spec(readiness=Readiness(port=8080)),
        idempotency_key="",
    )
    calls: tuple[tuple[str, Callable[[Vm], Awaitable[Vm]]], ...] = (
        ("boot", lambda now: boot.boot_vm(w.context, now, timeout_seconds=10, detach=False)),
        ("pause", lambda now: stop.pause_vm(w.context, now)),
        ("resume", lambda now: stop.resume_vm(w.context, now)),
        ("reboot", lambda now: restart.reboot_vm(w.context, now, ASK)),
        ("shutdown", lambda now: stop.shutdown_vm(w.context, now, ASK)),
        ("delete", lambda now: stop.delete_vm(w.context, now, force=True)),
    )
    for name, call in calls:
        with suppress(IronError):
            await call(await w.context.read(vm.vm_id))
            done.append(name)


async def all_vms(w: World) -> list[Vm]:
    return list(await w.context.db.read(lambda c: store.vms_in(c, VmState)))


async def mended(w: World) -> None:
    """The reconcilers bring everything in line; what is left is deleted; then nothing is left."""
    await VmReconciler(w.context).activate()
    await LeftoverReconciler(w.context).activate()
    for vm in await all_vms(w):
        await w.context.operations.settled(vm.vm_id)
        now = await w.context.read(vm.vm_id)
        assert now.state in SETTLED, now
        assert now.reason
        await stop.delete_vm(w.context, now, force=True)
    await LeftoverReconciler(w.context).activate()
    assert await w.left() == {}


@pytest.mark.parametrize("step", Step, ids=str)
async def test_a_fault_at_any_step_leaves_a_reason_and_nothing_else(
    tmp_path: Path, step: Step
) -> None:
    async with world(tmp_path, real=True) as w:
        w.faults.step = step
        with suppress(IronError):
            await life(w, [])
        assert step in w.faults.seen
        w.faults.step = None
        await mended(w)
    await purge(w.context.settings)


@pytest.mark.parametrize("step", Step, ids=str)
async def test_metald_may_end_at_any_step(tmp_path: Path, step: Step) -> None:
    async with world(tmp_path, real=True) as before:
        before.faults.step, before.faults.stands_still = step, True
        before.context.tasks.start(life(before, []), name="life")
        async with asyncio.timeout(30):
            await before.faults.reached.wait()
    async with world(tmp_path, real=True) as after:
        after.lessor.held = before.lessor.held
        await recover_all(after.context)
        await mended(after)
    await purge(after.context.settings)


async def test_the_life_that_these_tests_lead_takes_every_step(tmp_path: Path) -> None:
    async with world(tmp_path, real=True) as w:
        done: list[str] = []
        await life(w, done)
        assert done == ["boot", "pause", "resume", "reboot", "shutdown", "delete"]
        assert set(w.faults.seen) == set(Step)
        assert await w.left() == {}
    await purge(w.context.settings)
