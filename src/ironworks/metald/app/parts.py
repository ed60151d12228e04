"""The cgroup of a VM and what its driver is told: the same for its first VMM and each later one."""

from dataclasses import replace
from functools import cache
from pathlib import Path

from ironworks.metald import decide
from ironworks.metald.app.context import Context
from ironworks.metald.cgroup.groups import Group, GroupLimits, disk_of
from ironworks.metald.drivers.driver import GuestNetwork, VmmSpec
from ironworks.metald.jail_directories import ROOTFS_NAME
from ironworks.metald.network import naming
from ironworks.metald.types import Lease, NetworkSpec, Vm
from ironworks.model.errors import Internal, InvalidRequest

KERNEL_NAME, INITRD_NAME = "kernel", "initrd"


def slot_of(vm: Vm) -> int:
    """The VM's network slot.

    Raises:
        Internal: it has none.
    """
    if vm.slot is None:
        raise Internal(f"VM {vm.vm_id} has no network slot.")
    return vm.slot


def group_limits(context: Context, vm: Vm) -> GroupLimits:
    """What the processes of a VM's next VMM may use."""
    settings = context.settings
    return GroupLimits(
        memory_bytes=vm.spec.memory_bytes + context.share.memory_bytes,
        cpus=vm.spec.vcpus + settings.vmm_extra_cpus,
        cpu_weight=vm.spec.cpu_weight,
        pids=settings.vmm_pids,
        disk_bytes_per_second=vm.spec.rate_limits.disk_bytes,
        disk_operations_per_second=vm.spec.rate_limits.disk_operations,
        disk_device=_disk(settings.data_dir),
    )


@cache
def _disk(data_dir: Path) -> str:
    return disk_of(data_dir)


async def prepare_assets(context: Context, vm: Vm, lease: Lease) -> None:
    """Place the leased assets in the VM's jail."""
    names = (ROOTFS_NAME, KERNEL_NAME, INITRD_NAME)
    ids = (lease.rootfs_asset_id, lease.kernel_asset_id, lease.initrd_asset_id)
    placed = {asset_id: name for asset_id, name in zip(ids, names, strict=True) if asset_id}
    if len(placed) != len(lease.asset_ids):
        raise InvalidRequest("Kernel, initrd and rootfs must be three different assets.")
    jail = context.jails.path(vm.vm_id)
    await context.lessor.prepare(vm.tenant_id, lease.lease_id, jail, placed)


def _guest_network(network: NetworkSpec) -> GuestNetwork:
    """What the guest sees: the same in every VM but for its name servers."""
    return GuestNetwork(
        address=str(naming.GUEST_ADDRESS),
        prefix_length=naming.GUEST_PREFIX_LENGTH,
        gateway=str(naming.GATEWAY_ADDRESS),
        nameservers=network.nameservers,
        address_v6=str(naming.GUEST_ADDRESS_V6),
        prefix_length_v6=naming.GUEST_PREFIX_LENGTH_V6,
        gateway_v6=str(naming.GATEWAY_ADDRESS_V6),
    )


def vmm_spec(context: Context, vm: Vm, lease: Lease, group: Group) -> VmmSpec:
    """All that the driver needs to make the VM's next VMM."""
    slot, settings, spec = slot_of(vm), context.settings, vm.spec
    jail, uid = context.jails.path(vm.vm_id), context.uid_of(slot)
    return VmmSpec(
        vm_id=vm.vm_id,
        vcpus=spec.vcpus,
        memory_bytes=spec.memory_bytes,
        kernel_path=jail / KERNEL_NAME,
        initrd_path=jail / INITRD_NAME if lease.initrd_asset_id else None,
        rootfs_path=jail / ROOTFS_NAME,
        rootfs_format=lease.rootfs_format,
        guest=replace(decide.guest_config(spec, lease.image), network=_guest_network(spec.network)),
        jail_dir=jail,
        uid=uid,
        gid=uid,
        netns=context.network.names(slot).netns,
        tap=naming.TAP,
        mac=naming.GUEST_MAC,
        cgroup_join_paths=group.join_paths,
        pids_max=settings.vmm_pids,
        console_max_bytes=settings.console_max_bytes,
        rate_limits=spec.rate_limits,
        scratch_bytes=spec.disk_bytes,
    )
