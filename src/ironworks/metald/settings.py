"""Settings of metald; each has a default that works on one machine."""

import os
import socket
from pathlib import Path

from pydantic import Field

from ironworks.metald.drivers.driver import DriverKind
from ironworks.metald.types import MAX_VCPUS, Limits, Resources
from ironworks.model.units import KIB, MIB
from ironworks.runtime.settings import Settings

_HOST_RESERVE_BYTES = 1024 * MIB
_MIN_UID = 65_536


class MetaldSettings(Settings):
    """What an operator may say of this host."""

    driver: DriverKind | None = Field(
        default=None, description="Driver of new VMs; empty: firecracker or qemu as probed."
    )
    host_name: str = Field(
        default="", max_length=63, description="Name in the directory; empty: the hostname."
    )
    host_region: str = Field(default="", max_length=63, description="Region of this host.")
    host_zone: str = Field(default="", max_length=63, description="Zone of this host.")
    cpu_overcommit: float = Field(
        default=8.0, ge=0.1, le=100, description="vCPUs per CPU of the host."
    )
    memory_overcommit: float = Field(
        default=1.0, ge=0.1, le=10, description="VM memory per byte of the host's, less its share."
    )
    host_memory_reserve_bytes: int = Field(
        default=_HOST_RESERVE_BYTES, ge=0, description="Memory that VMs never get."
    )
    max_vms: int = Field(default=1000, ge=1, le=100_000, description="VMs at once.")
    vm_uid_first: int = Field(
        default=1_000_000, ge=_MIN_UID, le=2_000_000_000, description="First uid and gid of VMMs."
    )
    vmm_extra_cpus: float = Field(
        default=0.25, ge=0, le=8, description="CPU time of a VMM on top of its vCPUs."
    )
    vmm_pids: int = Field(default=128, ge=16, le=4096, description="Threads of one VM at most.")
    console_max_bytes: int = Field(
        default=8 * MIB, ge=64 * KIB, description="Bytes kept of a VM's console."
    )
    boot_timeout_seconds: float = Field(default=60.0, ge=1, le=600)
    boot_timeout_emulated_seconds: float = Field(default=120.0, ge=1, le=600)
    shutdown_timeout_seconds: float = Field(default=30.0, ge=0.1, le=600)
    tombstone_seconds: float = Field(
        default=86_400.0, ge=60, description="How long a deleted VM is remembered."
    )

    @property
    def jails_dir(self) -> Path:
        """Where the jails of VMs are."""
        return self.data_dir / "jails"

    @property
    def own_dir(self) -> Path:
        """Metald's own state."""
        return self.data_dir / "metald"

    @property
    def consoles_dir(self) -> Path:
        """Where the consoles of ended VMs are kept until they are deleted."""
        return self.own_dir / "consoles"

    @property
    def effective_host_name(self) -> str:
        """The host's name as the directory takes it: `[a-z0-9-]{1,63}`."""
        raw = self.host_name or socket.gethostname()
        name = "".join(char if char.isalnum() else "-" for char in raw.lower())[:63].strip("-")
        return name.encode("ascii", "ignore").decode() or "host"

    def limits(self, *, cpus: int, memory_total_bytes: int) -> Limits:
        """What VMs may have of a host with so many CPUs and so much memory."""
        memory = max(0, memory_total_bytes - self.host_memory_reserve_bytes)
        return Limits(
            capacity=Resources(
                vcpus=int(cpus * self.cpu_overcommit),
                memory_bytes=int(memory * self.memory_overcommit),
                vms=self.max_vms,
            ),
            largest=Resources(vcpus=min(cpus, MAX_VCPUS), memory_bytes=memory, vms=1),
        )


def host_size() -> tuple[int, int]:
    """CPUs that this process may use, and bytes of memory of the machine."""
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return len(os.sched_getaffinity(0)), pages * page_bytes
