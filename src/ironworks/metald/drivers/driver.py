"""What metald asks of a VMM.

`Driver` starts and adopts VMMs, `Handle` is one live VMM, `Evidence` is what the store keeps so
that another metald can find it again. The split is Nomad's (driver / handle / state). One
conformance suite, `tests/conformance/metald`, holds every driver to the texts below.

    probe ──► create ──► boot ──► wait_ready ──► … ──► shutdown ──► wait ──► destroy
                │          └── pause ⇄ resume            │            ▲
                │                                        └── kill ────┤
                ├── (metald dies, another starts) adopt(evidence) ────┤
                └── boot ◄── reboot(spec, evidence) ◄── wait ─────────┘

What holds for every driver:

- The VMM is a process in the network namespace, cgroup and jail of its `VmmSpec`, running as its
  uid and gid, and it outlives metald: it is in a session of its own, shares no pipe with metald,
  and is not a member of metald's cgroup.
- The driver makes nothing outside `spec.jail_dir` but processes. Namespace, tap, cgroup, the jail
  directory itself and the assets in it are made before `create` and removed after `destroy`, by
  metald.
- A method that fails raises `DriverError` with the step's name and a sentence for people. After a
  failed `create` nothing of the driver is left, and `destroy` may still be called.
- No method waits without a bound: waiting on a guest is done by `wait_ready` and `wait`, which the
  caller bounds.
- Methods of one handle are called one at a time, except `wait`, `wait_ready`, `block_counters` and
  `kill`, which may run beside any other.
"""

import signal as signals
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from ironworks.metald.steps import Step

CONSOLE_TAIL_LINES = 20
"""Lines of the console that an `ExitReport` carries, at most."""

CONSOLE_LINE_CHARS = 500
"""Characters of a console line that an `ExitReport` carries, at most."""


class DriverKind(StrEnum):
    """The drivers there are."""

    QEMU = "qemu"
    FIRECRACKER = "firecracker"
    FAKE = "fake"


class Accel(StrEnum):
    """How guest instructions run."""

    KVM = "kvm"
    TCG = "tcg"
    """Emulated by QEMU: works everywhere, several times slower."""
    NONE = "none"
    """No guest at all: the fake driver's workload is a process of the host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a driver can do on this host; the app refuses what is missing before it starts."""

    pause: bool
    graceful_shutdown: bool
    """The guest can be asked to end (control channel or ACPI)."""
    block_counters: bool
    """`Handle.block_counters` answers."""
    boots_bzimage: bool
    """False: the kernel must be an uncompressed ELF."""
    max_vcpus: int
    min_memory_bytes: int = 0
    """Below it the guest kernel does not boot."""
    memory_overhead_bytes: int = 256 * 1024 * 1024
    """What the VMM itself may need beside the guest's memory: on top in admission and cgroup."""
    needs_kernel: bool = True
    """False: `kernel_path` and `initrd_path` are ignored (fake)."""
    rate_limits: bool = False
    """`VmmSpec.rate_limits` bind."""
    scratch_disk: bool = False
    """`VmmSpec.scratch_bytes` makes a disk."""
    image_init: bool = False
    """`GuestConfig.image_init` is obeyed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What a driver found out about itself on this host."""

    kind: DriverKind
    available: bool
    accel: Accel
    version: str
    """As the VMM states it; empty if it could not be asked."""
    sentence: str
    """Why this acceleration, or what to do to make the driver available."""
    capabilities: Capabilities


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestNetwork:
    """The guest's only interface; the same addresses in every VM, so that snapshots can be cloned.

    Source: network/ translates them one to one to the VM's address on the fabric.
    """

    address: str = "172.16.0.2"
    prefix_length: int = 30
    gateway: str = "172.16.0.1"
    nameservers: tuple[str, ...] = ()
    """IPv4 or IPv6, at most three."""
    mtu: int = 1500
    address_v6: str = ""
    """Empty: the guest has no IPv6 address but its link-local one."""
    prefix_length_v6: int = 64
    gateway_v6: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestConfig:
    """What the guest's init is to run and how; names and meaning follow the OCI image config."""

    hostname: str
    argv: tuple[str, ...]
    """Entrypoint and arguments, at least one; not passed through a shell."""
    env: tuple[tuple[str, str], ...] = ()
    """Pairs in order; a later pair of the same name wins."""
    user: str = ""
    """`user`, `uid`, `user:group` or `uid:gid`; empty means root."""
    workdir: str = "/"
    stop_signal: str = "SIGTERM"
    stop_grace_seconds: float = 10.0
    """The init waits as long after the stop signal, then kills the workload and powers off."""
    image_init: bool = False
    """Hand the machine over to the image's own `/sbin/init`, with `argv` as its arguments.

    It is process 1 then, and ours is gone: readiness is that it was started, its end is a power-off
    without a status, and a graceful stop is the power button.
    """
    network: GuestNetwork = field(default_factory=GuestNetwork)


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimits:
    """Bounds of a VM's disks and network, each in bytes or requests a second; 0: none."""

    disk_bytes: int = 0
    """Read and written together, over all disks of the VM."""
    disk_operations: int = 0
    network_in_bytes: int = 0
    """What the guest receives."""
    network_out_bytes: int = 0
    """What the guest sends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VmmSpec:
    """All that a driver needs to make one VMM. All paths are absolute paths of the host."""

    vm_id: str
    vcpus: int
    memory_bytes: int
    """Guest memory, a multiple of 1 MiB; the cgroup's limit is larger by the VMM's own share."""
    kernel_path: Path
    initrd_path: Path | None
    rootfs_path: Path
    """Squashfs or ext4, attached read-only; the three files lie within `jail_dir`."""
    rootfs_format: str
    """`squashfs`, `ext4` or `erofs`, as the asset says."""
    guest: GuestConfig
    jail_dir: Path
    """Exists, is empty but for assets, owned by root, group `gid`, mode 0750."""
    uid: int
    gid: int
    netns: str
    """Name of the network namespace, as in `/run/netns`."""
    tap: str
    """Name of the tap in that namespace; owned by `uid`, up."""
    mac: str
    cgroup_join_paths: tuple[Path, ...]
    """Files to write the VMM's pid into before it executes (one per hierarchy)."""
    pids_max: int = 64
    console_max_bytes: int = 8 * 1024 * 1024
    """The driver keeps at most about as much of the console; a flood must not fill the disk."""
    kernel_args: tuple[str, ...] = ()
    """Further words for the kernel's command line."""
    rate_limits: RateLimits = field(default_factory=RateLimits)
    scratch_bytes: int = 0
    """Size of a disk that the driver makes in `jail_dir`; 0: none.

    It takes what the guest writes over its root, which a reboot then keeps, and which is written to
    guest memory otherwise.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What proves that a process is the VMM of a VM, kept in the store with the VM.

    `pid` with `pid_start_ticks` names one process for as long as the host is up; with `boot_id`,
    for ever.
    """

    kind: DriverKind
    vm_id: str
    pid: int
    pid_start_ticks: int
    """Field 22 of `/proc/<pid>/stat`."""
    boot_id: str
    """`/proc/sys/kernel/random/boot_id` when it was started."""
    jail_dir: Path
    details: Mapping[str, str] = field(default_factory=dict[str, str])
    """The driver's own notes: socket paths, machine type. Only the driver reads them."""


class ExitKind(StrEnum):
    """Why a VMM is no more."""

    WORKLOAD = "workload"
    """The workload ended and the guest powered off: `workload_status` tells how."""
    POWEROFF = "poweroff"
    """The guest powered off without telling of its workload."""
    PANIC = "panic"
    """The guest's kernel panicked."""
    KILLED = "killed"
    """metald killed it."""
    CRASHED = "crashed"
    """The VMM ended by a signal or with an error of its own."""
    OUT_OF_MEMORY = "out_of_memory"
    """The kernel killed the VMM at its cgroup's memory limit."""
    SECCOMP = "seccomp"
    """The VMM made a system call that its filter forbids."""
    LOST = "lost"
    """It ended while no metald watched; how is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitReport:
    """How a VMM ended."""

    kind: ExitKind
    sentence: str
    """For people: what ended, why, with which status."""
    vmm_status: int | None = None
    """Exit status of the VMM's process; negative: the signal that ended it; None: not known."""
    workload_status: int | None = None
    """Exit status of the guest's workload (128 + signal if one ended it); None: not told."""
    console_tail: tuple[str, ...] = ()
    """Last lines of the console, oldest first, at most `CONSOLE_TAIL_LINES`, control bytes out."""

    @property
    def clean(self) -> bool:
        """True if nobody needs to be alarmed: the workload ended with 0, or it was asked to end."""
        if self.kind is ExitKind.WORKLOAD:
            return self.workload_status == 0
        return self.kind in {ExitKind.POWEROFF, ExitKind.KILLED}


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockCounters:
    """Bytes and requests over all disks of a VM, cumulative since its VMM started."""

    read_bytes: int
    written_bytes: int
    read_operations: int
    write_operations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestMemory:
    """What the guest's kernel says of its memory (`/proc/meminfo`), in bytes."""

    total_bytes: int
    available_bytes: int
    """What a new program could have without swapping."""


DEAF = "Its VMM does not answer."
"""Sentence of what is asked of a VMM that hangs."""


class DriverError(Exception):
    """A step of a driver failed; everything the call itself had made is undone.

    Attributes:
        step: which one.
        sentence: what went wrong and what to do, without secrets.
        detail: stderr and the like, for the log and the VM's history.
        console_tail: as in `ExitReport`.
    """

    def __init__(
        self,
        step: Step,
        sentence: str,
        *,
        detail: str = "",
        console_tail: tuple[str, ...] = (),
    ) -> None:
        """Make the error of one step."""
        super().__init__(f"{step}: {sentence}")
        self.step = step
        self.sentence = sentence
        self.detail = detail
        self.console_tail = console_tail


class GuestEndedError(DriverError):
    """The VMM ended before the guest was ready; `report` says how."""

    def __init__(self, report: ExitReport) -> None:
        """Wrap the report of the end."""
        super().__init__(Step.GUEST_READY, report.sentence, console_tail=report.console_tail)
        self.report = report


class Handle(Protocol):
    """One VMM that was alive when the handle was made."""

    @property
    def evidence(self) -> Evidence:
        """What to store so that `Driver.adopt` finds this VMM again."""
        ...

    @property
    def console_path(self) -> Path:
        """The serial console's log, bytes as the guest wrote them; exists once created.

        At `console_max_bytes` the driver may cut its older half off (the file then shrinks).
        """
        ...

    async def boot(self) -> None:
        """Let the guest run; returns when the vCPUs have been started, not when it is ready.

        One that runs already runs on: a boot that was cut off is begun again.
        """
        ...

    async def wait_ready(self) -> None:
        """Wait until the guest's init says that the workload has been started.

        Returns at once if it already has, also on an adopted handle.

        Raises:
            GuestEndedError: the VMM ended first.
        """
        ...

    async def pause(self) -> None:
        """Stop the vCPUs; memory and devices stay."""
        ...

    async def resume(self) -> None:
        """Let the vCPUs run again and set the guest's clock right."""
        ...

    async def stands_still(self) -> bool:
        """Whether the vCPUs of a guest that was started do not run, whoever stopped them.

        Raises:
            DriverError: the VMM does not tell.
        """
        ...

    async def shutdown(self) -> None:
        """Ask the guest to end its workload and power off; returns when it has been asked."""
        ...

    async def kill(self) -> None:
        """End the VMM and everything in its jail now; returns when the process is gone.

        No error if it is gone already.
        """
        ...

    async def wait(self) -> ExitReport:
        """Wait for the VMM's end, in many tasks at once if need be; the same report for all."""
        ...

    async def block_counters(self) -> BlockCounters:
        """Read the disks' counters; cheap enough for ten times a second.

        Raises:
            DriverError: they cannot be read now; the sample is then absent, never zero.
        """
        ...

    async def guest_memory(self) -> GuestMemory:
        """Ask the guest's init how much of its memory is in use. Bounded; not for every tick.

        Raises:
            DriverError: it does not answer.
        """
        ...

    async def close(self) -> None:
        """Let go of sockets and descriptors of this metald; the VMM runs on."""
        ...


class Driver(Protocol):
    """Starts VMMs of one kind and finds them again."""

    @property
    def kind(self) -> DriverKind:
        """Which driver this is."""
        ...

    async def probe(self) -> Probe:
        """Find out whether the driver works here, and how; bounded, remembered per host boot."""
        ...

    async def create(self, spec: VmmSpec) -> Handle:
        """Start the VMM with everything configured and the guest not yet running.

        Raises:
            DriverError: a step failed; nothing of it is left.
        """
        ...

    async def adopt(self, evidence: Evidence) -> Handle | None:
        """Take over a VMM that an earlier metald started.

        Returns:
            None if that very process is no more, however alike another one looks.

        Raises:
            DriverError: it lives, but cannot be controlled (its socket is gone, say).
        """
        ...

    async def post_mortem(self, evidence: Evidence) -> ExitReport:
        """What can be told about a VMM that ended while no metald watched."""
        ...

    async def reboot(self, spec: VmmSpec, evidence: Evidence) -> Handle:
        """Put a fresh VMM, its guest not yet running, in the place of one that has ended.

        As `destroy` and `create` in one, but for what a machine keeps when it is switched off and
        on: the console's log goes on, the scratch disk stays. What of the old VMM still runs is
        killed; the old handle is to be closed by the caller. `spec` may have another size.

        Raises:
            DriverError: a step failed; nothing of either VMM is left but those two files.
        """
        ...

    async def destroy(self, jail_dir: Path, evidence: Evidence | None) -> None:
        """Kill what still runs and remove what the driver made in the jail, half made or whole.

        Idempotent. `evidence` is None if `create` never returned.
        """
        ...


def signal_name(number: int) -> str:
    """Name of a signal for a sentence, for example `SIGKILL`; `signal 77` if it has none."""
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"
