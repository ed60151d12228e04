"""Makes, finds, mends and removes the networks of slots."""

import asyncio
import errno
from typing import Protocol

from ironworks.metald.network import namespace, naming, rules
from ironworks.metald.network.fabric import ROUTER_SYSCTLS, Fabric
from ironworks.metald.network.links import (
    LinkError,
    Links,
    device_bytes,
    device_names,
    limit,
    make_tap,
    set_sysctls,
)
from ironworks.metald.network.naming import SlotNames, names_of
from ironworks.metald.network.nft import Firewall, FirewallError
from ironworks.metald.network.plan import Plan
from ironworks.metald.network.stats import NetworkStats, denied
from ironworks.model.errors import FailedPrecondition, Internal

TAP_LOST = "was gone, and only a fresh VMM can open the new one"
"""Part of the sentence of `mend` that says so."""


class SlotTakenError(Exception):
    """Another platform on this machine uses the slot's address: take another slot."""


class Network(Protocol):
    """What the rest of metald calls."""

    def names(self, slot: int) -> SlotNames:
        """Names and addresses of a slot."""
        ...

    @property
    def ready(self) -> tuple[int, ...]:
        """Slots that are made and wait for a VM, the one that has waited longest first."""
        ...

    @property
    def pooled(self) -> frozenset[int]:
        """Slots that wait for a VM or are being made to: not to be taken by another way."""
        ...

    async def create(self, slot: int, owner_uid: int, plan: Plan | None = None) -> SlotNames:
        """Make everything of a slot, or nothing; one of `ready` has only its plan to be told."""
        ...

    async def apply(self, slot: int, plan: Plan) -> None:
        """Change the plan of a slot; all of it binds when this returns."""
        ...

    async def mend(self, slot: int, owner_uid: int, plan: Plan, pid: int | None) -> tuple[str, ...]:
        """Make again what is gone of a slot that a VM has; answers what it was, in sentences."""
        ...

    async def remove(self, slot: int) -> None:
        """Remove everything of a slot. Idempotent."""
        ...

    async def present(self) -> frozenset[int]:
        """Slots of this platform of which anything is there."""
        ...

    async def drift(self, slot: int) -> tuple[str, ...]:
        """What of a slot is gone, each a sentence."""
        ...

    async def stats(self, slot: int) -> NetworkStats:
        """What a slot's firewall has counted."""
        ...

    def reserve(self, slot: int) -> None:
        """Keep a slot from others before it is made for the pool; see `pooled`."""
        ...

    async def prepare(self, slot: int, owner_uid: int) -> bool:
        """Make a reserved slot, or take over one that is whole already, for the pool."""
        ...

    async def drain(self) -> None:
        """At the end: remove all slots that wait for a VM, and the fabric if no VM is in it."""
        ...

    async def mend_fabric(self) -> bool:
        """Make again what is gone of what all slots share; answers whether anything was."""
        ...


class HostNetwork:
    """The networks of all VMs of one platform on this machine; the real `Network`."""

    def __init__(self, tag: str) -> None:
        """Work with what carries `tag` in its name, and with nothing else."""
        self._tag = tag
        self._fabric = Fabric(tag)
        self._ready: dict[int, int] = {}
        """Slot → the uid that owns its tap."""
        self._reserved: set[int] = set()
        self._drained = False

    def names(self, slot: int) -> SlotNames:
        """See `Network`."""
        return names_of(self._tag, slot)

    @property
    def ready(self) -> tuple[int, ...]:
        """See `Network`."""
        return tuple(self._ready)

    @property
    def pooled(self) -> frozenset[int]:
        """See `Network`."""
        return frozenset(self._ready) | self._reserved

    async def create(self, slot: int, owner_uid: int, plan: Plan | None = None) -> SlotNames:
        """Make namespace, tap, veth, addresses, routes and rules; all of it or nothing.

        Raises:
            SlotTakenError: its names or its address are in use.
            FailedPrecondition: not permitted, or libnftables or /dev/net/tun is missing.
        """
        names = self.names(slot)
        made = self._ready.pop(slot, None) == owner_uid
        # One function of one thread makes it and undoes it: cancellation cannot come in between.
        await asyncio.to_thread(self._create_or_undo, names, owner_uid, plan or Plan(), made=made)
        return names

    def _create_or_undo(self, names: SlotNames, owner_uid: int, plan: Plan, *, made: bool) -> None:
        if not made and names.netns_path.exists():
            raise SlotTakenError(f"{names.netns} exists.")
        try:
            if not made:
                self._make(names, owner_uid)
            self._apply(names, plan, fresh=True)
        except BaseException as error:
            self._remove(names)
            raise _explained(error, names) from error

    def _make(self, names: SlotNames, owner_uid: int) -> None:
        with self._fabric.in_use(names.slot):
            namespace.create(names.netns_path, lambda: self._inside(names, owner_uid))
            self._fabric.route(names)

    def _inside(self, names: SlotNames, owner_uid: int) -> None:
        set_sysctls(ROUTER_SYSCTLS)
        with Links() as links:
            links.up("lo")
            _tap(links, owner_uid)
            self._veth(links, names)
        with Firewall() as firewall:
            firewall.apply(rules.slot_rules(names))

    def _veth(self, links: Links, names: SlotNames) -> None:
        self._fabric.connect(names)
        links.up(naming.INNER_VETH)
        links.add_route(None, naming.INNER_VETH, gateway=naming.ROUTER_ADDRESS)
        links.add_route(None, naming.INNER_VETH, gateway=naming.ROUTER_ADDRESS_V6)

    async def apply(self, slot: int, plan: Plan) -> None:
        """See `Network`.

        Raises:
            Internal: it is not there, or the kernel refuses it.
        """
        names = self.names(slot)

        def change() -> None:
            try:
                self._fabric.ensure()
                self._apply(names, plan, fresh=False)
            except (OSError, LinkError, FirewallError) as error:
                raise Internal(
                    "The network of the VM could not be changed.", context={"error": str(error)}
                ) from error

        await asyncio.to_thread(change)

    def _apply(self, names: SlotNames, plan: Plan, *, fresh: bool) -> None:
        limited = bool(plan.in_bytes_per_second or plan.out_bytes_per_second)

        def inside() -> None:
            with Firewall() as firewall:
                firewall.apply(rules.policy_rules(plan.network))
            if limited or not fresh:
                # What the guest receives leaves the namespace through the tap.
                limit(naming.TAP, plan.in_bytes_per_second)
                limit(naming.INNER_VETH, plan.out_bytes_per_second)

        if limited or not fresh or plan.leaves_the_host:
            namespace.run_in(names.netns_path, inside)
        self._fabric.join(names, plan)

    async def mend(self, slot: int, owner_uid: int, plan: Plan, pid: int | None) -> tuple[str, ...]:
        """See `Network`.

        Args:
            slot: The VM's.
            owner_uid: Of its VMM.
            plan: As the store has it.
            pid: A process in the slot's namespace, which brings the namespace back where only its
                name is gone.

        Raises:
            FailedPrecondition: the machine refuses.
        """
        names = self.names(slot)

        def work() -> tuple[str, ...]:
            try:
                return self._mend(names, owner_uid, plan, pid)
            except (OSError, LinkError, FirewallError) as error:
                raise _explained(error, names) from error

        return await asyncio.to_thread(work)

    def _mend(
        self, names: SlotNames, owner_uid: int, plan: Plan, pid: int | None
    ) -> tuple[str, ...]:
        gone: list[str] = []
        with self._fabric.in_use(names.slot):
            if not namespace.is_bound(names.netns_path):
                gone.append(f"Its network namespace {names.netns} was gone.")
                namespace.remove(names.netns_path)
                if pid is None:
                    namespace.create(names.netns_path, lambda: set_sysctls(ROUTER_SYSCTLS))
                else:
                    namespace.bind(names.netns_path, pid)
            connected = self._fabric.is_connected(names)
            gone += namespace.run_in(
                names.netns_path, lambda: self._mend_inside(names, owner_uid, plan, connected)
            )
            if not connected:
                gone.append(f"Its interface {names.veth} was gone.")
            self._fabric.restore_routes(names)
            if not self._fabric.is_member(names, plan):
                gone.append("Its place in its tenant's fabric was gone.")
            if gone:
                self._apply(names, plan, fresh=False)
        return tuple(gone)

    def _mend_inside(
        self,
        names: SlotNames,
        owner_uid: int,
        plan: Plan,
        connected: bool,  # noqa: FBT001
    ) -> list[str]:
        gone: list[str] = []
        devices = device_names()
        with Links() as links:
            if naming.TAP not in devices:
                gone.append(f"Its tap {naming.TAP} {TAP_LOST}.")
                links.up("lo")
                _tap(links, owner_uid)
            if not connected or naming.INNER_VETH not in devices:
                links.delete(naming.INNER_VETH)
                self._veth(links, names)
        with Firewall() as firewall:
            if not _has_all_rules(firewall, names, plan):
                gone.append("Its firewall was changed.")
                for table in rules.SLOT_TABLES:
                    firewall.drop_table(table)
                firewall.apply(rules.slot_rules(names))
        return gone

    async def remove(self, slot: int) -> None:
        """Remove everything of a slot, whole or half made, and the fabric with the last one."""
        self._ready.pop(slot, None)
        await asyncio.to_thread(self._remove, self.names(slot))

    def _remove(self, names: SlotNames) -> None:
        self._fabric.disconnect(names)
        namespace.remove(names.netns_path)
        self._fabric.remove_if_empty()

    async def present(self) -> frozenset[int]:
        """Slots of this platform of which anything is there."""
        return await asyncio.to_thread(
            lambda: self._fabric.slots() | self._fabric.connected_slots()
        )

    async def drift(self, slot: int) -> tuple[str, ...]:
        """What of a slot is gone, each a sentence."""
        return await asyncio.to_thread(self._drift, self.names(slot))

    def _drift(self, names: SlotNames) -> tuple[str, ...]:
        missing: list[str] = []
        if names.slot not in self._fabric.connected_slots():
            missing.append(f"Its interface {names.veth} in the fabric is gone.")
        if not names.netns_path.exists():
            missing.append(f"Its network namespace {names.netns} is gone.")
            return tuple(missing)
        try:
            if naming.TAP not in namespace.run_in(names.netns_path, device_names):
                missing.append(f"Its tap {naming.TAP} is gone.")
        except OSError:
            missing.append(f"Its network namespace {names.netns} cannot be entered.")
        return tuple(missing)

    async def stats(self, slot: int) -> NetworkStats:
        """See `Network`.

        Raises:
            FailedPrecondition: the slot is not there.
        """
        return await asyncio.to_thread(self._stats, self.names(slot))

    def _stats(self, names: SlotNames) -> NetworkStats:
        def inside() -> tuple[tuple[int, int], list[dict[str, object]]]:
            with Firewall() as firewall:
                return device_bytes(naming.TAP), firewall.read("list counters")

        try:
            (out_bytes, in_bytes), counters = namespace.run_in(names.netns_path, inside)
        except OSError as error:
            raise FailedPrecondition("The network of the VM is not there.") from error
        refused = denied(counters, self._fabric.denied(), names.slot)
        return NetworkStats(in_bytes=in_bytes, out_bytes=out_bytes, denied=tuple(refused))

    # --- the pool ---------------------------------------------------------------------------------

    def reserve(self, slot: int) -> None:
        """See `Network`."""
        self._reserved.add(slot)

    async def prepare(self, slot: int, owner_uid: int) -> bool:
        """See `Network`; answers whether the slot is ready now.

        Raises:
            FailedPrecondition: the machine refuses.
        """
        names = self.names(slot)
        try:
            if not await asyncio.to_thread(self._take_over, names, owner_uid):
                await asyncio.to_thread(self._create_or_undo, names, owner_uid, Plan(), made=False)
            if self._drained:
                # The end has come while it was being made.
                await asyncio.to_thread(self._remove, names)
                self._fabric.close()
                return False
            self._ready[slot] = owner_uid
        except SlotTakenError:
            return False
        finally:
            self._reserved.discard(slot)
        return True

    def _take_over(self, names: SlotNames, owner_uid: int) -> bool:
        """Whether a slot that an earlier metald has made is as good as a new one."""
        if not names.netns_path.exists():
            return False
        try:
            found = self._mend(names, owner_uid, Plan(), None)
        except (OSError, LinkError, FirewallError):
            found = ("It cannot be mended.",)
        if found:
            self._remove(names)
        return not found

    async def drain(self) -> None:
        """See `Network`."""
        self._drained = True
        slots = list(self._ready)
        self._ready.clear()
        # At once: most of a removal is waiting for the kernel.
        await asyncio.gather(*(asyncio.to_thread(self._remove, self.names(slot)) for slot in slots))
        await asyncio.to_thread(self._fabric.remove_if_empty)
        self._fabric.close()

    def close(self) -> None:
        """Let go of sockets and leave everything as it is."""
        self._fabric.close()

    async def mend_fabric(self) -> bool:
        """Make again what is gone of what all slots share; answers whether anything was."""
        try:
            return await asyncio.to_thread(self._fabric.mend)
        except (OSError, LinkError, FirewallError) as error:
            raise Internal(
                "The network of the host could not be mended.", context={"error": str(error)}
            ) from error


def _tap(links: Links, owner_uid: int) -> None:
    make_tap(naming.TAP, owner_uid)
    links.set_link_address(naming.TAP, naming.GATEWAY_MAC)
    links.add_address(naming.TAP, naming.GATEWAY_ADDRESS, naming.GUEST_PREFIX_LENGTH)
    links.add_address(naming.TAP, naming.GATEWAY_ADDRESS_V6, naming.GUEST_PREFIX_LENGTH_V6)
    links.up(naming.TAP)
    # The guest is never asked for its MAC address: it could lie, and it would cost time.
    for address in (naming.GUEST_ADDRESS, naming.GUEST_ADDRESS_V6):
        links.add_neighbour(naming.TAP, address, naming.GUEST_MAC)


def _has_all_rules(firewall: Firewall, names: SlotNames, plan: Plan) -> bool:
    return all(
        firewall.has_rules(table, rules.rules_of(script))
        for table, script in rules.slot_scripts(names, plan.network)
    )


def _explained(error: BaseException, names: SlotNames) -> BaseException:
    if isinstance(error, LinkError):
        if error.number == errno.EEXIST:
            return SlotTakenError(f"{names.veth} or the route to {names.address} exists.")
        return FailedPrecondition(
            f"The network of the VM could not be made: {error}.",
            hint="`iron doctor` says what the host lacks.",
        )
    if isinstance(error, FirewallError):
        return Internal(
            "The firewall of the VM could not be set.", context={"nftables": str(error)}
        )
    if isinstance(error, FileNotFoundError):
        return FailedPrecondition(
            f"The network of the VM could not be made: {error.filename} is missing.",
            hint="Run `./iron setup`, which installs deploy/debian-packages.txt.",
        )
    if isinstance(error, PermissionError):
        return FailedPrecondition(
            "The network of the VM could not be made: metald may not make namespaces.",
            hint="Run it as root.",
        )
    return error
