"""What needs a KVM, or cgroups of version 2 alone, in an emulated machine that has both.

A KVM that boots a stock kernel is not to be had everywhere. An emulated CPU offers SVM, and with it
a machine of Debian's kernel has a KVM of its own: it boots our own guest, whose workload is pytest.
So QEMU runs on `-M microvm` there, and Firecracker, which with its jailer comes from where
FIRECRACKER_BIN and JAILER_BIN say; and both in cgroups of version 2, with a disk to be limited.
"""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ironworks.metald.drivers.driver import GuestConfig
from ironworks.metald.drivers.firecracker.jailer import sealed_firecracker
from ironworks.metald.guest.build import Guest
from ironworks.metald.guest.config import Control, config_disk
from ironworks.testkit.rooms import build_program

from .image import Contents, build

pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.timeout(2400)]
REPOSITORY = Path(__file__).parents[3]
BOOT_SECONDS = 2000.0
"""On two idle cores it takes a minute or two; on a machine that others use, far longer."""
BINARIES = {"firecracker": "FIRECRACKER_BIN", "jailer": "JAILER_BIN"}
PLACE = "/opt/firecracker"
DISK_BYTES = 1 << 30
CONFORMANCE = "tests/conformance/metald/drivers/test_drivers.py"
ATTACKS = "tests/vm/metald/attacks"
CGROUPS = "tests/unit/metald/cgroup/test_groups.py"
SOME = ("probe_says", "whole_life", "reboot_is")
"""Of the conformance suite, what Firecracker is always put through."""
FEW = SOME[:2]
"""What QEMU is: all of it runs outside too. Under KVM within an emulated machine a guest that ends
at once was seen to go on for a minute, once in three runs: with --thorough only."""
_SCRIPT = """
for module in kvm_amd tun veth nf_tables; do modprobe $module; done
chmod 755 {place}/* 2>/dev/null
mkdir /data && mount /dev/vdc /data || exit 99
ulimit -n 65536
export HOME=/tmp TMPDIR=/data PYTHONDONTWRITEBYTECODE=1 IRONWORKS_NESTED=1
export FIRECRACKER_BIN={place}/firecracker JAILER_BIN={place}/jailer ATTACK_BIN={place}/attack
cd {repository}
exec {python} -m pytest -v -rA --durations=40 --color=no -o timeout=600 \
    -p no:cacheprovider -p no:hypothesispytest --confcutdir={suite} {words}
"""
_MACHINE = "q35,hpet=off,sata=off,smbus=off,vmport=off,i8042=off,usb=off"
_OUTCOME = re.compile(r"^(PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b.*?([a-z_0-9]+(?:\[[^\]]*\])?)$")


@pytest.fixture(scope="module")
def image(guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    scratch = tmp_path_factory.mktemp("nested")
    extra = {
        f"{PLACE}/{name}": Path(path)
        for name, variable in BINARIES.items()
        if (path := os.environ.get(variable))
    }
    extra[f"{PLACE}/attack"] = build_program(REPOSITORY / ATTACKS / "attack.c", scratch)
    asyncio.run(sealed_firecracker(guest.directory.parent))
    contents = Contents(
        repository=REPOSITORY, environment=Path(sys.prefix), guest=guest, extra=extra
    )
    return build(contents, scratch)


def machine(guest: Guest, image: Path, config: Path, disk: Path) -> list[str]:
    """An emulated machine with two CPUs that offer SVM, a disk of its own, and no network."""
    argv = ["/usr/bin/qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"]
    argv += ["-no-reboot", "-M", _MACHINE, "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max"]
    argv += ["-smp", "2", "-m", "3G", "-serial", "stdio"]
    argv += ["-kernel", str(guest.kernel_path), "-initrd", str(guest.initrd_path)]
    argv += ["-append", "console=ttyS0 quiet loglevel=1 panic=-1 cryptomgr.notests"]
    for name, path, access in (
        ("rootfs", image, "read-only=on"),
        ("config", config, "read-only=on"),
        ("disk", disk, "read-only=off"),
    ):
        file = f"file.driver=file,file.locking=off,file.filename={path}"
        argv += ["-blockdev", f"driver=raw,node-name={name},{access},{file}"]
        argv += ["-device", f"virtio-blk-pci,drive={name},serial={name}"]
    return [*argv, "-netdev", "hubport,id=net,hubid=0", "-device", "virtio-net-pci,netdev=net"]


def run_inside(
    guest: Guest, image: Path, scratch: Path, *words: str, suite: Path = Path(CONFORMANCE).parent
) -> dict[str, str]:
    """Boot, run pytest there with the fixtures of `suite`, and answer test → outcome."""
    python = Path(sys.prefix) / "bin/python"
    script = _SCRIPT.format(
        place=PLACE,
        python=python,
        repository=REPOSITORY,
        suite=suite,
        words=" ".join(words),
    )
    workload = GuestConfig(
        hostname="nested",
        argv=("/bin/sh", "-c", script),
        env=(("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),),
    )
    config, disk = scratch / "config.img", scratch / "disk.img"
    config.write_bytes(config_disk(workload, root_format="squashfs", control=Control.NONE))
    with disk.open("wb") as file:
        file.truncate(DISK_BYTES)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", str(disk)], check=True, capture_output=True)
    log = scratch / "console.log"
    with log.open("wb") as output:
        subprocess.run(
            machine(guest, image, config, disk), stdout=output, timeout=BOOT_SECONDS, check=False
        )
    console = log.read_text(errors="replace")
    print(console)  # noqa: T201 - pytest shows it with a failure
    assert "ironworks: exited 0" in console
    found = [match for line in console.splitlines() if (match := _OUTCOME.match(line))]
    return {match[2]: match[1] for match in found}


def test_qemu_with_kvm_on_microvm_and_cgroups_of_version_2(
    guest: Guest, image: Path, tmp_path: Path, *, thorough: bool
) -> None:
    chosen = "(qemu or fake)" if thorough else f"(qemu and ({' or '.join(FEW)}))"
    words = [f"'{chosen} or test_groups'", CONFORMANCE, CGROUPS]
    outcomes = run_inside(guest, image, tmp_path, "-k", *words)
    assert set(outcomes.values()) == {"PASSED"}
    assert {
        "test_a_whole_life[qemu]",
        "test_a_disk_limit_holds",
        "test_weights_divide_a_cpu_that_both_want",
        "test_memory_and_cpu_time_are_read_from_a_real_group",
    } <= outcomes.keys()


with_firecracker = pytest.mark.skipif(
    not all(os.environ.get(variable) for variable in BINARIES.values()),
    reason="FIRECRACKER_BIN and JAILER_BIN do not name a Firecracker and its jailer",
)


@with_firecracker
def test_firecracker_conforms(guest: Guest, image: Path, tmp_path: Path) -> None:
    outcomes = run_inside(guest, image, tmp_path, "-k", "firecracker", CONFORMANCE)
    assert set(outcomes.values()) == {"PASSED"}
    assert {"test_a_whole_life[firecracker]"} <= outcomes.keys()


@with_firecracker
def test_firecracker_is_attacked_from_its_guest(guest: Guest, image: Path, tmp_path: Path) -> None:
    words = ("-k", "firecracker", ATTACKS)
    outcomes = run_inside(guest, image, tmp_path, *words, suite=Path("tests/vm"))
    assert set(outcomes.values()) == {"PASSED"}
    assert {
        "test_the_kernel_says_that_the_vmm_is_confined[firecracker]",
        "test_its_own_tenant_is_reached_and_nobody_else[firecracker]",
        "test_a_fork_bomb_stays_in_the_guest[firecracker]",
        "test_no_port_of_the_host_is_reached_over_vsock[firecracker]",
    } <= outcomes.keys()
