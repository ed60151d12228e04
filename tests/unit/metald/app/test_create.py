import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import pytest

from ironworks.metald import store
from ironworks.metald.app import create, queries
from ironworks.metald.network.naming import first_slot
from ironworks.metald.types import (
    HostState,
    Limits,
    Resources,
    Vm,
    VmFilter,
    VmSpec,
    VmState,
    Workload,
)
from ironworks.model.errors import (
    AlreadyExists,
    FailedPrecondition,
    Internal,
    InvalidRequest,
    IronError,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from ironworks.model.ids import derived_id
from ironworks.model.pages import PageSpec
from ironworks.model.units import GIB, MIB
from ironworks.testkit.metald import (
    INITRD,
    KERNEL,
    OTHER_TENANT,
    ROOTFS,
    TENANT,
    World,
    vm_spec,
    world,
)

VM = derived_id("vm", "mine")


@pytest.fixture
async def w(tmp_path: Path) -> AsyncGenerator[World]:
    async with world(tmp_path) as made:
        yield made


async def make(
    w: World,
    spec: VmSpec | None = None,
    *,
    vm_id: str = "",
    key: str = "",
    tenant: str = TENANT,
) -> Vm:
    return await create.create_vm(
        w.context,
        tenant_id=tenant,
        vm_id=vm_id,
        spec=spec or vm_spec(),
        idempotency_key=key,
    )


async def test_a_created_vm_has_all_its_parts(w: World) -> None:
    vm = await make(w)
    assert vm.state is VmState.CREATED
    slot = first_slot(w.context.host.tag)
    assert vm.slot == slot
    assert vm.boot_epoch == 1
    assert vm.evidence is not None
    assert w.network.made == {vm.slot}
    limits = w.groups.made[vm.vm_id]
    assert limits.memory_bytes == 80 * MIB
    assert limits.cpus == 1.25
    spec = w.driver.vmms[vm.vm_id].spec
    assert spec.uid == spec.gid == w.context.uid_of(slot)
    assert spec.guest.argv == ("/bin/server",)
    assert dict(spec.guest.env)["A"] == "1"
    for path in (spec.rootfs_path, spec.kernel_path, spec.initrd_path):
        assert path is not None
        assert path.read_bytes() == b"file"
        assert path.parent == w.context.jails.path(vm.vm_id)
    lease = await w.context.db.read(lambda c: store.find_lease(c, vm.vm_id))
    assert lease is not None
    assert lease.lease_id == w.lessor.held[vm.vm_id]
    assert lease.asset_ids == (ROOTFS, KERNEL, INITRD)
    details = await queries.get_details(w.context, vm.vm_id, TENANT)
    states = [line.after for line in details.history]
    assert states == [VmState.REQUESTED, VmState.CREATING, VmState.CREATED]
    assert "vmm.spawn" in [timing.step for timing in details.timings]


async def test_a_vm_without_a_name_is_called_by_its_id(w: World) -> None:
    vm = await make(w, vm_spec(name=""), vm_id=VM, key="k")
    assert vm.spec.name == VM.replace("_", "-")
    again = await make(w, vm_spec(name=""), vm_id=VM, key="k")
    assert again == vm


async def test_the_same_key_makes_one_vm_and_another_request_is_refused(w: World) -> None:
    first, second = await asyncio.gather(make(w, key="k"), make(w, key="k"))
    assert first.vm_id == second.vm_id
    assert second.state is VmState.CREATED
    with pytest.raises(AlreadyExists):
        await make(w, vm_spec(vcpus=2), key="k")
    assert (await make(w, key="k", tenant=OTHER_TENANT)).vm_id != first.vm_id


async def test_the_same_id_with_another_spec_or_tenant_is_refused(w: World) -> None:
    vm = await make(w, vm_id=VM)
    assert (await make(w, vm_id=VM)).vm_id == vm.vm_id
    with pytest.raises(AlreadyExists):
        await make(w, vm_spec(vcpus=2), vm_id=VM)
    with pytest.raises(AlreadyExists):
        await make(w, vm_id=VM, tenant=OTHER_TENANT)
    with pytest.raises(InvalidRequest):
        await make(w, vm_id="dep_1")


async def refused(w: World, kind: type[IronError], spec: VmSpec | None = None) -> IronError:
    with pytest.raises(kind) as error:
        await make(w, spec)
    assert await w.left() == {}
    return error.value


async def test_an_unknown_asset_is_named_and_leaves_a_failed_vm(w: World) -> None:
    ghost = derived_id("ast", "ghost")
    error = await refused(w, NotFound, vm_spec(rootfs_asset_id=ghost))
    assert ghost in error.message
    (vm,) = (await queries.list_vms(w.context, VmFilter(), PageSpec(size=10))).vms.values()
    assert vm.state is VmState.FAILED
    assert ghost in vm.reason


async def test_assetmanagerd_down_is_worth_a_repeat(w: World) -> None:
    w.lessor.down = Unavailable("assetmanagerd does not answer.")
    with pytest.raises(Unavailable):
        await make(w)
    w.lessor.down = None
    assert (await w.left()).keys() <= {"leases"}
    assert (await make(w)).state is VmState.CREATED


async def test_assets_in_the_wrong_role_are_refused(w: World) -> None:
    error = await refused(w, InvalidRequest, vm_spec(rootfs_asset_id=KERNEL))
    assert "not a rootfs" in error.message
    w.lessor.assets[ROOTFS] = replace(w.lessor.assets[ROOTFS], format="erofs")
    assert "squashfs" in (await refused(w, InvalidRequest)).message
    w.lessor.assets[ROOTFS] = replace(
        w.lessor.assets[ROOTFS], format="ext4", architecture="riscv64"
    )
    assert "riscv64" in (await refused(w, InvalidRequest)).message


async def test_an_image_without_a_program_is_refused(w: World) -> None:
    asset = w.lessor.assets[ROOTFS]
    w.lessor.assets[ROOTFS] = replace(asset, image=replace(asset.image, entrypoint=()))
    error = await refused(w, InvalidRequest, vm_spec(workload=Workload()))
    assert "entrypoint" in error.message


async def test_a_slot_that_another_platform_uses_is_passed_over(w: World) -> None:
    first = first_slot(w.context.host.tag)
    w.network.foreign = {first, first + 1}
    vm = await make(w)
    assert vm.slot == first + 2
    assert w.driver.vmms[vm.vm_id].spec.uid == w.context.uid_of(first + 2)


async def test_a_slot_that_is_being_reaped_is_not_given_out(w: World) -> None:
    first = first_slot(w.context.host.tag)
    w.context.reaping_slots.add(first)
    assert (await make(w)).slot == first + 1


async def test_no_kernel_no_vm(w: World) -> None:
    w.context.host = replace(w.context.host, default_kernel_asset_id="")
    assert "kernel" in (await refused(w, FailedPrecondition)).message


async def test_a_host_without_a_working_driver_says_what_to_do(w: World) -> None:
    kind = w.context.chosen
    broken = replace(w.context.probes[kind], available=False, sentence="Install qemu-system-x86.")
    w.context.probes = {kind: broken}
    assert "Install qemu-system-x86." in (await refused(w, FailedPrecondition)).message


async def test_a_cordoned_host_takes_none(w: World) -> None:
    w.context.host = replace(w.context.host, state=HostState.CORDONED, reason="disk swap")
    assert "disk swap" in (await refused(w, FailedPrecondition)).message


async def test_more_than_the_host_has_is_refused_before_anything_is_made(w: World) -> None:
    await refused(w, InvalidRequest, vm_spec(vcpus=5))
    await refused(w, InvalidRequest, vm_spec(memory_bytes=5 * GIB))
    assert (await queries.list_vms(w.context, VmFilter(), PageSpec(size=10))).keys == []


async def test_concurrent_creates_never_exceed_capacity(tmp_path: Path) -> None:
    limits = Limits(
        capacity=Resources(vcpus=7, memory_bytes=100 * GIB, disk_bytes=100 * GIB, vms=100),
        largest=Resources(vcpus=4, memory_bytes=4 * GIB, disk_bytes=4 * GIB, vms=1),
    )
    async with world(tmp_path, limits=limits) as w:
        results = await asyncio.gather(*(make(w) for _ in range(30)), return_exceptions=True)
        made = [result for result in results if isinstance(result, Vm)]
        assert len(made) == 7
        assert sum(isinstance(result, ResourceExhausted) for result in results) == 23
        assert len({vm.slot for vm in made}) == 7


async def test_a_fault_of_ours_is_undone_too(w: World) -> None:
    w.faults.step = create.Step.JAIL_DIRECTORY
    w.faults.error = ZeroDivisionError("a fault")
    error = await refused(w, Internal)
    assert "a fault" not in str(error)


async def test_less_memory_than_the_guest_kernel_boots_with_is_refused(w: World) -> None:
    kind = w.context.chosen
    probe = w.context.probe
    capabilities = replace(probe.capabilities, min_memory_bytes=96 * MIB)
    w.context.probes = {**w.context.probes, kind: replace(probe, capabilities=capabilities)}
    spec = replace(vm_spec(), memory_bytes=64 * MIB)
    with pytest.raises(InvalidRequest, match=r"64\.0 MiB of memory\. Give it at least 96\.0 MiB"):
        await create.create_vm(w.context, tenant_id=TENANT, vm_id="", spec=spec, idempotency_key="")
    assert await w.left() == {}
