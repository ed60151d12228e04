"""The network of a VM: a namespace of its own, a tap in it, a veth pair out of it.

    guest 172.16.0.2 ── iwtap0 172.16.0.1 │ nftables, 1:1 NAT │ iwveth0 198.18.x.y ──┐
    (the same in every VM)                │  namespace iw-<tag>-<slot>               │
                                                                                     │
    root namespace: 198.18.0.1 ── iw<tag>v<slot>, route 198.18.x.y/32 ───────────────┘

- A slot is a number; every name, address and uid of a VM follows from it and from the host's tag,
  so that what is found on the machine says whose it is, and two platforms never meet.
- Nothing else of the root namespace is changed: no bridge, no rule, no sysctl; when the veth goes,
  its address and route go with it.
- The guest can send only frames with its own MAC and IP address, and only replies leave; it cannot
  reach the host, the metadata address or another VM. What is refused is counted.
"""
