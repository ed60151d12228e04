"""Slots and plans of VMs: given out, made, changed, mended."""

import errno
import socket
from dataclasses import replace

from sqlalchemy import Connection

from ironworks.metald import admission, decide_network, store
from ironworks.metald.app.context import Context
from ironworks.metald.app.parts import slot_of
from ironworks.metald.decide_network import HostPort
from ironworks.metald.network.naming import USABLE_SLOTS, first_slot
from ironworks.metald.network.plan import plan_of
from ironworks.metald.network.stats import NetworkStats
from ironworks.metald.types import NetworkSpec, Protocol, Vm, VmSpec
from ironworks.model.errors import FailedPrecondition


def free_slot(
    context: Context, connection: Connection, *, above: int | None = None, for_pool: bool = False
) -> int:
    """A slot that no VM has: one of those that are ready, else the next that is free.

    Must be called in a writing transaction, in which no other slot is given out.

    Args:
        context: Of this host.
        connection: Of the transaction.
        above: Begin after this one, which somebody else has, and take none of the pool.
        for_pool: For the pool itself.

    Raises:
        ResourceExhausted: every slot is taken.
    """
    network = context.network
    taken = store.taken_slots(connection) | context.reaping_slots
    if above is None and not for_pool:
        for slot in network.ready:
            if slot not in taken:
                return slot
    first = first_slot(context.host.tag) if above is None else above + 1
    return admission.free_slot(taken | network.pooled, first=first, count=USABLE_SLOTS)


def with_ports(
    connection: Connection,
    network: NetworkSpec,
    *,
    vm_id: str = "",
    before: NetworkSpec | None = None,
) -> NetworkSpec:
    """The network with every host port chosen; in a writing transaction, so that none is twice.

    Args:
        connection: Of the transaction.
        network: As it was asked for.
        vm_id: Whose it is; its own ports are not in its way.
        before: What the VM has already.

    Raises:
        AlreadyExists: a port is taken.
        ResourceExhausted: none is left to choose.
    """
    if not network.published_ports:
        return network
    taken = decide_network.host_ports(store.networks(connection, except_vm_id=vm_id))
    own = decide_network.host_ports([before]) if before is not None else frozenset[HostPort]()
    return decide_network.choose_ports(
        network, taken=taken, is_free=lambda port: port in own or is_free_on_host(port)
    )


def is_free_on_host(port: HostPort) -> bool:
    """Whether no program of this host has the port: it would be cut off if a VM got it."""
    protocol, number = port
    kind = socket.SOCK_DGRAM if protocol is Protocol.UDP else socket.SOCK_STREAM
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):  # noqa: S104
        try:
            with socket.socket(family, kind) as probe:
                if kind is socket.SOCK_STREAM:
                    # What ended a moment ago is in nobody's way.
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family is socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((address, number))
        except OSError as error:
            if error.errno in {errno.EADDRINUSE, errno.EACCES}:
                return False
    return True


def same_spec(kept: VmSpec, asked: VmSpec) -> VmSpec:
    """`kept` as it was asked for: a port that was chosen is not another specification."""
    return replace(kept, network=decide_network.as_asked(kept.network, asked.network))


async def apply_plan(context: Context, vm: Vm) -> None:
    """Have a VM's network follow its record."""
    if vm.slot is not None:
        await context.network.apply(vm.slot, plan_of(vm))


async def mend_network(context: Context, vm: Vm, pid: int | None) -> tuple[str, ...]:
    """Make again what is gone of a VM's network; answers what it was."""
    slot = slot_of(vm)
    return await context.network.mend(slot, context.uid_of(slot), plan_of(vm), pid)


async def network_stats(context: Context, vm: Vm) -> NetworkStats:
    """What a VM's firewall has counted.

    Raises:
        FailedPrecondition: the VM has no network any more.
    """
    if vm.slot is None:
        raise FailedPrecondition(
            f"VM {vm.vm_id} is {vm.state} and has no network.", hint="Its counters went with it."
        )
    return await context.network.stats(vm.slot)
