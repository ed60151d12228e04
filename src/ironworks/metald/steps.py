"""Names for every step that touches the machine, and the place where a test can make one fail.

An effect calls `await steps.reach("vmm.spawn", vm_id)` right before it does what the name says. In
production nothing happens there. A fault test passes an object of its own that raises, waits or
kills the process at the step it chose, and then looks for what was left behind; because the names
are the members of `Step`, the test can prove that it skipped none.
"""

from enum import StrEnum
from typing import Protocol


class Step(StrEnum):
    """Every step of creating, booting, stopping and deleting a VM, in the order of its life."""

    ASSET_LEASE = "asset.lease"
    NETWORK_SLOT = "network.slot"
    CGROUP_CREATE = "cgroup.create"
    JAIL_DIRECTORY = "jail.directory"
    ASSET_PREPARE = "asset.prepare"
    JAIL_PREPARE = "jail.prepare"
    """The driver lays out the jail: directories, device nodes, ownership."""
    VMM_CONFIGURE = "vmm.configure"
    """The driver writes what the VMM and the guest are told."""
    VMM_SPAWN = "vmm.spawn"
    """The driver starts the VMM's process inside jail, namespace and cgroup."""
    VMM_CONNECT = "vmm.connect"
    """The driver opens the VMM's control socket."""
    GUEST_START = "guest.start"
    """The driver lets the vCPUs run."""
    GUEST_READY = "guest.ready"
    """The guest's init has said that the workload runs."""
    METERING_ATTACH = "metering.attach"
    READINESS_PORT = "readiness.port"
    GUEST_PAUSE = "guest.pause"
    GUEST_RESUME = "guest.resume"
    GUEST_SHUTDOWN = "guest.shutdown"
    """The driver asks the guest to end."""
    VMM_KILL = "vmm.kill"
    METERING_DETACH = "metering.detach"
    VMM_DESTROY = "vmm.destroy"
    """The driver removes what it made."""
    JAIL_REMOVE = "jail.remove"
    CGROUP_REMOVE = "cgroup.remove"
    NETWORK_REMOVE = "network.remove"
    ASSET_RELEASE = "asset.release"


class Steps(Protocol):
    """Told of every step before it is taken."""

    async def reach(self, step: Step, vm_id: str) -> None:
        """Called right before `step` is taken for `vm_id`; what it raises fails the step."""
        ...


class NoSteps:
    """The production `Steps`: nothing happens."""

    async def reach(self, step: Step, vm_id: str) -> None:
        """Return at once."""
