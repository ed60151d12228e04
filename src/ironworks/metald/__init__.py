"""metald owns the VMs of one host: lifecycle, admission, jail, network, sampling.

    REQUESTED → CREATING → CREATED → BOOTING → RUNNING ⇄ PAUSED
                              └─────────┴──→ STOPPING ←──┘
    STOPPING → STOPPED → DELETING → DELETED
    every state up to STOPPING → FAILED, with a reason; FAILED → DELETING

Invariants:
- What will be done to a VM is in the store before it is done; a restart derives everything from the
  store and from what is really there. No VM ends because metald does.
- One transition at a time per VM.
- RUNNING means: the workload was started, is metered, and was ready; `ready` says whether it is
  now.
- In STOPPED, FAILED and DELETED nothing of a VM is on the machine but the record and, until it is
  deleted, its console. A VM has a slot in the store for as long as anything else may be there.
- Everything on the machine carries the platform's tag in its name; what carries another is never
  touched.
- The memory and vCPUs of VMs that have a process never exceed the host's capacity.
"""
