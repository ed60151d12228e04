"""QEMU's command line."""

from dataclasses import replace

import pytest

from ironworks.metald.drivers.driver import Accel
from ironworks.metald.drivers.qemu.argv import (
    Machine,
    MachineSpec,
    kernel_command_line,
    probe_argv,
    qemu_argv,
)
from ironworks.model.units import MIB

SPEC = MachineSpec(
    name="vm_1",
    machine=Machine.Q35,
    accel=Accel.TCG,
    vcpus=3,
    memory_bytes=192 * MIB,
    mac="02:00:00:00:00:01",
    tap_descriptor=10,
)


def values(argv: list[str], option: str) -> list[str]:
    return [argv[at + 1] for at, word in enumerate(argv) if word == option]


def test_it_starts_stopped_confined_and_without_what_qemu_adds_by_itself() -> None:
    argv = qemu_argv(SPEC)
    assert {"-S", "-no-reboot", "-nodefaults", "-no-user-config"} <= set(argv)
    (sandbox,) = values(argv, "-sandbox")
    assert sandbox.split(",") == [
        "on",
        "obsolete=deny",
        "elevateprivileges=deny",
        "spawn=deny",
        "resourcecontrol=deny",
    ]


def test_memory_and_vcpus_are_those_asked_for() -> None:
    argv = qemu_argv(SPEC)
    assert values(argv, "-m") == ["192M"]
    assert values(argv, "-smp") == ["3"]


def test_all_disks_are_read_only_and_the_root_comes_first() -> None:
    disks = values(qemu_argv(SPEC), "-blockdev")
    assert all("read-only=on" in disk.split(",") for disk in disks)
    serials = [one for one in values(qemu_argv(SPEC), "-device") if "serial=" in one]
    assert [one.rpartition("serial=")[2] for one in serials] == ["rootfs", "config"]


def test_the_network_is_an_open_tap_and_left_out_without_an_address() -> None:
    assert values(qemu_argv(SPEC), "-netdev") == ["tap,id=net,fd=10"]
    assert values(qemu_argv(replace(SPEC, mac="")), "-netdev") == []


@pytest.mark.parametrize("machine", list(Machine))
@pytest.mark.parametrize("accel", [Accel.KVM, Accel.TCG])
def test_devices_fit_the_machine_and_the_acceleration(machine: Machine, accel: Accel) -> None:
    argv = qemu_argv(replace(SPEC, machine=machine, accel=accel))
    virtio = [one.partition(",")[0] for one in values(argv, "-device") if one.startswith("virtio-")]
    bus = "-pci" if machine is Machine.Q35 else "-device"
    assert all(one.endswith(bus) for one in virtio)
    assert (f"virtio-rng{bus}" in virtio) == (accel is Accel.KVM)
    assert values(argv, "-accel")[0].partition(",")[0] == accel.value
    assert values(argv, "-cpu") == ["host" if accel is Accel.KVM else "max"]
    assert ("romfile" in " ".join(argv)) == (machine is Machine.Q35)


def test_the_cache_of_translated_code_is_bounded() -> None:
    assert "tb-size=" in values(qemu_argv(SPEC), "-accel")[0]


def test_the_kernel_gets_further_words_last() -> None:
    line = kernel_command_line(Accel.TCG, ["debug", "x=1"])
    assert line.startswith("console=ttyS0 quiet panic=-1 ")
    assert line.endswith(" noreplace-smp no_timer_check debug x=1")
    assert "noreplace-smp" not in kernel_command_line(Accel.KVM)


@pytest.mark.parametrize(("accel", "unchecked"), [(Accel.TCG, True), (Accel.KVM, False)])
def test_only_an_emulated_timer_goes_unchecked(accel: Accel, unchecked: bool) -> None:
    assert ("no_timer_check" in kernel_command_line(accel).split()) is unchecked


def test_the_probe_is_a_machine_with_kvm_and_a_console() -> None:
    argv = probe_argv(machine=Machine.MICROVM, kernel="/k", initrd="/i")
    assert values(argv, "-accel") == ["kvm"]
    assert values(argv, "-append")[0].endswith(" probe")
    assert values(argv, "-device") == []
