"""QEMU's command line for a VM; a pure function."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ironworks.metald.drivers.driver import Accel

QEMU = "/usr/bin/qemu-system-x86_64"
KERNEL, INITRD, ROOTFS, CONFIG = "/vm/kernel", "/vm/initrd", "/vm/rootfs", "/vm/config"
"""Where the files of the VM are within the jail."""
QMP_DESCRIPTOR = 11
CONTROL_DESCRIPTOR = 12
CONTROL_PORT_NAME = "org.ironworks.control"
TCG_CACHE_MIB = 128
"""Bound of the memory for translated code; a boot needs about half of it."""
_MIB = 1024 * 1024


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
    """

    name: str
    machine: Machine
    accel: Accel
    vcpus: int
    memory_bytes: int
    mac: str = ""
    tap_descriptor: int = -1
    kernel_args: tuple[str, ...] = ()


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


def _disk(name: str, path: str, device: str) -> list[str]:
    # Several VMs share one image: it is opened for reading only, and not locked.
    file = "file.driver=file,file.locking=off,file.aio=threads"
    return [
        *("-blockdev", f"driver=raw,node-name={name},read-only=on,{file},file.filename={path}"),
        *("-device", f"{device},drive={name},serial={name}"),
    ]


def _devices(spec: MachineSpec) -> list[str]:
    bus = "pci" if spec.machine is Machine.Q35 else "device"
    argv = [
        # The order is that of Firecracker's disks: init finds the root first, the config second.
        *_disk("rootfs", ROOTFS, f"virtio-blk-{bus}"),
        *_disk("config", CONFIG, f"virtio-blk-{bus}"),
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
