"""UpdateVm: change what can be changed about a VM without making another."""

from dataclasses import dataclass, replace

from sqlalchemy import Connection

from ironworks.metald import admission, bounds, decide, store
from ironworks.metald.app.context import Context, Once
from ironworks.metald.app.create import denial_of
from ironworks.metald.app.network import apply_plan, with_ports
from ironworks.metald.app.parts import group_limits
from ironworks.metald.types import (
    NetworkSpec,
    RateLimits,
    Resources,
    RestartPolicy,
    Vm,
    VmmSize,
    VmSpec,
)
from ironworks.model.errors import Aborted, FailedPrecondition


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What is to be different; None and 0: as it is."""

    if_generation: int = 0
    network: NetworkSpec | None = None
    rate_limits: RateLimits | None = None
    restart: RestartPolicy | None = None
    cpu_weight: int = 0
    vcpus: int = 0
    memory_bytes: int = 0


async def update_vm(context: Context, vm: Vm, change: Change, *, once: Once) -> Vm:
    """Change a VM; see VmService.UpdateVm for the errors."""
    await context.operations.begin_after_ours(vm.vm_id, "update")
    return await context.operations.run(
        vm.vm_id, _update(context, vm.vm_id, change, once), "update"
    )


async def _update(context: Context, vm_id: str, change: Change, once: Once) -> Vm:
    if await context.is_repeated(once):
        return await context.read(vm_id)
    vm = await context.db.write(lambda connection: _write(context, connection, vm_id, change, once))
    context.changes.tell(vm, None)
    if vm.state in decide.HAS_VMM and not vm.restart_at_ns:
        # The limits of what runs: its size is the VMM's own until that is another.
        size = vm.vmm or VmmSize(vcpus=vm.spec.vcpus, memory_bytes=vm.spec.memory_bytes)
        present = replace(
            vm, spec=replace(vm.spec, vcpus=size.vcpus, memory_bytes=size.memory_bytes)
        )
        await context.groups.create(vm_id, group_limits(context, present))
        await apply_plan(context, vm)
    return vm


def _write(context: Context, connection: Connection, vm_id: str, change: Change, once: Once) -> Vm:
    """Decide and write in one transaction: nobody else can be given the same room."""
    vm = store.read_vm(connection, vm_id)
    if change.if_generation and change.if_generation != vm.generation:
        raise Aborted(
            f"VM {vm_id} has generation {vm.generation} by now, not {change.if_generation}.",
            hint="Read it again, then decide again.",
        )
    if vm.state not in decide.COUNTED:
        raise FailedPrecondition(f"VM {vm_id} is {vm.state}: it cannot be changed any more.")
    spec = bounds.check_spec(_changed(vm.spec, change))
    network = with_ports(connection, spec.network, vm_id=vm_id, before=vm.spec.network)
    spec = replace(spec, network=network)
    want = _need(context, vm, spec)
    more = Resources(
        vcpus=max(0, want.vcpus - vm.committed.vcpus),
        memory_bytes=max(0, want.memory_bytes - vm.committed.memory_bytes),
    )
    if more != Resources():
        denial = admission.too_large(
            admission.need(spec, context.share), context.limits.largest
        ) or denial_of(context, connection, vm.tenant_id, more)
        if denial is not None:
            raise denial
    changed = replace(vm, spec=spec, committed=want, generation=vm.generation + 1)
    context.claim(connection, once, vm_id)
    store.update_vm(connection, changed, decided_on=vm.generation)
    return changed


def _changed(spec: VmSpec, change: Change) -> VmSpec:
    return replace(
        spec,
        network=spec.network if change.network is None else change.network,
        rate_limits=spec.rate_limits if change.rate_limits is None else change.rate_limits,
        restart=spec.restart if change.restart is None else change.restart,
        cpu_weight=change.cpu_weight or spec.cpu_weight,
        vcpus=change.vcpus or spec.vcpus,
        memory_bytes=change.memory_bytes or spec.memory_bytes,
    )


def _need(context: Context, vm: Vm, spec: VmSpec) -> Resources:
    """What the VM counts for: its next VMM's size, or the present one's if that is larger."""
    want = admission.need(spec, context.share)
    if vm.vmm is None:
        return want
    return replace(
        want,
        vcpus=max(want.vcpus, vm.vmm.vcpus),
        memory_bytes=max(want.memory_bytes, vm.vmm.memory_bytes + context.share.memory_bytes),
    )
