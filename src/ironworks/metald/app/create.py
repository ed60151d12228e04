"""CreateVm: admit, then lease, network, cgroup, jail, VMM; all of it or nothing."""

import platform
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from ironworks.metald import admission, bounds, capacity_store, decide, store
from ironworks.metald.app.cleanup import fail, reason_of
from ironworks.metald.app.context import Context
from ironworks.metald.app.network import free_slot, same_spec, with_ports
from ironworks.metald.app.parts import group_limits, prepare_assets, slot_of, vmm_spec
from ironworks.metald.app.watch import start_watch
from ironworks.metald.assets.lessor import Leased, LeasedAsset
from ironworks.metald.drivers.driver import (
    Capabilities,
    DriverError,
    ExitKind,
    ExitReport,
    VmmSpec,
)
from ironworks.metald.network.plan import plan_of
from ironworks.metald.network.slots import SlotTakenError
from ironworks.metald.steps import Step
from ironworks.metald.tables import IDEMPOTENCY
from ironworks.metald.types import Lease, Resources, Vm, VmmSize, VmSpec, VmState
from ironworks.model.errors import (
    AlreadyExists,
    FailedPrecondition,
    Internal,
    InvalidRequest,
    IronError,
    ResourceExhausted,
    Unimplemented,
)
from ironworks.model.ids import check_id, new_id
from ironworks.model.units import format_bytes
from ironworks.storage import idempotency

SLOT_TRIES = 16
_ROOTFS_FORMATS = frozenset({"squashfs", "ext4"})
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    tenant_id: str
    vm_id: str
    """The caller's, or one that was made for it."""
    id_is_callers: bool
    spec: VmSpec
    lease: Lease
    idempotency_key: str
    reservation_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Admitted:
    vm: Vm
    lease: Lease
    fresh: bool


def _named(spec: VmSpec, vm_id: str) -> VmSpec:
    return spec if spec.name else replace(spec, name=vm_id.replace("_", "-"))


async def create_vm(
    context: Context,
    *,
    tenant_id: str,
    vm_id: str,
    spec: VmSpec,
    idempotency_key: str,
    reservation_id: str = "",
) -> Vm:
    """Make a VM up to CREATED; see VmService.CreateVm for the errors."""
    bounds.check_spec(spec if spec.name else _named(spec, "vm"))
    if vm_id:
        check_id(vm_id, "vm", "vm_id")
    if not context.probe.available:
        raise FailedPrecondition(f"This host cannot run VMs: {context.probe.sentence}")
    _check_capabilities(context.probe.capabilities, spec)
    smallest_bytes = context.probe.capabilities.min_memory_bytes
    if spec.memory_bytes < smallest_bytes:
        raise InvalidRequest(
            f"A guest of this host does not boot with {format_bytes(spec.memory_bytes)} of memory.",
            hint=f"Give it at least {format_bytes(smallest_bytes)}.",
        )
    lease = _wanted_assets(context, spec)
    wish = _Wish(
        tenant_id=tenant_id,
        vm_id=vm_id or new_id("vm", context.clock, context.entropy),
        id_is_callers=bool(vm_id),
        spec=spec,
        lease=lease,
        idempotency_key=idempotency_key,
        reservation_id=reservation_id,
    )
    admitted = await context.db.write(lambda connection: _admit(context, connection, wish))
    if not admitted.fresh:
        await context.operations.settled(admitted.vm.vm_id)
        return await context.read(admitted.vm.vm_id)
    new = admitted.vm
    context.changes.tell(new, None)
    context.operations.begin(new.vm_id, "create")
    return await context.operations.run(new.vm_id, _make(context, new, lease), "create")


def _check_capabilities(capabilities: Capabilities, spec: VmSpec) -> None:
    """Refuse what this host's driver cannot do, before anything is made."""
    for asked, able, what, field in (
        (spec.disk_bytes > 0, capabilities.scratch_disk, "writable disks", "disk_bytes"),
        (
            spec.workload.image_init,
            capabilities.image_init,
            "images' own inits",
            "workload.image_init",
        ),
    ):
        if asked and not able:
            raise Unimplemented(
                f"This host's driver has no {what}.", hint=f"Leave spec.{field} empty."
            )


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


def _admit(context: Context, connection: Connection, wish: _Wish) -> _Admitted:
    """Decide and write in one transaction: nobody else can be given the same room."""
    now_ns, tenant_id, lease = context.clock.now_ns(), wish.tenant_id, wish.lease
    vm_id = idempotency.claim(
        connection,
        IDEMPOTENCY,
        scope=f"{tenant_id}/CreateVm",
        key=wish.idempotency_key,
        request=(wish.vm_id.encode() if wish.id_is_callers else b"") + store.spec_bytes(wish.spec),
        resource_id=wish.vm_id,
        now_ns=now_ns,
    )
    spec = _named(wish.spec, vm_id)
    existing = store.find_vm(connection, vm_id)
    if existing is not None:
        if existing.tenant_id != tenant_id or same_spec(existing.spec, spec) != spec:
            raise AlreadyExists(
                f"There is a VM {vm_id} with another specification already.",
                hint="Use another vm_id, or leave it empty.",
            )
        return _Admitted(vm=existing, lease=lease, fresh=False)
    spec = replace(spec, network=with_ports(connection, spec.network))
    want = admission.need(spec, context.share)
    if wish.reservation_id:
        _take_reservation(connection, tenant_id, wish.reservation_id, now_ns)
    if (denial := denial_of(context, connection, tenant_id, want)) is not None:
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
        slot=free_slot(context, connection),
        driver=context.probe.kind.value,
        accel=context.probe.accel.value,
        committed=want,
    )
    store.insert_vm(connection, requested, requested.reason)
    store.write_lease(connection, vm_id, lease)
    creating, line = decide.transition(
        requested, VmState.CREATING, "Its parts are being made.", now_ns=now_ns
    )
    store.update_vm(connection, creating, decided_on=requested.generation, line=line)
    return _Admitted(vm=creating, lease=lease, fresh=True)


def _take_reservation(
    connection: Connection, tenant_id: str, reservation_id: str, now_ns: int
) -> None:
    """Give a reservation's capacity back in the transaction that takes it for the VM."""
    reservation = capacity_store.find_reservation(connection, reservation_id, now_ns)
    if reservation is None or reservation.tenant_id != tenant_id:
        raise FailedPrecondition(
            f"There is no reservation {reservation_id[:64]!r}, or it has expired.",
            hint="Reserve again, or create the VM without one.",
        )
    capacity_store.drop_reservation(connection, reservation_id)


def denial_of(
    context: Context, connection: Connection, tenant_id: str, want: Resources
) -> IronError | None:
    """Why a tenant cannot have so much more of the host now; None: it can."""
    now_ns = context.clock.now_ns()
    return admission.admit(
        want,
        taken=capacity_store.taken(connection, now_ns),
        limits=context.limits,
        host=context.host,
    ) or admission.over_quota(
        want,
        used=capacity_store.taken(connection, now_ns, tenant_id),
        limit=capacity_store.find_quota(connection, tenant_id),
    )


async def _make(context: Context, vm: Vm, wanted: Lease) -> Vm:
    """Take the steps; undo all of them if one fails."""
    try:
        await context.steps.reach(Step.ASSET_LEASE, vm.vm_id)
        leased = await context.lessor.acquire(vm.tenant_id, vm.vm_id, wanted.asset_ids)
        rootfs = _checked(context, leased, wanted)
        lease = replace(
            wanted,
            lease_id=leased.lease_id,
            rootfs_format=rootfs.format,
            image=rootfs.image,
        )
        decide.guest_config(vm.spec, lease.image)
        await context.db.write(lambda connection: store.write_lease(connection, vm.vm_id, lease))
        made = await _network(context, vm)
        handle = await context.driver.create(await _room(context, made, lease))
        context.handles[vm.vm_id] = handle
        size = VmmSize(vcpus=vm.spec.vcpus, memory_bytes=vm.spec.memory_bytes)
        made = replace(made, evidence=handle.evidence, boot_epoch=made.boot_epoch + 1, vmm=size)
        reason = "Its VMM is up; the guest does not run."
        created = await context.move(made, VmState.CREATED, reason)
    except Exception as error:  # whatever it is, what was made is undone
        report = None
        if isinstance(error, DriverError) and error.console_tail:
            report = ExitReport(
                kind=ExitKind.CRASHED, sentence=error.sentence, console_tail=error.console_tail
            )
        reason = reason_of(error)
        failed = await fail(context, await context.read(vm.vm_id), reason, report=report)
        raise _public(error, failed) from error
    start_watch(context, vm.vm_id, handle)
    return created


async def _room(context: Context, vm: Vm, lease: Lease) -> VmmSpec:
    """Make cgroup and jail, place the assets; answers what the driver needs."""
    await context.steps.reach(Step.CGROUP_CREATE, vm.vm_id)
    group = await context.groups.create(vm.vm_id, group_limits(context, vm))
    await context.steps.reach(Step.JAIL_DIRECTORY, vm.vm_id)
    await context.jails.create(vm.vm_id, context.uid_of(slot_of(vm)))
    await context.steps.reach(Step.ASSET_PREPARE, vm.vm_id)
    await prepare_assets(context, vm, lease)
    return vmm_spec(context, vm, lease, group)


def _checked(context: Context, leased: Leased, wanted: Lease) -> LeasedAsset:
    """The rootfs, when every leased asset is what its role needs.

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
    return rootfs


async def _network(context: Context, vm: Vm) -> Vm:
    """Make the network in the VM's slot, or in another one if that is taken by somebody else."""
    await context.steps.reach(Step.NETWORK_SLOT, vm.vm_id)
    for _ in range(SLOT_TRIES):
        if vm.slot is None:
            raise Internal(f"VM {vm.vm_id} has no network slot.")
        try:
            await context.network.create(vm.slot, context.uid_of(vm.slot), plan_of(vm))
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
    slot = free_slot(context, connection, above=vm.slot)
    changed = replace(vm, slot=slot, generation=vm.generation + 1)
    store.update_vm(connection, changed, decided_on=vm.generation)
    return changed


def _public(error: Exception, vm: Vm) -> IronError:
    if isinstance(error, IronError):
        return error
    if isinstance(error, DriverError):
        return FailedPrecondition(
            f"VM {vm.vm_id} could not be created: {error.sentence}",
            context={"step": error.step.value, "detail": error.detail},
        )
    return Internal(f"VM {vm.vm_id} could not be created.", context={"fault": repr(error)})
