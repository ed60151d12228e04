"""The network of VMs: a namespace for each, and a fabric that joins them.

    guest 172.16.0.2 ── iwtap0 172.16.0.1 │ nftables: guard, 1:1 NAT, policy │ iwveth0 ──┐
    (the same in every VM)                │ namespace iw-<tag>-<slot>                    │
                                                                                         │
    ┌── iw<tag>v<slot>, routes 198.18.x.y/32 and fd69:726f:6e77::n/128 ──────────────────┘
    │   nftables: VMs of one tenant reach each other, all others do not
    │   namespace iw-<tag>-fabric
    └── iwuplink ── iw<tag>up 198.18.0.1, root namespace: published ports, a way out

- A slot is a number; every name, address and uid of a VM follows from it and from the host's tag,
  so that what is found on the machine says whose it is, and two platforms never meet.
- What a VM may do is its `Plan`, which follows from its record in the store. All of it can be made
  again from there, and is (`mend`), whoever has removed or changed it.
- The guest can send only frames with its own MAC and IP addresses; it cannot reach the host, the
  metadata addresses or another tenant's VM, and opens nothing that its plan does not name. What is
  refused is counted.
- A slot knows nothing of its VM until it gets a plan: so slots can be made before there are VMs.
"""
