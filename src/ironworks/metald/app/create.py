"""CreateVm: admit, then lease, network, cgroup, jail, VMM; all of it or nothing."""

import platform
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from ironworks.metald import decide, store
from ironworks.metald.app.cleanup import fail
from ironworks.metald.app.context import Context
from ironworks.metald.app.watch import start_watch
from ironworks.metald.assets.lessor import Leased, LeasedAsset
from ironworks.metald.cgroup.groups import GroupLimits
from ironworks.metald.drivers.driver import DriverError, GuestConfig, VmmSpec
from ironworks.metald.jail_directories import ROOTFS_NAME
from ironworks.metald.network import naming
from ironworks.metald.network.naming import USABLE_SLOTS, first_slot
from ironworks.metald.network.slots import SlotTakenError
from ironworks.metald.steps import Step
from ironworks.metald.tables import IDEMPOTENCY
from ironworks.metald.types import Lease, Resources, Vm, VmSpec, VmState
from ironworks.model.errors import (
    AlreadyExists,
    FailedPrecondition,
    Internal,
    InvalidRequest,
    IronError,
    ResourceExhausted,
)
from ironworks.model.ids import check_id, new_id
from ironworks.model.units import format_bytes
from ironworks.storage import idempotency

SLOT_TRIES = 16
_FILE_NAMES = {"kernel": "kernel", "initrd": "initrd", "rootfs": ROOTFS_NAME}
_ROOTFS_FORMATS = frozenset({"squashfs", "ext4"})
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Admitted:
    vm: Vm
    lease: Lease
    fresh: bool


def _named(spec: VmSpec, vm_id: str) -> VmSpec:
    return spec if spec.name else replace(spec, name=vm_id.replace("_", "-"))


async def create_vm(
    context: Context, *, tenant_id: str, vm_id: str, spec: VmSpec, idempotency_key: str
) -> Vm:
    """Make a VM up to CREATED; see VmService.CreateVm for the errors."""
    decide.check_spec(spec if spec.name else _named(spec, "vm"))
    if vm_id:
        check_id(vm_id, "vm", "vm_id")
    if not context.probe.available:
        raise FailedPrecondition(f"This host cannot run VMs: {context.probe.sentence}")
    smallest_bytes = context.probe.capabilities.min_memory_bytes
    if spec.memory_bytes < smallest_bytes:
        raise InvalidRequest(
            f"A guest of this host does not boot with {format_bytes(spec.memory_bytes)} of memory.",
            hint=f"Give it at least {format_bytes(smallest_bytes)}.",
        )
    lease = _wanted_assets(context, spec)
    wanted_id = vm_id or new_id("vm", context.clock, context.entropy)
    admitted = await context.db.write(
        lambda connection: _admit(
            context, connection, tenant_id, wanted_id, spec, lease, idempotency_key, bool(vm_id)
        )
    )
    if not admitted.fresh:
        await context.operations.settled(admitted.vm.vm_id)
        return await context.read(admitted.vm.vm_id)
    new = admitted.vm
    context.operations.begin(new.vm_id, "create")
    return await context.operations.run(new.vm_id, _make(context, new, lease), "create")


def _wanted_assets(context: Context, spec: VmSpec) -> Lease:
    if not context.probe.capabilities.needs_kernel:
        return Lease(lease_id="", rootfs_asset_id=spec.rootfs_asset_id)
    host = context.host
    kernel = spec.kernel_asset_id or host.default_kernel_asset_id
    initrd = spec.initrd_asset_id or host.default_initrd_asset_id
    if not kernel:
        raise FailedPrecondition(
            "This host has no guest kernel registered yet.",
            hint="Name one in spec.assets, or wait until metald has registered its own.",
        )
    return Lease(
        lease_id="",
        rootfs_asset_id=spec.rootfs_asset_id,
        kernel_asset_id=kernel,
        initrd_asset_id=initrd,
    )


def _admit(
    context: Context,
    connection: Connection,
    tenant_id: str,
    wanted_id: str,
    spec: VmSpec,
    lease: Lease,
    idempotency_key: str,
    id_was_given: bool,  # noqa: FBT001
) -> _Admitted:
    now_ns = context.clock.now_ns()
    vm_id = idempotency.claim(
        connection,
        IDEMPOTENCY,
        scope=f"{tenant_id}/CreateVm",
        key=idempotency_key,
        request=(wanted_id.encode() if id_was_given else b"") + store.spec_bytes(spec),
        resource_id=wanted_id,
        now_ns=now_ns,
    )
    spec = _named(spec, vm_id)
    existing = store.find_vm(connection, vm_id)
    if existing is not None:
        if existing.tenant_id != tenant_id or existing.spec != spec:
            raise AlreadyExists(
                f"There is a VM {vm_id} with another specification already.",
                hint="Use another vm_id, or leave it empty.",
            )
        return _Admitted(vm=existing, lease=lease, fresh=False)
    memory_bytes = spec.memory_bytes + context.probe.capabilities.memory_overhead_bytes
    want = Resources(vcpus=spec.vcpus, memory_bytes=memory_bytes, vms=1)
    if (denial := _denial(context, connection, want)) is not None:
        raise denial
    requested = Vm(
        vm_id=vm_id,
        tenant_id=tenant_id,
        spec=spec,
        state=VmState.REQUESTED,
        reason="Admitted.",
        generation=1,
        created_at_ns=now_ns,
        state_changed_at_ns=now_ns,
        slot=_free_slot(context, connection),
        driver=context.probe.kind.value,
        accel=context.probe.accel.value,
        committed_memory_bytes=memory_bytes,
    )
    store.insert_vm(connection, requested, requested.reason)
    store.write_lease(connection, vm_id, lease)
    creating, line = decide.transition(
        requested, VmState.CREATING, "Its parts are being made.", now_ns=now_ns
    )
    store.update_vm(connection, creating, decided_on=requested.generation, line=line)
    return _Admitted(vm=creating, lease=lease, fresh=True)


def _denial(context: Context, connection: Connection, want: Resources) -> IronError | None:
    return decide.admit(
        want,
        taken=store.committed(connection),
        limits=context.limits,
        host_state=context.host.state,
        host_reason=context.host.reason,
    )


def _free_slot(context: Context, connection: Connection, above: int | None = None) -> int:
    taken = store.taken_slots(connection) | context.reaping_slots
    first = first_slot(context.host.tag) if above is None else above + 1
    return decide.free_slot(taken, first=first, count=USABLE_SLOTS)


async def _make(context: Context, vm: Vm, wanted: Lease) -> Vm:
    """Take the steps; undo all of them if one fails."""
    try:
        await context.steps.reach(Step.ASSET_LEASE, vm.vm_id)
        leased = await context.lessor.acquire(vm.tenant_id, vm.vm_id, wanted.asset_ids)
        files = _checked(context, leased, wanted)
        guest = decide.guest_config(vm.spec, files["rootfs"].image)
        made = await _network(context, vm)
        spec = await _room(context, made, leased, files, guest)
        handle = await context.driver.create(spec)
        context.handles[vm.vm_id] = handle
        held = replace(wanted, lease_id=leased.lease_id)
        await context.db.write(lambda connection: store.write_lease(connection, vm.vm_id, held))
        made = replace(made, evidence=handle.evidence, boot_epoch=made.boot_epoch + 1)
        reason = "Its VMM is up; the guest does not run."
        created = await context.move(made, VmState.CREATED, reason)
    except Exception as error:  # whatever it is, what was made is undone
        failed = await fail(context, await context.read(vm.vm_id), _reason(error))
        raise _public(error, failed) from error
    start_watch(context, vm.vm_id, handle)
    return created


def _checked(context: Context, leased: Leased, wanted: Lease) -> dict[str, LeasedAsset]:
    """The leased assets by role.

    Raises:
        InvalidRequest: an asset is not what its role needs.
    """
    by_id = {asset.asset_id: asset for asset in leased.assets}
    roles = {
        "rootfs": wanted.rootfs_asset_id,
        "kernel": wanted.kernel_asset_id,
        "initrd": wanted.initrd_asset_id,
    }
    host_architecture = _ARCHITECTURES.get(platform.machine(), platform.machine())
    found: dict[str, LeasedAsset] = {}
    for role, asset_id in roles.items():
        if not asset_id:
            continue
        asset = by_id[asset_id]
        if asset.kind != role:
            raise InvalidRequest(f"Asset {asset_id} is a {asset.kind}, not a {role}.")
        if asset.architecture not in {"", host_architecture}:
            raise InvalidRequest(
                f"Asset {asset_id} is for {asset.architecture}, and this host is "
                f"{host_architecture}."
            )
        found[role] = asset
    rootfs, kernel = found["rootfs"], found.get("kernel")
    if rootfs.format not in _ROOTFS_FORMATS:
        raise InvalidRequest(f"Asset {rootfs.asset_id} is no squashfs or ext4 file system.")
    if (
        kernel is not None
        and kernel.format == "bzimage"
        and not context.probe.capabilities.boots_bzimage
    ):
        raise InvalidRequest(
            f"This host's driver boots only uncompressed kernels, and asset {kernel.asset_id} is "
            "compressed."
        )
    return found


async def _network(context: Context, vm: Vm) -> Vm:
    """Make the network in the VM's slot, or in another one if that is taken by somebody else."""
    await context.steps.reach(Step.NETWORK_SLOT, vm.vm_id)
    for _ in range(SLOT_TRIES):
        if vm.slot is None:
            raise Internal(f"VM {vm.vm_id} has no network slot.")
        try:
            await context.network.create(vm.slot, context.uid_of(vm.slot))
        except SlotTakenError:
            vm = await context.db.write(
                lambda connection, vm=vm: _next_slot(context, connection, vm)
            )
        else:
            return vm
    raise ResourceExhausted(
        "No free network slot was found.", hint="Another platform on this host may use them."
    )


def _next_slot(context: Context, connection: Connection, vm: Vm) -> Vm:
    slot = _free_slot(context, connection, above=vm.slot)
    changed = replace(vm, slot=slot, generation=vm.generation + 1)
    store.update_vm(connection, changed, decided_on=vm.generation)
    return changed


async def _room(
    context: Context,
    vm: Vm,
    leased: Leased,
    files: dict[str, LeasedAsset],
    guest: GuestConfig,
) -> VmmSpec:
    """Make cgroup and jail, place the assets; answers what the driver needs."""
    if vm.slot is None:
        raise Internal(f"VM {vm.vm_id} has no network slot.")
    settings, uid = context.settings, context.uid_of(vm.slot)
    names = context.network.names(vm.slot)
    await context.steps.reach(Step.CGROUP_CREATE, vm.vm_id)
    limits = GroupLimits(
        memory_bytes=vm.committed_memory_bytes,
        cpus=vm.spec.vcpus + settings.vmm_extra_cpus,
        cpu_weight=vm.spec.cpu_weight,
        pids=settings.vmm_pids,
    )
    group = await context.groups.create(vm.vm_id, limits)
    await context.steps.reach(Step.JAIL_DIRECTORY, vm.vm_id)
    jail = await context.jails.create(vm.vm_id, uid)
    await context.steps.reach(Step.ASSET_PREPARE, vm.vm_id)
    placed = {asset.asset_id: _FILE_NAMES[role] for role, asset in files.items()}
    if len(placed) != len(files):
        raise InvalidRequest("Kernel, initrd and rootfs must be three different assets.")
    await context.lessor.prepare(vm.tenant_id, leased.lease_id, jail, placed)
    return VmmSpec(
        vm_id=vm.vm_id,
        vcpus=vm.spec.vcpus,
        memory_bytes=vm.spec.memory_bytes,
        kernel_path=jail / _FILE_NAMES["kernel"],
        initrd_path=jail / _FILE_NAMES["initrd"] if "initrd" in files else None,
        rootfs_path=jail / ROOTFS_NAME,
        rootfs_format=files["rootfs"].format,
        guest=guest,
        jail_dir=jail,
        uid=uid,
        gid=uid,
        netns=names.netns,
        tap=naming.TAP,
        mac=naming.GUEST_MAC,
        cgroup_join_paths=group.join_paths,
        pids_max=settings.vmm_pids,
        console_max_bytes=settings.console_max_bytes,
    )


def _reason(error: Exception) -> str:
    if isinstance(error, IronError):
        return error.message
    if isinstance(error, DriverError):
        return error.sentence
    if isinstance(error, OSError):
        return f"The machine refused: {error.strerror}."
    return "A fault of metald; its log has it."


def _public(error: Exception, vm: Vm) -> IronError:
    if isinstance(error, IronError):
        return error
    if isinstance(error, DriverError):
        return FailedPrecondition(
            f"VM {vm.vm_id} could not be created: {error.sentence}",
            context={"step": error.step.value, "detail": error.detail},
        )
    return Internal(f"VM {vm.vm_id} could not be created.", context={"fault": repr(error)})
