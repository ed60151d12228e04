"""Who fits on the host, pure: capacity, reservations, quotas of tenants, and network slots."""

from collections.abc import Sequence
from dataclasses import replace

from ironworks.metald.decide import COUNTED
from ironworks.metald.types import (
    MAX_RESERVATION_ID_CHARS,
    Host,
    HostState,
    Limits,
    Reservation,
    Resources,
    Vm,
    VmSpec,
)
from ironworks.model.errors import (
    FailedPrecondition,
    InvalidRequest,
    IronError,
    ResourceExhausted,
)
from ironworks.model.units import format_bytes

MIN_RESERVATION_SECONDS = 1.0
MAX_RESERVATION_SECONDS = 3600.0
_MOST = Resources(vcpus=2**31 - 1, memory_bytes=2**62, disk_bytes=2**62, vms=2**31 - 1)


def need(spec: VmSpec, share: Resources) -> Resources:
    """What a VM counts for; `share` is what its VMM itself needs of memory and disk."""
    asked = Resources(
        vcpus=spec.vcpus, memory_bytes=spec.memory_bytes, disk_bytes=spec.disk_bytes, vms=1
    )
    return asked + share


def committed(vms: Sequence[Vm]) -> Resources:
    """What these VMs take of the host; those without a process take nothing."""
    return sum((vm.committed for vm in vms if vm.state in COUNTED), Resources())


def admit(want: Resources, *, taken: Resources, limits: Limits, host: Host) -> IronError | None:
    """Whether a VM fits on the host now; a denial says what is short and by how much.

    Args:
        want: With the VMM's own share.
        taken: By VMs and reservations.
        limits: Of the host.
        host: Whether it takes any.
    """
    return (
        takes_none(host)
        or too_large(want, limits.largest)
        or no_room(want, taken=taken, capacity=limits.capacity)
    )


def takes_none(host: Host) -> IronError | None:
    """The denial of a host that takes no VMs at all."""
    if host.state is HostState.ACTIVE:
        return None
    return FailedPrecondition(
        f"This host takes no new VMs: it is {host.state}"
        + (f" ({host.reason})." if host.reason else "."),
        hint="Use another host, or uncordon this one.",
    )


def too_large(want: Resources, largest: Resources) -> IronError | None:
    """Whether no VM of this host can be so large."""
    if want.vcpus > largest.vcpus:
        return InvalidRequest(
            f"The VM asks for {want.vcpus} vCPUs, and the largest VM of this host has "
            f"{largest.vcpus}.",
            hint="Ask for fewer.",
        )
    if want.memory_bytes > largest.memory_bytes:
        return InvalidRequest(
            f"The VM needs {format_bytes(want.memory_bytes)} of memory, its VMM's share included, "
            f"and the largest VM of this host has {format_bytes(largest.memory_bytes)}.",
            hint="Ask for less.",
        )
    if want.disk_bytes > largest.disk_bytes:
        return InvalidRequest(
            f"The VM needs {format_bytes(want.disk_bytes)} of disk, its console included, and the "
            f"largest VM of this host has {format_bytes(largest.disk_bytes)}.",
            hint="Ask for less.",
        )
    return None


def no_room(want: Resources, *, taken: Resources, capacity: Resources) -> IronError | None:
    """Whether something of what is wanted is not left."""
    hint = "Delete VMs, or use another host."
    if taken.vms + want.vms > capacity.vms:
        return ResourceExhausted(f"The host has its {capacity.vms} VMs already.", hint=hint)
    if taken.vcpus + want.vcpus > capacity.vcpus:
        return ResourceExhausted(
            f"The host has {max(0, capacity.vcpus - taken.vcpus)} of its {capacity.vcpus} vCPUs "
            f"left, the VM asks for {want.vcpus}.",
            hint=hint,
        )
    if taken.memory_bytes + want.memory_bytes > capacity.memory_bytes:
        left = max(0, capacity.memory_bytes - taken.memory_bytes)
        return ResourceExhausted(
            f"The host has {format_bytes(left)} of memory left, the VM needs "
            f"{format_bytes(want.memory_bytes)}.",
            hint=hint,
        )
    if taken.disk_bytes + want.disk_bytes > capacity.disk_bytes:
        left = max(0, capacity.disk_bytes - taken.disk_bytes)
        return ResourceExhausted(
            f"The host has {format_bytes(left)} of disk left, the VM needs "
            f"{format_bytes(want.disk_bytes)}.",
            hint=hint,
        )
    return None


def over_quota(want: Resources, *, used: Resources, limit: Resources) -> IronError | None:
    """Whether a tenant would have more than it may; 0 in a field of `limit` is no limit."""
    after = used + want
    for what, asked, now, most, text in (
        ("VMs", want.vms, after.vms, limit.vms, str),
        ("vCPUs", want.vcpus, after.vcpus, limit.vcpus, str),
        (
            "of memory",
            want.memory_bytes,
            after.memory_bytes,
            limit.memory_bytes,
            format_bytes,
        ),
        ("of disk", want.disk_bytes, after.disk_bytes, limit.disk_bytes, format_bytes),
    ):
        if most and asked > 0 and now > most:
            return ResourceExhausted(
                f"The tenant's quota on this host is {text(most)} {what}; "
                f"it has {text(now - asked)} and asks for {text(asked)}.",
                hint="Delete VMs or release reservations, or ask the operator for a larger quota.",
            )
    return None


def reservation(
    *, reservation_id: str, tenant_id: str, resources: Resources, share: Resources, at_ns: int
) -> Reservation:
    """A reservation that has no end yet.

    Raises:
        InvalidRequest: a bound is not kept.
    """
    if not reservation_id or len(reservation_id) > MAX_RESERVATION_ID_CHARS:
        raise InvalidRequest(
            f"reservation_id must have 1 to {MAX_RESERVATION_ID_CHARS} characters."
        )
    check_amount(resources, "resources")
    if resources == Resources():
        raise InvalidRequest("resources are all 0: there is nothing to reserve.")
    if not resources.vms:
        # Memory without a VM that it is for: it is for one.
        resources = replace(resources, vms=1)
    shares = Resources(
        memory_bytes=share.memory_bytes * resources.vms,
        disk_bytes=share.disk_bytes * resources.vms,
    )
    return Reservation(
        reservation_id=reservation_id,
        tenant_id=tenant_id,
        resources=resources,
        committed=resources + shares,
        created_at_ns=at_ns,
        expires_at_ns=at_ns,
    )


def check_amount(amount: Resources, field: str) -> None:
    """Refuse what is no amount.

    Raises:
        InvalidRequest: a number is negative or absurd.
    """
    for name in ("vcpus", "memory_bytes", "disk_bytes", "vms"):
        if not 0 <= getattr(amount, name) <= getattr(_MOST, name):
            raise InvalidRequest(f"{field}.{name} must be 0 to {getattr(_MOST, name)}.")


def free_slot(taken: frozenset[int], *, first: int, count: int) -> int:
    """The next free network slot, searched upwards from `first` and around.

    Raises:
        ResourceExhausted: all are taken.
    """
    for step in range(count):
        slot = (first + step) % count
        if slot not in taken:
            return slot
    raise ResourceExhausted("Every network slot of this host is taken.", hint="Delete VMs.")
