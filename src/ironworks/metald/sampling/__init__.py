"""Reads what every VM of the host consumes, every 100 ms, and streams it to billaged.

    attach ──first sample──▶ sampled at every tick ──detach: last sample──▶ gone

Invariants:
- One grid of ticks for all VMs: instant k is k times 100 ms of the host's monotonic clock. A
  sample's sequence number is k. A tick that is missed is a number that is missing; it is declared
  as lost and never made up, so ticks never bunch.
- Absent is not zero: a reading that fails is absent with a reason.
- `attach` returns after the VM's first sample was taken, `detach` after its last. Call `attach`
  when the VM's cgroup, tap and VMM exist and before the VM is reported Running; call `detach` when
  the VMM has ended and before its cgroup and namespace are removed.
- What billaged has not acknowledged is kept in a bounded ring and sent again after a reconnect.
"""

from __future__ import annotations

from typing import Protocol

from ironworks.metald.sampling.types import (
    AbsenceReason,
    BlockCounters,
    BlockReader,
    CgroupFiles,
    Counter,
    VmSource,
)

__all__ = [
    "AbsenceReason",
    "BlockCounters",
    "BlockReader",
    "CgroupFiles",
    "Counter",
    "Sampler",
    "VmSource",
]


class Sampler(Protocol):
    """What the rest of metald calls; the real one is `sampling.sampler.HostSampler`."""

    async def attach(self, vm: VmSource) -> None:
        """Take the VM's first sample and read it at every tick from now on.

        Idempotent: attaching the same VM and epoch again replaces its source and provisioning
        (a resize; a VMM found again after a restart of metald) and takes a sample.

        Never raises for a source that cannot be read: those readings are absent.
        """
        ...

    async def detach(self, vm_id: str) -> None:
        """Take the VM's last sample and forget it. Unknown VMs are ignored."""
        ...
