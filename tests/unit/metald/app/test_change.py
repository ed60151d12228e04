from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import pytest

from ironworks.metald.app import boot, change, create, host, queries, restart, stop
from ironworks.metald.app.change import Change
from ironworks.metald.app.context import Once
from ironworks.metald.app.stop import Shutdown
from ironworks.metald.types import Resources, RestartMode, RestartPolicy, Vm, VmState
from ironworks.model.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidRequest,
    ResourceExhausted,
)
from ironworks.model.units import GIB, MIB
from ironworks.testkit.metald import TENANT, World, vm_spec, world

ASK = Shutdown(timeout_seconds=5, force=False, reason="asked")


@pytest.fixture
async def w(tmp_path: Path) -> AsyncGenerator[World]:
    async with world(tmp_path) as made:
        yield made


async def booted(w: World) -> Vm:
    vm = await create.create_vm(
        w.context, tenant_id=TENANT, vm_id="", spec=vm_spec(), idempotency_key=""
    )
    return await boot.boot_vm(w.context, vm, timeout_seconds=0, detach=False)


async def update(w: World, vm: Vm, wanted: Change, key: str = "", request: bytes = b"") -> Vm:
    once = Once(scope=f"{TENANT}/UpdateVm", key=key, request=request)
    return await change.update_vm(w.context, vm, wanted, once=once)


async def test_a_weight_and_a_policy_hold_at_once(w: World) -> None:
    vm = await booted(w)
    policy = RestartPolicy(mode=RestartMode.ALWAYS)
    changed = await update(w, vm, Change(cpu_weight=700, restart=policy))
    assert (changed.generation, changed.spec.cpu_weight) == (vm.generation + 1, 700)
    assert changed.spec.restart == policy
    assert w.groups.made[vm.vm_id].cpu_weight == 700
    assert w.groups.made[vm.vm_id].memory_bytes == vm.committed.memory_bytes


async def test_a_size_is_the_next_vmms_and_counts_at_once(w: World) -> None:
    vm = await booted(w)
    larger = await update(w, vm, Change(vcpus=3, memory_bytes=GIB))
    assert (larger.spec.vcpus, larger.committed.vcpus) == (3, 3)
    assert larger.committed.memory_bytes == GIB + 16 * MIB
    # What runs is what it was, in its cgroup and in what it is billed for.
    assert w.groups.made[vm.vm_id].memory_bytes == vm.committed.memory_bytes
    assert w.sampler.attached[vm.vm_id].vcpus == 1
    again = await restart.reboot_vm(w.context, larger, ASK)
    assert again.vmm is not None
    assert (again.vmm.vcpus, again.vmm.memory_bytes) == (3, GIB)
    assert w.driver.vmms[vm.vm_id].spec.vcpus == 3
    assert w.sampler.attached[vm.vm_id].vcpus == 3
    smaller = await update(w, again, Change(vcpus=1))
    assert smaller.committed.vcpus == 3
    assert (await restart.reboot_vm(w.context, smaller, ASK)).committed.vcpus == 1
    taken, _ = await queries.taken(w.context)
    assert (taken.vcpus, taken.memory_bytes) == (1, GIB + 16 * MIB)


async def test_what_does_not_fit_is_refused_and_changes_nothing(w: World) -> None:
    vm = await booted(w)
    w.context.limits = replace(
        w.context.limits, capacity=replace(w.context.limits.capacity, vcpus=2)
    )
    with pytest.raises(InvalidRequest, match="5 vCPUs"):
        await update(w, vm, Change(vcpus=5))
    with pytest.raises(ResourceExhausted, match="vCPUs"):
        await update(w, vm, Change(vcpus=3))
    once = Once(scope="", key="", request=b"")
    await host.set_quota(w.context, TENANT, Resources(vcpus=1), once=once)
    with pytest.raises(ResourceExhausted, match="quota"):
        await update(w, vm, Change(vcpus=2))
    with pytest.raises(InvalidRequest, match="multiple"):
        await update(w, vm, Change(memory_bytes=64 * MIB + 1))
    with pytest.raises(InvalidRequest, match="cpu_weight"):
        await update(w, vm, Change(cpu_weight=10_001))
    assert await w.context.read(vm.vm_id) == vm


async def test_a_cordoned_host_lets_its_vms_be_changed_but_not_grow(w: World) -> None:
    vm = await booted(w)
    await host.cordon(w.context, "", once=Once(scope="", key="", request=b""))
    assert (await update(w, vm, Change(cpu_weight=5))).spec.cpu_weight == 5
    with pytest.raises(FailedPrecondition, match="cordoned"):
        await update(w, vm, Change(vcpus=2))


async def test_a_change_that_was_decided_on_an_old_generation_is_refused(w: World) -> None:
    vm = await booted(w)
    await update(w, vm, Change(cpu_weight=5, if_generation=vm.generation))
    with pytest.raises(Aborted, match="generation"):
        await update(w, vm, Change(cpu_weight=6, if_generation=vm.generation))


async def test_a_change_is_made_once_for_its_key(w: World) -> None:
    vm = await booted(w)
    first = await update(w, vm, Change(cpu_weight=5), key="k")
    await update(w, vm, Change(cpu_weight=6))
    again = await update(w, vm, Change(cpu_weight=5), key="k")
    assert (again.spec.cpu_weight, again.generation) == (6, first.generation + 1)
    with pytest.raises(AlreadyExists):
        await update(w, vm, Change(cpu_weight=9), key="k", request=b"other")


async def test_what_has_ended_cannot_be_changed(w: World) -> None:
    stopped = await stop.shutdown_vm(w.context, await booted(w), ASK)
    assert stopped.state is VmState.STOPPED
    with pytest.raises(FailedPrecondition, match="stopped"):
        await update(w, stopped, Change(cpu_weight=5))
