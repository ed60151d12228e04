"""Whether KVM boots a guest here: found out by doing it, once per boot of the host.

A `/dev/kvm` that opens and makes VMs proves nothing: there are hosts on which a guest then spins in
its first instructions for ever.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog

from ironworks.metald.drivers.driver import Accel
from ironworks.metald.drivers.processes import boot_id
from ironworks.metald.drivers.qemu.argv import QEMU, Machine, probe_argv
from ironworks.metald.drivers.qemu.files import KVM
from ironworks.metald.drivers.remembered import recall, remember
from ironworks.metald.guest.build import Guest
from ironworks.model.errors import DeadlineExceeded
from ironworks.runtime.process import run

PROBE_SECONDS = 6.0
"""With KVM a guest is in user space within a second; a host under load may take a few."""
VERSION_SECONDS = 10.0
MAX_REASON_CHARS = 120
PASSED = b"ironworks: probe passed"
_FILE = "qemu-probe.json"
_log = structlog.stdlib.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What QEMU can do on this host.

    Attributes:
        accel: How guests run.
        machine: The machine type to run them on.
        sentence: Why.
        version: QEMU's, as it states it.
    """

    accel: Accel
    machine: Machine
    sentence: str
    version: str


ProbeBoot = Callable[[Machine], Awaitable[str]]
"""Boots with KVM on a machine type; answers why that did not reach user space, "" if it did."""


async def decide(*, kvm_exists: bool, probe_boot: ProbeBoot, version: str) -> Finding:
    """Choose acceleration and machine type; asks for a probe boot only if there is a KVM."""
    emulated = "so VMs are emulated, several times slower"
    if not kvm_exists:
        return Finding(
            accel=Accel.TCG,
            machine=Machine.Q35,
            sentence=f"There is no /dev/kvm, {emulated}.",
            version=version,
        )
    machines = (Machine.MICROVM, Machine.Q35)
    failures = await asyncio.gather(*(probe_boot(machine) for machine in machines))
    for machine, failure in zip(machines, failures, strict=True):
        if not failure:
            return Finding(
                accel=Accel.KVM,
                machine=machine,
                sentence=f"KVM works: a probe boot on {machine} reached user space.",
                version=version,
            )
    return Finding(
        accel=Accel.TCG,
        machine=Machine.Q35,
        sentence=(
            f"/dev/kvm is there, but a probe boot did not reach user space ({failures[-1]}), "
            f"{emulated}."
        ),
        version=version,
    )


async def boot_with_kvm(
    guest: Guest, machine: Machine, timeout_seconds: float = PROBE_SECONDS
) -> str:
    """Boot the guest's kernel and init with KVM, for so long at most; a `ProbeBoot`."""
    argv = probe_argv(machine=machine, kernel=str(guest.kernel_path), initrd=str(guest.initrd_path))
    try:
        done = await run(argv, timeout_seconds=timeout_seconds, check=False)
    except DeadlineExceeded:
        return f"nothing within {timeout_seconds:g} s"
    if done.status == 0 and PASSED in done.stdout:
        return ""
    _log.info("kvm_probe_failed", machine=machine.value, stderr=done.stderr_tail)
    complaint = done.stderr_tail.partition("\n")[0].removeprefix("qemu-system-x86_64: ")
    return complaint[:MAX_REASON_CHARS] or f"QEMU ended with status {done.status}"


async def qemu_version() -> str:
    """QEMU's version, for example `7.2.22`; empty if it does not say.

    Raises:
        FailedPrecondition: it is not installed.
    """
    done = await run([QEMU, "--version"], timeout_seconds=VERSION_SECONDS, check=False)
    words = done.stdout.decode(errors="replace").split()
    return words[words.index("version") + 1] if "version" in words[:-1] else ""


def _key(guest: Guest) -> str:
    """Names what the finding depends on besides the boot of the host."""
    binary = os.stat(QEMU)  # noqa: PTH116 - beside the other facts of one line
    return f"{boot_id()} {KVM.exists()} {binary.st_mtime_ns} {binary.st_size} {guest.initrd.sha256}"


def _recall(path: Path, key: str) -> Finding | None:
    if (known := recall(path, key)) is None:
        return None
    try:
        return Finding(
            accel=Accel(str(known["accel"])),
            machine=Machine(str(known["machine"])),
            sentence=str(known["sentence"]),
            version=str(known["version"]),
        )
    except (ValueError, KeyError):
        return None


async def probe(
    guest: Guest, state_dir: Path, *, timeout_seconds: float = PROBE_SECONDS
) -> Finding:
    """What QEMU can do here; from memory if it was found out since the host booted.

    Raises:
        FailedPrecondition: QEMU is not installed.
    """
    version = await qemu_version()
    path, key = state_dir / _FILE, _key(guest)
    if found := _recall(path, key):
        return found

    async def probe_boot(machine: Machine) -> str:
        return await boot_with_kvm(guest, machine, timeout_seconds)

    finding = await decide(kvm_exists=KVM.exists(), probe_boot=probe_boot, version=version)
    remember(path, key, asdict(finding))
    return finding
