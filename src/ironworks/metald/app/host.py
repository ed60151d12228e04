"""The host: cordon and drain, reservations, quotas of tenants."""

import asyncio
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from ironworks.metald import admission, capacity_store, decide, store
from ironworks.metald.app.context import Context, Once, log, warn
from ironworks.metald.app.stop import Shutdown, shutdown_vm
from ironworks.metald.types import (
    MAX_REASON_CHARS,
    Drain,
    Host,
    HostState,
    Reservation,
    Resources,
    Vm,
    VmState,
)
from ironworks.model.errors import AlreadyExists, InvalidRequest, IronError, NotFound
from ironworks.model.ids import check_id
from ironworks.model.units import NS_PER_SECOND

MIN_DRAIN_SECONDS = 0.1
MAX_DRAIN_SECONDS = 3600.0
DRAINS_AT_ONCE = 8
_HALF_MADE = frozenset({VmState.REQUESTED, VmState.CREATING})


def _checked_reason(reason: str) -> str:
    if len(reason) > MAX_REASON_CHARS:
        raise InvalidRequest(f"reason may have at most {MAX_REASON_CHARS} characters.")
    return reason


async def cordon(context: Context, reason: str, *, once: Once) -> Host:
    """Take no new VMs. A host that is draining does so already, and goes on with it."""
    _checked_reason(reason)
    if await context.is_repeated(once):
        return context.host
    if context.host.state in {HostState.ACTIVE, HostState.CORDONED}:
        host = replace(context.host, state=HostState.CORDONED, reason=reason)
        await context.write_host(host, once=once)
    return context.host


async def uncordon(context: Context, *, once: Once) -> Host:
    """Take VMs again; ends a drain."""
    if await context.is_repeated(once):
        return context.host
    if context.host.state is not HostState.ACTIVE:
        host = replace(context.host, state=HostState.ACTIVE, reason="", drain=None)
        await context.write_host(host, once=once)
    return context.host


async def drain(context: Context, reason: str, timeout_seconds: float, *, once: Once) -> Host:
    """Take no new VMs, and have those that there are ended; `drain_pass` does it."""
    _checked_reason(reason)
    timeout_seconds = timeout_seconds or context.settings.shutdown_timeout_seconds
    if not MIN_DRAIN_SECONDS <= timeout_seconds <= MAX_DRAIN_SECONDS:
        raise InvalidRequest(
            f"timeout_seconds must be {MIN_DRAIN_SECONDS:g} to {MAX_DRAIN_SECONDS:g}."
        )
    if await context.is_repeated(once):
        return context.host
    taken = await context.db.read(store.committed)
    order = Drain(
        started_at_ns=context.clock.now_ns(),
        timeout_seconds=timeout_seconds,
        vms_at_start=taken.vms,
    )
    state = HostState.DRAINING if taken.vms else HostState.DRAINED
    await context.write_host(
        replace(context.host, state=state, reason=reason, drain=order), once=once
    )
    return context.host


async def drain_pass(context: Context) -> tuple[int, int]:
    """End some VMs of a draining host; answers how many were ended, and how many are left."""
    order = context.host.drain
    if order is None or context.host.state is not HostState.DRAINING:
        return 0, 0
    vms = await context.db.read(lambda connection: store.vms_in(connection, decide.COUNTED))
    ready = [
        vm
        for vm in vms
        if vm.state not in _HALF_MADE
        and (vm.state is VmState.BOOTING or not context.operations.busy(vm.vm_id))
    ]
    wanted = Shutdown(
        timeout_seconds=order.timeout_seconds,
        force=False,
        reason="Its host is being drained"
        + (f": {context.host.reason}" if context.host.reason else "."),
    )
    ended = await asyncio.gather(*(_end(context, vm, wanted) for vm in ready[:DRAINS_AT_ONCE]))
    left = (await context.db.read(store.committed)).vms
    if left == 0 and context.host.state is HostState.DRAINING:
        await context.write_host(replace(context.host, state=HostState.DRAINED))
        log.info("host_drained", vms=order.vms_at_start)
    return sum(ended), left


async def _end(context: Context, vm: Vm, wanted: Shutdown) -> bool:
    try:
        await shutdown_vm(context, vm, wanted)
    except IronError as error:
        context.drain_problems[vm.vm_id] = str(error)
        warn("drain_failed", error, vm_id=vm.vm_id)
        return False
    context.drain_problems.pop(vm.vm_id, None)
    return True


# --- reservations -------------------------------------------------------------------------------


async def reserve(
    context: Context,
    *,
    tenant_id: str,
    reservation_id: str,
    resources: Resources,
    ttl_seconds: float,
    once: Once,
) -> Reservation:
    """Set capacity aside; see HostService.ReserveCapacity for the errors.

    The same reservation asked for again is kept for another `ttl_seconds`.
    """
    ttl_seconds = ttl_seconds or context.settings.reservation_seconds
    low, high = admission.MIN_RESERVATION_SECONDS, admission.MAX_RESERVATION_SECONDS
    if not low <= ttl_seconds <= high:
        raise InvalidRequest(f"ttl_seconds must be {low:g} to {high:g}.")
    now_ns = context.clock.now_ns()
    wanted = replace(
        admission.reservation(
            reservation_id=reservation_id,
            tenant_id=tenant_id,
            resources=resources,
            share=context.share,
            at_ns=now_ns,
        ),
        expires_at_ns=now_ns + int(ttl_seconds * NS_PER_SECOND),
    )

    def write(connection: Connection) -> Reservation:
        context.claim(connection, once, reservation_id)
        found = capacity_store.find_reservation(connection, reservation_id, now_ns)
        if found is not None:
            kept = _same(found, wanted)
        else:
            denial = _denial(context, connection, wanted, now_ns)
            if denial is not None:
                raise denial
            kept = wanted
        capacity_store.write_reservation(connection, kept)
        return kept

    reservation = await context.db.write(write)
    context.changes.touch_host()
    return reservation


def _same(found: Reservation, wanted: Reservation) -> Reservation:
    if (found.tenant_id, found.resources) != (wanted.tenant_id, wanted.resources):
        raise AlreadyExists(
            f"There is another reservation {found.reservation_id!r} already.",
            hint="Use another reservation_id, or release that one.",
        )
    return replace(found, expires_at_ns=max(found.expires_at_ns, wanted.expires_at_ns))


def _denial(
    context: Context, connection: Connection, wanted: Reservation, now_ns: int
) -> IronError | None:
    tenant_id = wanted.tenant_id
    return (
        admission.takes_none(context.host)
        or admission.no_room(
            wanted.committed,
            taken=capacity_store.taken(connection, now_ns),
            capacity=context.limits.capacity,
        )
        or admission.over_quota(
            wanted.committed,
            used=capacity_store.taken(connection, now_ns, tenant_id),
            limit=capacity_store.find_quota(connection, tenant_id),
        )
    )


async def release(
    context: Context, *, tenant_id: str | None, reservation_id: str, once: Once
) -> None:
    """Give reserved capacity back. Idempotent.

    Raises:
        NotFound: it is another tenant's.
    """
    now_ns = context.clock.now_ns()

    def write(connection: Connection) -> None:
        context.claim(connection, once, reservation_id)
        found = capacity_store.find_reservation(connection, reservation_id, now_ns)
        if found is None:
            return
        if tenant_id is not None and found.tenant_id != tenant_id:
            raise NotFound(f"Reservation {reservation_id[:64]!r} is not known here.")
        capacity_store.drop_reservation(connection, reservation_id)

    await context.db.write(write)
    context.changes.touch_host()


# --- quotas -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What a tenant may have on this host, 0: no limit; and what it has."""

    tenant_id: str
    limit: Resources
    used: Resources


async def set_quota(context: Context, tenant_id: str, limit: Resources, *, once: Once) -> Quota:
    """Set a tenant's limits; VMs that exist are kept even beyond them."""
    check_id(tenant_id, "tnt", "tenant_id")
    admission.check_amount(limit, "limit")

    def write(connection: Connection) -> None:
        context.claim(connection, once, tenant_id)
        capacity_store.write_quota(connection, tenant_id, limit)

    if not await context.is_repeated(once):
        await context.db.write(write)
    return await get_quota(context, tenant_id)


async def get_quota(context: Context, tenant_id: str) -> Quota:
    """A tenant's limits and use."""
    check_id(tenant_id, "tnt", "tenant_id")
    now_ns = context.clock.now_ns()
    return await context.db.read(
        lambda connection: Quota(
            tenant_id=tenant_id,
            limit=capacity_store.find_quota(connection, tenant_id),
            used=capacity_store.taken(connection, now_ns, tenant_id),
        )
    )
