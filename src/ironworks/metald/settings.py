"""Settings of metald; each has a default that works on one machine."""

import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from ironworks.metald.drivers.driver import DriverKind
from ironworks.metald.types import MAX_VCPUS, Limits, Resources
from ironworks.model.units import GIB, KIB, MIB
from ironworks.runtime.settings import Settings

_HOST_RESERVE_BYTES = 1024 * MIB
_HOST_DISK_RESERVE_BYTES = 2 * GIB
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
    disk_overcommit: float = Field(
        default=1.0, ge=0.1, le=100, description="VM disk per byte of the data directory's disk."
    )
    host_memory_reserve_bytes: int = Field(
        default=_HOST_RESERVE_BYTES, ge=0, description="Memory that VMs never get."
    )
    host_disk_reserve_bytes: int = Field(
        default=_HOST_DISK_RESERVE_BYTES, ge=0, description="Disk that VMs never get."
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
    ready_slots: int = Field(
        default=8, ge=0, le=1000, description="Network slots kept ready for VMs to come."
    )
    reservation_seconds: float = Field(
        default=60.0, ge=1, le=3600, description="How long reserved capacity is kept for a VM."
    )
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

    @property
    def vmm_disk_bytes(self) -> int:
        """What a VM needs of the disk beside its own: its console, live and kept."""
        return 2 * self.console_max_bytes

    def limits(self, size: "HostSize") -> Limits:
        """What VMs may have of a host of this size."""
        memory_bytes = max(0, size.memory_bytes - self.host_memory_reserve_bytes)
        disk_bytes = max(0, size.disk_bytes - self.host_disk_reserve_bytes)
        return Limits(
            capacity=Resources(
                vcpus=int(size.cpus * self.cpu_overcommit),
                memory_bytes=int(memory_bytes * self.memory_overcommit),
                disk_bytes=int(disk_bytes * self.disk_overcommit),
                vms=self.max_vms,
            ),
            largest=Resources(
                vcpus=min(size.cpus, MAX_VCPUS),
                memory_bytes=memory_bytes,
                disk_bytes=disk_bytes,
                vms=1,
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSize:
    """What a machine has."""

    cpus: int
    """That this process may use."""
    memory_bytes: int
    disk_bytes: int
    """Of the file system of the data directory."""


def host_size(data_dir: Path) -> HostSize:
    """Size of this machine."""
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return HostSize(
        cpus=len(os.sched_getaffinity(0)),
        memory_bytes=pages * page_bytes,
        disk_bytes=shutil.disk_usage(data_dir).total,
    )
