"""Drivers that need KVM, in an emulated machine that has one: QEMU on `-M microvm`, Firecracker.

A KVM that boots a stock kernel is not to be had everywhere. An emulated CPU offers SVM, and with it
a machine of Debian's kernel has a KVM of its own: it boots our own guest, whose workload is
`inside.py`. Firecracker and its jailer come from where FIRECRACKER_BIN and JAILER_BIN say.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest

from ironworks.metald.drivers.driver import GuestConfig
from ironworks.metald.guest.build import Guest
from ironworks.metald.guest.config import Control, config_disk

from .image import Contents, build

pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.timeout(1800)]
REPOSITORY = Path(__file__).parents[3]
BOOT_SECONDS = 1200.0
"""On two idle cores it takes a minute and a half; on a machine that others use, far longer."""
STEPS = ["probe", "create", "boot", "pause", "resume", "metrics", "reboot", "shutdown", "delete"]
BINARIES = {"firecracker": "FIRECRACKER_BIN", "jailer": "JAILER_BIN"}
PLACE = "/opt/firecracker"
_SCRIPT = """
for module in kvm_amd tun veth nf_tables; do modprobe $module; done
chmod 755 {place}/* 2>/dev/null
ulimit -n 65536
export HOME=/tmp PYTHONDONTWRITEBYTECODE=1 IRONWORKS_NESTED=1
export FIRECRACKER_BIN={place}/firecracker JAILER_BIN={place}/jailer
exec {python} {program} {kind}
"""
_MACHINE = "q35,hpet=off,sata=off,smbus=off,vmport=off,i8042=off,usb=off"


@pytest.fixture(scope="module")
def image(guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    scratch = tmp_path_factory.mktemp("nested")
    extra = {
        f"{PLACE}/{name}": Path(path)
        for name, variable in BINARIES.items()
        if (path := os.environ.get(variable))
    }
    contents = Contents(
        repository=REPOSITORY, environment=Path(sys.prefix), guest=guest, extra=extra
    )
    return build(contents, scratch)


def machine(guest: Guest, image: Path, config: Path) -> list[str]:
    """An emulated machine with two CPUs that offer SVM, and no network."""
    argv = ["/usr/bin/qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"]
    argv += ["-no-reboot", "-M", _MACHINE, "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max"]
    argv += ["-smp", "2", "-m", "3G", "-serial", "stdio"]
    argv += ["-kernel", str(guest.kernel_path), "-initrd", str(guest.initrd_path)]
    argv += ["-append", "console=ttyS0 quiet panic=-1 cryptomgr.notests"]
    for name, path in (("rootfs", image), ("config", config)):
        file = f"file.driver=file,file.locking=off,file.filename={path}"
        argv += ["-blockdev", f"driver=raw,node-name={name},read-only=on,{file}"]
        argv += ["-device", f"virtio-blk-pci,drive={name},serial={name}"]
    return [*argv, "-netdev", "hubport,id=net,hubid=0", "-device", "virtio-net-pci,netdev=net"]


def run_inside(guest: Guest, image: Path, scratch: Path, kind: str) -> dict[str, dict[str, object]]:
    """Boot, run `inside.py` there, and answer what it said of each step."""
    program = Path(__file__).with_name("inside.py")
    python = Path(sys.prefix) / "bin/python"
    script = _SCRIPT.format(place=PLACE, python=python, program=program, kind=kind)
    workload = GuestConfig(
        hostname="nested",
        argv=("/bin/sh", "-c", script),
        env=(("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),),
    )
    config = scratch / "config.img"
    config.write_bytes(config_disk(workload, root_format="squashfs", control=Control.NONE))
    done = subprocess.run(
        machine(guest, image, config), capture_output=True, timeout=BOOT_SECONDS, check=False
    )
    console = done.stdout.decode(errors="replace")
    said = [
        cast("dict[str, object]", json.loads(line.partition("nested: ")[2]))
        for line in console.splitlines()
        if "nested: {" in line
    ]
    assert [one["step"] for one in said] == STEPS, console[-4000:]
    assert "ironworks: exited 0" in console
    return {str(one["step"]): one for one in said}


def assert_a_whole_life(said: dict[str, dict[str, object]]) -> None:
    assert (said["probe"]["available"], said["probe"]["accel"]) == (True, "kvm")
    for step in ("boot", "resume", "reboot"):
        assert str(said[step]["http"]).endswith(" 200 OK"), step
    assert said["metrics"]["grows"] is True
    assert said["reboot"]["fresh"] is True
    assert (said["shutdown"]["kind"], said["shutdown"]["status"]) == ("workload", 0)
    assert (said["delete"]["left"], said["delete"]["processes"]) == ([], [])


def test_qemu_with_kvm_on_microvm(guest: Guest, image: Path, tmp_path: Path) -> None:
    said = run_inside(guest, image, tmp_path, "qemu")
    assert_a_whole_life(said)
    details = cast("dict[str, str]", said["create"]["details"])
    assert details["machine"] == "microvm"


@pytest.mark.skipif(
    not all(os.environ.get(variable) for variable in BINARIES.values()),
    reason="FIRECRACKER_BIN and JAILER_BIN do not name a Firecracker and its jailer",
)
def test_firecracker(guest: Guest, image: Path, tmp_path: Path) -> None:
    assert_a_whole_life(run_inside(guest, image, tmp_path, "firecracker"))
