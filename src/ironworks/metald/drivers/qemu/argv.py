"""QEMU's command line for a VM; a pure function."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from ironworks.metald.drivers.driver import Accel, RateLimits

QEMU = "/usr/bin/qemu-system-x86_64"
KERNEL, INITRD, ROOTFS, CONFIG = "/vm/kernel", "/vm/initrd", "/vm/rootfs", "/vm/config"
SCRATCH = "/vm/scratch"
"""Where the files of the VM are within the jail."""
QMP_DESCRIPTOR = 11
CONTROL_DESCRIPTOR = 12
CONTROL_PORT_NAME = "org.ironworks.control"
TCG_CACHE_MIB = 128
"""Bound of the memory for translated code; a boot needs about half of it."""
_MIB = 1024 * 1024
_LIMITS = "limits"


class Machine(StrEnum):
    """QEMU's machine types that are used here."""

    Q35 = "q35"
    """A PC with PCI Express: works everywhere."""
    MICROVM = "microvm"
    """No PCI, virtio over MMIO: boots faster with KVM, and not reliably when emulated."""


_OPTIONS: Mapping[Machine, str] = {
    # Devices that no guest here has a driver or a use for; each costs time at boot.
    Machine.Q35: "hpet=off,sata=off,smbus=off,vmport=off,i8042=off,usb=off",
    Machine.MICROVM: "acpi=on,rtc=on,isa-serial=on",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpec:
    """What QEMU is to be.

    Attributes:
        name: Shown by tools; the VM's id.
        machine: Machine type.
        accel: KVM or TCG.
        vcpus: At least 1.
        memory_bytes: Guest memory, a multiple of 1 MiB.
        mac: Address of the network card; empty for a machine without one.
        tap_descriptor: Open descriptor of the tap.
        kernel_args: Further words for the kernel's command line.
        scratch: Whether there is a disk that the guest may write to.
        limits: Bounds of all disks together; the network's are not QEMU's to keep.
    """

    name: str
    machine: Machine
    accel: Accel
    vcpus: int
    memory_bytes: int
    mac: str = ""
    tap_descriptor: int = -1
    kernel_args: tuple[str, ...] = ()
    scratch: bool = False
    limits: RateLimits = field(default_factory=RateLimits)


def kernel_command_line(accel: Accel, extra: Sequence[str] = ()) -> str:
    """Words for the guest's kernel; `guest/README.md` has what each of them is worth."""
    words = [
        "console=ttyS0",
        "quiet",
        # A panic ends the VM at once, with its reason on the console.
        "panic=-1",
        "cryptomgr.notests",
    ]
    if accel is Accel.TCG:
        # A single emulated CPU has no use for code that is patched to have no locks.
        words.append("noreplace-smp")
        # On a busy host its timer is late, and the kernel would take it for broken and panic.
        words.append("no_timer_check")
    return " ".join([*words, *extra])


def _machine(spec: MachineSpec) -> list[str]:
    memory = f"{spec.memory_bytes // _MIB}M"
    if spec.accel is Accel.KVM:
        accel, cpu = "kvm", "host"
    else:
        accel, cpu = f"tcg,thread=multi,tb-size={TCG_CACHE_MIB}", "max"
    return [
        *("-M", f"{spec.machine},{_OPTIONS[spec.machine]}"),
        *("-accel", accel, "-cpu", cpu),
        *("-smp", str(spec.vcpus), "-m", memory),
    ]


def _disk(
    name: str, path: str, device: str, *, writable: bool = False, limited: bool = False
) -> list[str]:
    """A disk; with limits through the throttle group that all disks of the VM share."""
    access = "read-only=off,discard=unmap" if writable else "read-only=on"
    # Several VMs share one image: it is opened for reading only, and not locked.
    locking = "on" if writable else "off"
    file = f"file.driver=file,file.locking={locking},file.aio=threads,file.filename={path}"
    node = f"{name}-file" if limited else name
    argv = ["-blockdev", f"driver=raw,node-name={node},{access},{file}"]
    if limited:
        group = f"throttle-group={_LIMITS},file={node}"
        argv += ["-blockdev", f"driver=throttle,node-name={name},{access},{group}"]
    return [*argv, "-device", f"{device},drive={name},serial={name}"]


def _disks(spec: MachineSpec, bus: str) -> list[str]:
    limits, device = spec.limits, f"virtio-blk-{bus}"
    limited = bool(limits.disk_bytes or limits.disk_operations)
    argv: list[str] = []
    if limited:
        group = f"x-bps-total={limits.disk_bytes},x-iops-total={limits.disk_operations}"
        argv += ["-object", f"throttle-group,id={_LIMITS},{group}"]
    # The order is that of Firecracker's disks: init finds the root first, the config second.
    argv += _disk("rootfs", ROOTFS, device, limited=limited)
    argv += _disk("config", CONFIG, device)
    if spec.scratch:
        argv += _disk("scratch", SCRATCH, device, writable=True, limited=limited)
    return argv


def _devices(spec: MachineSpec) -> list[str]:
    bus = "pci" if spec.machine is Machine.Q35 else "device"
    argv = [
        *_disks(spec, bus),
        *("-device", f"virtio-serial-{bus}"),
        *("-chardev", f"socket,id=control,fd={CONTROL_DESCRIPTOR},server=on,wait=off"),
        *("-device", f"virtserialport,chardev=control,name={CONTROL_PORT_NAME}"),
    ]
    if spec.mac:
        rom = ",romfile=" if bus == "pci" else ""
        argv += [
            *("-netdev", f"tap,id=net,fd={spec.tap_descriptor}"),
            *("-device", f"virtio-net-{bus},netdev=net,mac={spec.mac}{rom}"),
        ]
    if spec.accel is Accel.KVM:
        # An emulated CPU always has a working RDRAND; a real one may not.
        argv += [
            *("-object", "rng-builtin,id=rng"),
            *("-device", f"virtio-rng-{bus},rng=rng"),
        ]
    return argv


def qemu_argv(spec: MachineSpec) -> list[str]:
    """QEMU's whole command line, stopped before the first instruction of the guest.

    The console is its standard output; QMP and the control channel are listening sockets at
    `QMP_DESCRIPTOR` and `CONTROL_DESCRIPTOR`.
    """
    return [
        QEMU,
        *("-name", f"guest={spec.name}"),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-no-reboot", "-S"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *_machine(spec),
        *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
        *("-chardev", f"socket,id=qmp,fd={QMP_DESCRIPTOR},server=on,wait=off"),
        *("-mon", "chardev=qmp,mode=control"),
        *("-kernel", KERNEL, "-initrd", INITRD),
        *("-append", kernel_command_line(spec.accel, spec.kernel_args)),
        *_devices(spec),
    ]


def probe_argv(*, machine: Machine, kernel: str, initrd: str) -> list[str]:
    """A machine with KVM and nothing but a console, whose init says `probe passed` and ends."""
    return [
        QEMU,
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-M", f"{machine},{_OPTIONS[machine]}"),
        *("-accel", "kvm", "-cpu", "host", "-smp", "1", "-m", "128M"),
        *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
        *("-kernel", kernel, "-initrd", initrd),
        *("-append", kernel_command_line(Accel.KVM, ["probe"])),
    ]
