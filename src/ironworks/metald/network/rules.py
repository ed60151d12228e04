"""The nftables rules, as text for libnftables; pure.

There are three places, each with what only it can know:

- A VM's namespace: `iwguard` sits on the tap itself and lets through nothing that does not carry
  the guest's own MAC and IP addresses; `iw` translates one to one, and holds the VM's own policy.
- The fabric's namespace: `iwfabric` knows the tenants, and forwards between VMs of one only.
- The root namespace: one table, named after the platform, publishes ports, translates what leaves
  the machine, and keeps VMs from the host itself.

What is translated to the guest's address reaches a VM's namespace itself only where the fake
driver's workload, a process of the host, has that address.
"""

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from ironworks.metald.network import naming
from ironworks.metald.network.naming import FabricNames, SlotNames, tenant_label
from ironworks.metald.types import EgressRule, NetworkSpec, Protocol, PublishedPort

DENIED_COUNTERS = (
    "spoofed_mac",
    "spoofed_address",
    "metadata",
    "host",
    "egress",
)
"""Counters in a VM's namespace of refused packets, each named as its rule."""

GUARD = "iwguard"
"""The table on a VM's tap."""

TO_VMS = "to_vms"
"""The counter in it of what the guest sends to other VMs, whether they take it or not."""

PEER = "peer"
"""What the fabric refuses: the other end is no VM of the same tenant."""

METADATA = ("169.254.0.0/16", "fd00:ec2::/32", "fd20:ce::/32", "fe80::/10")
"""Link-local addresses, and where clouds answer questions about the machine: never a guest's."""

_JUMP = re.compile(r"jump t4_([0-9a-f]+)")
_ND = "nd-neighbor-solicit, nd-neighbor-advert"


def _of_family(texts: Iterable[str], version: int) -> str:
    return ", ".join(text for text in texts if (6 if ":" in text else 4) == version)


SLOT_TABLES = (f"netdev {GUARD}", "ip iwnat", "ip6 iwnat", "inet iw")
"""All that a VM's namespace has."""


def slot_rules(names: SlotNames) -> str:
    """What a slot's namespace has from the start: nothing may be opened by the guest."""
    return "".join(script for _, script in slot_scripts(names, NetworkSpec()))


def slot_scripts(names: SlotNames, network: NetworkSpec) -> Iterable[tuple[str, str]]:
    """Each of `SLOT_TABLES` with its script, the VM's own policy in it."""
    egress = "".join(f"    {rule}\n" for rule in _egress_rules(network))
    scripts = (_guard(), _translation_v4(names), _translation_v6(names), _policy_chains(egress))
    return zip(SLOT_TABLES, scripts, strict=True)


def _guard() -> str:
    guest, mac, guest_v6 = naming.GUEST_ADDRESS, naming.GUEST_MAC, naming.GUEST_ADDRESS_V6
    local = naming.GUEST_LINK_LOCAL
    own = f"{int(guest_v6):#x}, {int(local):#x}"
    hosts = f"{{ {naming.HOST_ADDRESS}, {naming.ROUTER_ADDRESS} }}"
    counted = f"counter name {TO_VMS}"
    to_vms = f"ip daddr {naming.FABRIC} ip daddr != {hosts} {counted}"
    to_vms_v6 = f"ip6 daddr {naming.FABRIC_V6} ip6 daddr != {naming.HOST_ADDRESS_V6} {counted}"
    return f"""
table netdev {GUARD} {{
  counter spoofed_mac {{ }}
  counter spoofed_address {{ }}
  counter {TO_VMS} {{ }}
  chain from_guest {{
    type filter hook ingress device "{naming.TAP}" priority -500; policy drop;
    ether saddr != {mac} counter name spoofed_mac drop
    # What goes to other VMs is counted by itself, here, where the tap counts all.
    ether type ip ip saddr {guest} {to_vms} accept
    ether type ip ip saddr {guest} accept
    ether type arp arp saddr ether {mac} arp saddr ip {guest} accept
    # Neighbour advertisements may speak of the guest's own addresses only.
    icmpv6 type nd-neighbor-advert @th,64,128 != {{ {own} }} counter name spoofed_address drop
    icmpv6 type {{ nd-router-advert, nd-redirect }} counter name spoofed_address drop
    ether type ip6 ip6 saddr {guest_v6} {to_vms_v6} accept
    ether type ip6 ip6 saddr {guest_v6} accept
    ether type ip6 ip6 saddr {local} ip6 nexthdr {{ ipv6-icmp, hopopt }} accept
    # What a kernel sends to learn whether its address is free, before it has one.
    ether type ip6 ip6 saddr :: icmpv6 type {{ nd-neighbor-solicit, mld2-listener-report }} accept
    ether type ip6 ip6 saddr :: ip6 nexthdr hopopt accept
    counter name spoofed_address drop
  }}
}}
"""


def _translation_v4(names: SlotNames) -> str:
    veth = naming.INNER_VETH
    return f"""
table ip iwnat {{
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    iifname "{veth}" ip daddr {names.address} dnat to {naming.GUEST_ADDRESS}
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname "{veth}" ip saddr {naming.GUEST_ADDRESS} snat to {names.address}
  }}
}}
"""


def _translation_v6(names: SlotNames) -> str:
    veth = naming.INNER_VETH
    return f"""
table ip6 iwnat {{
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    iifname "{veth}" ip6 daddr {names.address_v6} dnat to {naming.GUEST_ADDRESS_V6}
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname "{veth}" ip6 saddr {naming.GUEST_ADDRESS_V6} snat to {names.address_v6}
  }}
}}
"""


def _policy_chains(egress: str) -> str:
    tap, veth = naming.TAP, naming.INNER_VETH
    hosts = f"{naming.HOST_ADDRESS}, {naming.ROUTER_ADDRESS}"
    return f"""
table inet iw {{
  counter metadata {{ }}
  counter host {{ }}
  counter egress {{ }}
  chain egress {{
{egress}  }}
  chain opened_by_guest {{
    ip daddr {{ {_of_family(METADATA, 4)} }} counter name metadata drop
    ip6 daddr {{ {_of_family(METADATA, 6)} }} counter name metadata drop
    ip daddr {{ {hosts} }} counter name host drop
    ip6 daddr {naming.HOST_ADDRESS_V6} counter name host drop
    ip daddr {naming.FABRIC} accept
    ip6 daddr {naming.FABRIC_V6} accept
    jump egress
    counter name egress drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    ct state invalid drop
    ct state related accept
    # Every packet of what the guest opened is judged, so that a new policy binds at once.
    iifname "{tap}" oifname "{veth}" ct direction original goto opened_by_guest
    iifname "{tap}" ct state established accept
    iifname "{veth}" ct direction reply ct state established accept
    iifname "{veth}" ct status dnat accept
  }}
  chain input {{
    type filter hook input priority filter; policy drop;
    icmpv6 type {{ {_ND} }} accept
    icmpv6 type {{ nd-router-solicit, mld2-listener-report, mld-listener-report }} drop
    ct state established,related accept
    iifname "{veth}" ct status dnat accept
    ip daddr {{ {_of_family(METADATA, 4)} }} counter name metadata drop
    counter name host drop
  }}
}}
"""


def policy_rules(network: NetworkSpec) -> str:
    """A VM's own policy, in place of the one that its namespace has."""
    lines = [f"add rule inet iw egress {rule}" for rule in _egress_rules(network)]
    return "\n".join(["flush chain inet iw egress", *lines])


def _egress_rules(network: NetworkSpec) -> Iterable[str]:
    for rule in network.egress:
        yield f"{_egress(rule)} accept"
    for server in network.nameservers:
        family = "ip6" if ":" in server else "ip"
        yield f"{family} daddr {server} meta l4proto {{ tcp, udp }} th dport 53 accept"


def _egress(rule: EgressRule) -> str:
    family = "ip6" if ":" in rule.cidr else "ip"
    words = [f"{family} daddr {rule.cidr}"]
    if rule.first_port:
        last = rule.last_port or rule.first_port
        ports = str(rule.first_port) if last == rule.first_port else f"{rule.first_port}-{last}"
        words += [_l4(rule.protocol), f"th dport {ports}"]
    elif rule.protocol is not Protocol.ANY:
        words.append(_l4(rule.protocol))
    return " ".join(words)


def _l4(protocol: Protocol) -> str:
    return "meta l4proto " + ("{ tcp, udp }" if protocol is Protocol.ANY else protocol.value)


# --- the fabric -----------------------------------------------------------------------------------


def fabric_rules() -> str:
    """What the fabric's namespace has before any VM is in it."""
    uplink = naming.INNER_UPLINK
    return f"""
table inet iwfabric {{
  map tenant4 {{ type ipv4_addr : verdict; }}
  map tenant6 {{ type ipv6_addr : verdict; }}
  set denied4 {{ type ipv4_addr; size {naming.SLOT_COUNT}; flags dynamic; }}
  set denied6 {{ type ipv6_addr; size {naming.SLOT_COUNT}; flags dynamic; }}
  chain prerouting {{
    type filter hook prerouting priority raw; policy accept;
    notrack
    iifname "{uplink}" accept
    # Nobody speaks in another's name, whatever went wrong in its namespace.
    meta nfproto ipv4 fib saddr . iif oif missing drop
    meta nfproto ipv6 fib saddr . iif oif missing drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    iifname "{uplink}" accept
    oifname "{uplink}" ip daddr {naming.HOST_ADDRESS} accept
    oifname "{uplink}" ip6 daddr {naming.HOST_ADDRESS_V6} accept
    oifname "{uplink}" ip daddr != {naming.FABRIC} accept
    oifname "{uplink}" ip6 daddr != {naming.FABRIC_V6} accept
    ip saddr vmap @tenant4
    ip6 saddr vmap @tenant6
    update @denied4 {{ ip saddr counter }} drop
    update @denied6 {{ ip6 saddr counter }} drop
  }}
  chain input {{
    type filter hook input priority filter; policy drop;
  }}
  chain output {{
    type filter hook output priority filter; policy accept;
    # A packet to an address that nobody has is refused as one that nobody may reach is: in silence.
    icmp type destination-unreachable drop
    icmpv6 type destination-unreachable drop
  }}
}}
"""


def join_tenant(names: SlotNames, tenant_id: str) -> str:
    """Make a VM, which is in no tenant's fabric, a member of one."""
    label = tenant_label(tenant_id)
    lines: list[str] = []
    for family, version, address in (
        ("ipv4_addr", 4, names.address),
        ("ipv6_addr", 6, names.address_v6),
    ):
        word = "ip" if version == 4 else "ip6"  # noqa: PLR2004 - of IP
        members = f"m{version}_{label}"
        lines += [
            f"add set inet iwfabric {members} {{ type {family}; }}",
            f"add chain inet iwfabric t{version}_{label}",
            f"flush chain inet iwfabric t{version}_{label}",
            f"add rule inet iwfabric t{version}_{label} {word} daddr @{members} accept",
            f"add element inet iwfabric {members} {{ {address} }}",
            f"add element inet iwfabric tenant{version} {{ {address} : jump t{version}_{label} }}",
        ]
    return "\n".join(lines)


def leave_tenant(names: SlotNames, label: str) -> str:
    """Take a VM out of the fabric of a tenant."""
    table, lines = "inet iwfabric", list[str]()
    for version, address in ((4, names.address), (6, names.address_v6)):
        members = f"{table} m{version}_{label} {{ {address} }}"
        lines += [
            f"delete element {table} tenant{version} {{ {address} : jump t{version}_{label} }}",
            # Added before it is removed, so that it need not be there.
            f"add element {members}",
            f"delete element {members}",
        ]
    return "\n".join(lines)


def forget_denied(names: SlotNames) -> str:
    """Begin to count anew what the fabric refuses of a slot."""
    table = "inet iwfabric"
    return "\n".join(
        f"add element {table} denied{version} {{ {address} }}\n"
        f"delete element {table} denied{version} {{ {address} }}"
        for version, address in ((4, names.address), (6, names.address_v6))
    )


def drop_tenant(label: str) -> str:
    """Remove what a tenant without VMs has left."""
    lines: list[str] = []
    for version in (4, 6):
        lines += [
            f"delete chain inet iwfabric t{version}_{label}",
            f"delete set inet iwfabric m{version}_{label}",
        ]
    return "\n".join(lines)


# --- the root namespace ---------------------------------------------------------------------------


def host_rules(names: FabricNames, *, guarded: Iterable[str]) -> str:
    """The platform's table of the root namespace, without any port published.

    Args:
        names: Of the platform.
        guarded: Interfaces that forward for VMs and for nothing else: those of a host that was
            no router before.
    """
    uplink, table = names.uplink, f"inet {names.table}"
    host, host_v6 = naming.HOST_ADDRESS, naming.HOST_ADDRESS_V6
    strangers = "\n".join(f'    iifname "{name}" oifname != "iw*" drop' for name in sorted(guarded))
    return f"""
add table {table}
delete table {table}
table {table} {{
  map published4 {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
  map published6 {{ type inet_proto . inet_service : ipv6_addr . inet_service; }}
  chain publish {{
    # The destination must be an address of the host: what VMs or the host send elsewhere is not
    # caught, whatever its port.
    fib daddr type != local return
    meta nfproto ipv4 dnat ip to meta l4proto . th dport map @published4
    meta nfproto ipv6 dnat ip6 to meta l4proto . th dport map @published6
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    iifname "{uplink}" return
    meta l4proto {{ tcp, udp }} jump publish
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    meta l4proto {{ tcp, udp }} jump publish
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    # A program of this host that asked for one of the host's addresses.
    oifname "{uplink}" ip saddr != {host} fib saddr type local snat ip to {host}
    oifname "{uplink}" ip6 saddr != {host_v6} fib saddr type local snat ip6 to {host_v6}
    iifname "{uplink}" oifname != "{uplink}" masquerade
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    oifname "{uplink}" ct direction original ct status dnat accept
    oifname "{uplink}" ct direction reply ct state established,related accept
    oifname "{uplink}" ct state related accept
    oifname "{uplink}" drop
{strangers}
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname "{uplink}" ct direction reply ct state established accept
    iifname "{uplink}" ct state related accept
    iifname "{uplink}" drop
  }}
}}
"""


def publish(names: FabricNames, slot: SlotNames, ports: Iterable[PublishedPort]) -> str:
    """Publish ports of one VM."""
    return "\n".join(
        f"add element inet {names.table} {key}" for key in _published(slot, ports, with_target=True)
    )


def unpublish(names: FabricNames, slot: SlotNames, ports: Iterable[PublishedPort]) -> str:
    """Take published ports of one VM back; they must be there."""
    return "\n".join(
        f"delete element inet {names.table} {key}"
        for key in _published(slot, ports, with_target=False)
    )


def _published(
    slot: SlotNames, ports: Iterable[PublishedPort], *, with_target: bool
) -> Iterable[str]:
    addresses: tuple[tuple[int, IPv4Address | IPv6Address], ...] = (
        (4, slot.address),
        (6, slot.address_v6),
    )
    for port in ports:
        for version, address in addresses:
            key = f"{port.protocol} . {port.host_port}"
            target = f" : {address} . {port.guest_port}" if with_target else ""
            yield f"published{version} {{ {key}{target} }}"


def tenant_of(answer: str) -> str:
    """The tenant's label in the answer of `get element` of the fabric's map; empty without one."""
    match = _JUMP.search(answer)
    return match[1] if match else ""


def published_of(answer: Iterable[Mapping[str, Any]], address: str) -> list[PublishedPort]:
    """The ports of one fabric address, from the answer of `list map` of the host's table."""
    found: list[PublishedPort] = []
    for one in answer:
        for key, target in one.get("map", {}).get("elem", []):
            protocol, host_port = key["concat"]
            to_address, guest_port = target["concat"]
            if to_address == address:
                found.append(
                    PublishedPort(
                        protocol=Protocol(protocol), host_port=host_port, guest_port=guest_port
                    )
                )
    return found


def rules_of(script: str) -> dict[str, int]:
    """Chain → number of its rules, in a script of one table written as the ones of this module."""
    found: dict[str, int] = {}
    chain = ""
    for line in script.splitlines():
        text = line.strip()
        if text.startswith("chain ") and text.endswith("{"):
            chain = text.split()[1]
            found[chain] = 0
        elif text == "}":
            chain = ""
        elif chain and text and not text.startswith(("#", "type ")):
            found[chain] += 1
    return found
