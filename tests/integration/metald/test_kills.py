"""kill -9 of metald at random moments under load: no VM is lost, and nothing is left behind."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest

from ironworks.gen.ironworks.common.v1.common_pb import PageRequest
from ironworks.gen.ironworks.metald.v1 import vm_pb
from ironworks.model.errors import (
    Aborted,
    FailedPrecondition,
    NotFound,
    Unavailable,
)
from ironworks.model.ids import new_id
from ironworks.runtime.clock import SystemClock, SystemEntropy
from ironworks.runtime.tasks import Tasks
from ironworks.testkit.metald.processes import (
    Platform,
    leases,
    page,
    spec,
    started_platform,
)

pytestmark = pytest.mark.root
STATE = vm_pb.VmState
CLOCK, ENTROPY = SystemClock(), SystemEntropy()
WORKERS = 4
KEPT = 3
PATIENCE_SECONDS = 60
_T = TypeVar("_T")


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    with started_platform(tmp_path) as started:
        yield started


@dataclass(slots=True, kw_only=True)
class Load:
    """What callers do to a metald that is killed again and again."""

    platform: Platform
    done: dict[str, int] = field(default_factory=dict[str, int])
    over: bool = False

    async def insist(self, name: str, call: Callable[[], Awaitable[_T]]) -> _T:
        """Repeat a call until metald is there and has time for it, as any caller does."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                try:
                    answer = await call()
                except (Unavailable, Aborted, OSError):
                    await CLOCK.sleep(0.05)
                    continue
                self.done[name] = self.done.get(name, 0) + 1
                return answer

    async def boot(self, vm_id: str) -> vm_pb.Vm:
        """A VM of this id that was acknowledged as running."""
        vms = self.platform.vms()
        created = vm_pb.CreateVmRequest(
            vm_id=vm_id, spec=spec(self.platform), idempotency_key=vm_id
        )
        booted = vm_pb.BootVmRequest(vm_id=vm_id, idempotency_key=f"boot-{vm_id}")
        await self.insist("create", lambda: vms.create_vm(created))
        return await self.insist("boot", lambda: vms.boot_vm(booted))

    async def work(self) -> None:
        """VMs come, are asked for this and that, and go."""
        vms = self.platform.vms()
        while not self.over:
            vm_id = new_id("vm", CLOCK, ENTROPY)
            # A creation that was cut off ends in FAILED, and says so: the next may go better.
            # On a machine that stands still nothing comes to its end between two kills: given up.
            with suppress(FailedPrecondition, NotFound, TimeoutError):
                await self.boot(vm_id)
                if ENTROPY.uniform(0, 1) > 0.5:
                    reboot = vm_pb.RebootVmRequest(vm_id=vm_id, idempotency_key=f"reboot-{vm_id}")
                    await self.insist("reboot", lambda one=reboot: vms.reboot_vm(one))
                if ENTROPY.uniform(0, 1) > 0.5:
                    stop = vm_pb.ShutdownVmRequest(vm_id=vm_id)
                    await self.insist("stop", lambda one=stop: vms.shutdown_vm(one))
            delete = vm_pb.DeleteVmRequest(vm_id=vm_id, force=True)
            with suppress(NotFound, TimeoutError):
                await self.insist("delete", lambda one=delete: vms.delete_vm(one))


async def kept_vms(load: Load) -> list[vm_pb.Vm]:
    """VMs that nobody touches while metald is killed."""
    return [await load.boot(new_id("vm", CLOCK, ENTROPY)) for _ in range(KEPT)]


async def check_kept(platform: Platform, kept: list[vm_pb.Vm]) -> None:
    """They run, are the same VMMs as ever, and metald knows them."""
    vms = platform.vms()
    for vm in kept:
        found = await vms.get_vm(vm_pb.GetVmRequest(vm_id=vm.id))
        assert (found.state, found.ready) == (STATE.RUNNING, True), found
        assert (found.boot_epoch, found.restarts, list(found.drift)) == (1, 0, [])


async def every_vm(platform: Platform) -> list[vm_pb.Vm]:
    request = vm_pb.ListVmsRequest(page=PageRequest(page_size=1000))
    return list((await platform.vms(None).list_vms(request)).vms)


@pytest.mark.timeout(7200)
async def test_metald_may_be_killed_at_any_moment(platform: Platform, thorough: bool) -> None:
    kills = 100 if thorough else 4
    await platform.serve_rootfs()
    load = Load(platform=platform)
    kept = await kept_vms(load)
    async with Tasks() as tasks:
        workers = [tasks.start(load.work(), name=f"worker {n}") for n in range(WORKERS)]
        for _ in range(kills):
            await CLOCK.sleep(ENTROPY.uniform(0.02, 1.2))
            platform.stop("metald", signal.SIGKILL)
            for vm in kept:
                assert b"200 OK" in await page(vm)
            platform.start("metald")
            await platform.ready("metald")
            await check_kept(platform, kept)
        load.over = True
        await asyncio.gather(*workers)
    for vm in await every_vm(platform):
        # Nothing hangs in the midst of a transition: it was finished or undone.
        assert vm.state in {STATE.RUNNING, STATE.STOPPED, STATE.FAILED, STATE.CREATED}, vm
        await platform.vms().delete_vm(vm_pb.DeleteVmRequest(vm_id=vm.id, force=True))
    async with asyncio.timeout(PATIENCE_SECONDS):
        # What nobody knows of any more is found by the reconciler of leftovers.
        while await leases(platform):
            await CLOCK.sleep(0.2)
    assert platform.stop("metald") == 0
    assert platform.left() == {}
    print(f"kills: {kills}, acknowledged: {load.done}")  # noqa: T201 - for the release's report
    assert load.done["boot"] > KEPT
