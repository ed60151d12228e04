"""The nftables rules of a VM's namespace, as text for `nft -f -`; pure.

Two tables: `iwguard` sits on the tap itself and lets through nothing that does not carry the
guest's own MAC and IP address; `iw` translates one to one and decides what may pass. What is
translated to the guest's address reaches the namespace itself only where the fake driver's
workload, a process of the host, has that address.
"""

from ironworks.metald.network import naming
from ironworks.metald.network.naming import SlotNames

DENIED_COUNTERS = ("spoofed_mac", "spoofed_address", "metadata", "peer", "host", "egress")
"""Counters of refused packets, each named as its rule."""


def ruleset(names: SlotNames) -> str:
    """All rules of a slot's namespace."""
    tap, veth = naming.TAP, naming.INNER_VETH
    guest, mac = naming.GUEST_ADDRESS, naming.GUEST_MAC
    return f"""
table netdev iwguard {{
  counter spoofed_mac {{ }}
  counter spoofed_address {{ }}
  chain from_guest {{
    type filter hook ingress device "{tap}" priority -500; policy drop;
    ether saddr != {mac} counter name spoofed_mac drop
    ether type arp arp saddr ether {mac} arp saddr ip {guest} accept
    ether type ip ip saddr {guest} accept
    counter name spoofed_address drop
  }}
}}
table ip iw {{
  counter metadata {{ }}
  counter peer {{ }}
  counter host {{ }}
  counter egress {{ }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    iifname "{veth}" ip daddr {names.address} dnat to {guest}
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname "{veth}" ip saddr {guest} snat to {names.address}
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    ct state invalid drop
    ct state established,related accept
    iifname "{veth}" ip saddr {naming.HOST_ADDRESS} ct status dnat accept
    iifname "{veth}" ip saddr {naming.FABRIC} counter name peer drop
    iifname "{veth}" ct status dnat accept
    iifname "{tap}" ip daddr 169.254.0.0/16 counter name metadata drop
    iifname "{tap}" ip daddr {naming.FABRIC} counter name peer drop
    iifname "{tap}" counter name egress drop
  }}
  chain input {{
    type filter hook input priority filter; policy drop;
    ct state established,related accept
    iifname "{veth}" ip daddr {guest} ct status dnat accept
    counter name host drop
  }}
}}
"""
