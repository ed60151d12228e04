"""The fabric: the namespace that joins the VMs of a platform, and its way to the host.

    VM's namespace ── veth ──┐                                    ┌─ root namespace
    VM's namespace ── veth ──┤ namespace iw-<tag>-fabric          │
    VM's namespace ── veth ──┘ forwards between VMs of one tenant ┴─ iw<tag>up, 198.18.0.1

It is made with the first slot and removed with the last, so that nothing is left behind. Forwarding
happens in it, and not in the root namespace, whose firewall and sysctls stay the operator's own:
for VMs with a way out only, the interfaces of its default routes forward.

All methods block. One thread at a time changes the fabric.
"""

import contextlib
import errno
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ironworks.metald.network import namespace, naming, rules
from ironworks.metald.network.links import (
    LinkError,
    Links,
    device_names,
    read_sysctl,
    set_sysctls,
)
from ironworks.metald.network.naming import (
    SlotNames,
    fabric_of,
    slot_of_netns,
    slot_of_veth,
    tenant_label,
)
from ironworks.metald.network.nft import Firewall, FirewallError
from ironworks.metald.network.plan import Plan
from ironworks.metald.network.stats import Denied, denied_by_fabric
from ironworks.metald.types import PublishedPort

ROUTER_SYSCTLS = (
    ("ipv6/conf/all/disable_ipv6", "0"),
    ("ipv6/conf/default/disable_ipv6", "0"),
    # No addresses of its own making, no questions whether they are free: it would only cost time.
    ("ipv6/conf/all/addr_gen_mode", "1"),
    ("ipv6/conf/default/addr_gen_mode", "1"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv6/conf/default/forwarding", "1"),
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
)
"""Of a namespace that forwards."""

_DEFAULT_ROUTE = "00000000"


@dataclass(frozen=True, slots=True)
class Membership:
    """What the fabric and the host know of one slot."""

    tenant_label: str
    published: tuple[PublishedPort, ...]


_NOBODY = Membership("", ())


class Fabric:
    """The fabric of one platform."""

    def __init__(self, tag: str) -> None:
        """Work with what carries `tag` in its name; nothing is made yet."""
        self.tag = tag
        self.names = fabric_of(tag)
        self._lock = threading.RLock()
        self._inode = 0
        self._links: Links | None = None
        self._firewall: Firewall | None = None
        self._root_links: Links | None = None
        self._root_firewall: Firewall | None = None
        self._members: dict[int, Membership] = {}
        self._making: set[int] = set()

    # --- the fabric itself ------------------------------------------------------------------------

    @contextmanager
    def in_use(self, slot: int) -> Generator[None]:
        """Have the fabric, for as long as `slot` is being made or longer.

        Raises:
            LinkError: the kernel refuses a part of it; likewise FirewallError and OSError.
        """
        with self._lock:
            self._making.add(slot)
        try:
            self.ensure()
            yield
        finally:
            with self._lock:
                self._making.discard(slot)

    def ensure(self) -> bool:
        """Make what is missing of the fabric; answers whether anything was."""
        with self._lock:
            if self._is_whole():
                return False
            self._forget()
            if not namespace.is_bound(self.names.netns_path):
                namespace.remove(self.names.netns_path)
                with contextlib.suppress(FileExistsError):
                    namespace.create(self.names.netns_path, lambda: None)
            namespace.run_in(self.names.netns_path, self._enter)
            self._connect()
            self._inode = self.names.netns_path.stat().st_ino
            return True

    def _is_whole(self) -> bool:
        if self._links is None or self._root_links is None:
            return False
        try:
            inode = self.names.netns_path.stat().st_ino
        except FileNotFoundError:
            return False
        return inode == self._inode and self._root_links.index(self.names.uplink) is not None

    def _forget(self) -> None:
        for one in (self._links, self._firewall, self._root_links, self._root_firewall):
            if one is not None:
                one.close()
        self._links = self._firewall = self._root_links = self._root_firewall = None
        self._inode = 0
        self._members.clear()

    def _enter(self) -> None:
        """In the fabric's namespace: what is there whoever is connected."""
        set_sysctls(ROUTER_SYSCTLS)
        self._links, self._firewall = Links(), Firewall()
        self._links.up("lo")
        self._fabric_rules()

    def _fabric_rules(self) -> bool:
        text = rules.fabric_rules()
        if self._rules.has_rules("inet iwfabric", rules.rules_of(text)):
            return False
        self._rules.drop_table("inet iwfabric")
        self._rules.apply(text)
        self._members.clear()
        return True

    def _connect(self) -> None:
        """The veth pair between the fabric and the root namespace, its routes, the host's table."""
        self._root_links, self._root_firewall = Links(), Firewall()
        uplink, links, root = self.names.uplink, self._inner, self._root_links
        if root.index(uplink) is None or links.index(naming.INNER_UPLINK) is None:
            root.delete(uplink)
            links.delete(naming.INNER_UPLINK)
            root.add_veth(
                uplink,
                naming.INNER_UPLINK,
                self.names.netns_path,
                link_address="06:02:00:" + ":".join(self.tag[at : at + 2] for at in (0, 2, 4)),
            )
            set_sysctls(
                (
                    (f"ipv4/conf/{uplink}/forwarding", "1"),
                    # A program of this host may ask 127.0.0.1 for a published port.
                    (f"ipv4/conf/{uplink}/route_localnet", "1"),
                    (f"ipv6/conf/{uplink}/accept_ra", "0"),
                )
            )
            root.add_address(uplink, naming.HOST_ADDRESS, 32)
            links.up(naming.INNER_UPLINK)
            links.add_route(None, naming.INNER_UPLINK, gateway=naming.HOST_ADDRESS)
            links.add_route(None, naming.INNER_UPLINK, gateway=naming.ROUTER_ADDRESS_V6)
            # A host without IPv6 has VMs without IPv6 towards it; among each other they have it.
            with contextlib.suppress(LinkError):
                root.add_address(uplink, naming.HOST_ADDRESS_V6, 128)
        if not self._has_host_rules():
            self._host_rules()

    @property
    def _inner(self) -> Links:
        if self._links is None:
            raise LinkError(errno.ENODEV, "The fabric is not there.")
        return self._links

    @property
    def _root(self) -> Links:
        if self._root_links is None:
            raise LinkError(errno.ENODEV, "The fabric is not there.")
        return self._root_links

    @property
    def _rules(self) -> Firewall:
        if self._firewall is None:
            raise FirewallError("The fabric is not there.")
        return self._firewall

    @property
    def _host(self) -> Firewall:
        if self._root_firewall is None:
            raise FirewallError("The fabric is not there.")
        return self._root_firewall

    def _has_host_rules(self) -> bool:
        text = rules.host_rules(self.names, guarded=_strangers())
        return self._host.has_rules(f"inet {self.names.table}", rules.rules_of(text))

    def _host_rules(self) -> None:
        """The host's table anew, with every port that is known to be published."""
        text = [rules.host_rules(self.names, guarded=_strangers())]
        text += [
            rules.publish(self.names, naming.names_of(self.tag, slot), member.published)
            for slot, member in self._members.items()
        ]
        self._host.apply("\n".join(text))

    def remove_if_empty(self) -> None:
        """Remove the fabric if no slot is left in it, nor being made. Idempotent."""
        with self._lock:
            if self._making or self.slots():
                return
            self._forget()
            with Links() as links, Firewall() as firewall:
                links.delete(self.names.uplink)
                firewall.drop_table(f"inet {self.names.table}")
            namespace.remove(self.names.netns_path)

    def close(self) -> None:
        """Let go of sockets; what is on the machine stays, and they are opened again if need be."""
        with self._lock:
            self._forget()

    def slots(self) -> frozenset[int]:
        """Slots of which a namespace is there."""
        try:
            names = [path.name for path in naming.NETNS_DIRECTORY.iterdir()]
        except FileNotFoundError:
            return frozenset()
        slots = (slot_of_netns(self.tag, name) for name in names)
        return frozenset(slot for slot in slots if slot is not None)

    def connected_slots(self) -> frozenset[int]:
        """Slots of which an interface is in the fabric."""
        if not namespace.is_bound(self.names.netns_path):
            return frozenset()
        found = namespace.run_in(self.names.netns_path, device_names)
        slots = (slot_of_veth(self.tag, name) for name in found)
        return frozenset(slot for slot in slots if slot is not None)

    # --- slots in it ------------------------------------------------------------------------------

    def is_connected(self, names: SlotNames) -> bool:
        """Whether the slot's interface is in the fabric."""
        with self._lock:
            return self._links is not None and self._links.index(names.veth) == names.veth_index

    def connect(self, names: SlotNames) -> None:
        """Make the veth pair between the fabric and a slot's namespace, whose end is not up yet.

        Raises:
            LinkError: EEXIST if there is one.
        """
        with self._lock:
            self._inner.add_veth(
                names.veth,
                naming.INNER_VETH,
                names.netns_path,
                link_address=names.link_address,
                index=names.veth_index,
            )

    def route(self, names: SlotNames) -> None:
        """Lead the slot's addresses, from the host and in the fabric, to its interface.

        Raises:
            LinkError: EEXIST if another platform of this machine has the address.
        """
        with self._lock:
            gateway, gateway_v6 = naming.ROUTER_ADDRESS, naming.ROUTER_ADDRESS_V6
            self._root.add_route(
                names.address, self.names.uplink, gateway=gateway, source=naming.HOST_ADDRESS
            )
            with contextlib.suppress(LinkError):
                self._root.add_route(
                    names.address_v6,
                    self.names.uplink,
                    gateway=gateway_v6,
                    source=naming.HOST_ADDRESS_V6,
                )
            for address in (names.address, names.address_v6):
                try:
                    self._inner.add_route(address, names.veth)
                except LinkError as error:
                    if error.number != errno.EEXIST:
                        raise
            self._members.setdefault(names.slot, self._found(names))

    def restore_routes(self, names: SlotNames) -> None:
        """Lead the slot's addresses to it again, where that is gone."""
        # EEXIST: it is not gone.
        with contextlib.suppress(LinkError):
            self.route(names)
        with self._lock:
            for address in (names.address, names.address_v6):
                with contextlib.suppress(LinkError):
                    self._inner.add_route(address, names.veth)

    def disconnect(self, names: SlotNames) -> None:
        """Take a slot out of the fabric and of the host's routes. Idempotent."""
        with self._lock:
            if not namespace.is_bound(self.names.netns_path):
                return
            self.ensure()
            self.leave(names)
            self._rules.apply(rules.forget_denied(names))
            # Only a route that leads through our own uplink is ours.
            self._root.delete_route(names.address, self.names.uplink, naming.ROUTER_ADDRESS)
            self._root.delete_route(names.address_v6, self.names.uplink, naming.ROUTER_ADDRESS_V6)
            self._inner.delete(names.veth)

    def join(self, names: SlotNames, plan: Plan) -> None:
        """Make a slot a member of its tenant's fabric only, and publish its ports only."""
        with self._lock:
            if self._members.get(names.slot) != _NOBODY:
                self.leave(names)
            ports = plan.network.published_ports
            if plan.tenant_id:
                self._rules.apply(rules.join_tenant(names, plan.tenant_id))
            if ports:
                self._host.apply(rules.publish(self.names, names, ports))
            label = tenant_label(plan.tenant_id) if plan.tenant_id else ""
            self._members[names.slot] = Membership(label, ports)
            if plan.leaves_the_host:
                self._open_the_host()

    def leave(self, names: SlotNames) -> None:
        """Take a slot out of whatever fabric it is in, and its ports back."""
        member = self._members.pop(names.slot, None) or self._found(names)
        label = member.tenant_label
        if label:
            self._rules.apply(rules.leave_tenant(names, label))
            if not any(one.tenant_label == label for one in self._members.values()):
                # Refused while a VM that an earlier metald joined is in it.
                with contextlib.suppress(FirewallError):
                    self._drop_if_empty(label)
        if member.published:
            self._host.apply(rules.unpublish(self.names, names, member.published))

    def _drop_if_empty(self, label: str) -> None:
        answer = self._rules.read(f"list set inet iwfabric m4_{label}")
        if not any(one["set"].get("elem") for one in answer if "set" in one):
            self._rules.apply(rules.drop_tenant(label))

    def is_member(self, names: SlotNames, plan: Plan) -> bool:
        """Whether fabric and host have the slot as `plan` says."""
        with self._lock:
            found = self._found(names)
            label = tenant_label(plan.tenant_id) if plan.tenant_id else ""
            ports = frozenset(found.published)
            return found.tenant_label == label and ports == frozenset(plan.network.published_ports)

    def _found(self, names: SlotNames) -> Membership:
        """What nftables says of a slot: for those that another metald has joined."""
        label = ""
        with contextlib.suppress(FirewallError):
            asked = f"get element inet iwfabric tenant4 {{ {names.address} }}"
            label = rules.tenant_of(self._rules.read_text(asked))
        published: list[PublishedPort] = []
        with contextlib.suppress(FirewallError):
            answer = self._host.read(f"list map inet {self.names.table} published4")
            published = rules.published_of(answer, str(names.address))
        return Membership(label, tuple(published))

    def denied(self) -> dict[int, Denied]:
        """Slot → what the fabric has refused of it."""
        with self._lock:
            answers: list[dict[str, Any]] = []
            with contextlib.suppress(FirewallError):
                for version in (4, 6):
                    answers += self._rules.read(f"list set inet iwfabric denied{version}")
            return denied_by_fabric(answers)

    # --- the host ---------------------------------------------------------------------------------

    def _open_the_host(self) -> None:
        """Let the interfaces of the default routes forward: for what a VM may open or publish."""
        outside = _outside()
        set_sysctls((f"ipv4/conf/{name}/forwarding", "1") for name in outside)
        if not self._has_host_rules():
            self._host_rules()

    def mend(self) -> bool:
        """Make again what is gone of the fabric, the uplink and the host's table.

        What the operator has changed of the host's interfaces is followed too.

        Returns:
            Whether anything had to be done; slots have to `join` again then.
        """
        with self._lock:
            if not self._making and not self.slots():
                return False
            mended = self.ensure()
            mended = self._fabric_rules() or mended
            if not self._has_host_rules():
                self._host_rules()
                mended = True
            return mended


def _outside() -> frozenset[str]:
    """Interfaces of the default routes of this thread's namespace."""
    found: set[str] = set()
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/route").read_text(encoding="ascii").splitlines()[1:]:
            words = line.split()
            if words[1] == _DEFAULT_ROUTE and words[7] == _DEFAULT_ROUTE:
                found.add(words[0])
    return frozenset(found)


def _strangers() -> frozenset[str]:
    """Interfaces that forward for VMs only: those of a host that is no router by itself."""
    return frozenset() if read_sysctl("ipv4/ip_forward") == "1" else _outside()
