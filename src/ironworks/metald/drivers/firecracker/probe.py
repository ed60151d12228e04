"""Whether Firecracker boots a guest here: found out by doing it, once per boot of the host."""

import asyncio
import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from ironworks.metald.drivers.firecracker.api import ApiError, parse_version
from ironworks.metald.drivers.firecracker.machine import OLDEST, Version, kernel_command_line
from ironworks.metald.drivers.processes import boot_id
from ironworks.metald.drivers.remembered import recall, remember
from ironworks.metald.guest.build import Guest
from ironworks.metald.guest.vmlinux import KernelError, unpacked
from ironworks.model.errors import DeadlineExceeded, FailedPrecondition
from ironworks.runtime.process import run

FIRECRACKER_VARIABLE, JAILER_VARIABLE = "FIRECRACKER_BIN", "JAILER_BIN"
PROBE_SECONDS = 6.0
VERSION_SECONDS = 10.0
MAX_REASON_CHARS = 120
PASSED = b"ironworks: probe passed"
PROBE_MIB = 128
KVM = Path("/dev/kvm")
_FILE = "firecracker-probe.json"
_log = structlog.stdlib.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Binaries:
    """Where the two programs are."""

    firecracker: Path
    jailer: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What Firecracker can do on this host.

    Attributes:
        works: Whether it boots a guest.
        sentence: How that is known, or what is in the way.
        version: As it states it, for example `1.16.1`.
    """

    works: bool
    sentence: str
    version: str


def find_binaries(environment: dict[str, str] | None = None) -> Binaries:
    """The programs that the environment names, else those on PATH.

    Raises:
        FailedPrecondition: one is nowhere.
    """
    variables = dict(os.environ) if environment is None else environment
    found: dict[str, Path] = {}
    for name, variable in (("firecracker", FIRECRACKER_VARIABLE), ("jailer", JAILER_VARIABLE)):
        named = variables.get(variable, "")
        path = shutil.which(named or name, path=variables.get("PATH"))
        if path is None:
            where = f"at {named}, which {variable} names" if named else "on the PATH"
            raise FailedPrecondition(
                f"There is no {name} {where}.",
                hint=f"Install a release of Firecracker, and set {variable}.",
            )
        found[name] = Path(path).resolve()
    return Binaries(firecracker=found["firecracker"], jailer=found["jailer"])


async def version_of(program: Path) -> Version:
    """What `--version` says.

    Raises:
        FailedPrecondition: it says nothing of the kind.
    """
    done = await run([str(program), "--version"], timeout_seconds=VERSION_SECONDS, check=False)
    words = done.stdout.decode(errors="replace").split()
    try:
        return parse_version(words[1] if len(words) > 1 else "")
    except ApiError as error:
        raise FailedPrecondition(
            f"{program} does not say which version it is.", context={"error": str(error)}
        ) from error


ProbeBoot = Callable[[], Awaitable[str]]
"""Boots a guest; answers why that did not reach user space, "" if it did."""


def filters_by_itself(program: Path) -> bool:
    """Whether a Firecracker has a filter of system calls of its own.

    Only builds for musl, as its releases are, have one; those for glibc allow everything. Source:
    Firecracker's docs/seccomp.md.
    """
    return b"GLIBC_" not in program.read_bytes()


async def decide(
    *,
    kvm_exists: bool,
    version: Version,
    jailer: Version,
    filters: bool,
    probe_boot: ProbeBoot,
) -> Finding:
    """Judge; asks for a probe boot only if nothing else is in the way."""
    text = ".".join(map(str, version))
    if version < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        sentence = f"Firecracker {text} is older than {oldest}, the first that is supported."
    elif version != jailer:
        other = ".".join(map(str, jailer))
        sentence = f"Firecracker is {text} and its jailer {other}: they must be of one version."
    elif not kvm_exists:
        sentence = "There is no /dev/kvm, and Firecracker cannot emulate."
    elif failure := await probe_boot():
        sentence = (
            f"/dev/kvm is there, but a probe boot with Firecracker did not reach user space "
            f"({failure})."
        )
    else:
        sentence = "KVM works: a probe boot with Firecracker reached user space."
        if not filters:
            sentence += (
                " It is built for glibc and has no filter of system calls of its own: only the "
                "jail's binds it. Releases have one."
            )
        return Finding(works=True, sentence=sentence, version=text)
    return Finding(works=False, sentence=sentence, version=text)


def probe_config(kernel: Path, initrd: Path) -> dict[str, object]:
    """A machine with nothing but a console, whose init says `probe passed` and reboots."""
    return {
        "boot-source": {
            "kernel_image_path": str(kernel),
            "initrd_path": str(initrd),
            "boot_args": kernel_command_line(["probe", "reboot"]),
        },
        "drives": [],
        "machine-config": {"vcpu_count": 1, "mem_size_mib": PROBE_MIB},
    }


async def boot_once(binaries: Binaries, guest: Guest, elf_dir: Path, timeout_seconds: float) -> str:
    """Boot the guest's kernel and init, for so long at most; a `ProbeBoot`."""
    try:
        kernel = await asyncio.to_thread(unpacked, guest.kernel_path, elf_dir)
        with tempfile.TemporaryDirectory(prefix="iw-firecracker-probe-") as scratch:
            config = Path(scratch) / "probe.json"
            config.write_text(json.dumps(probe_config(kernel, guest.initrd_path)))
            done = await run(
                [str(binaries.firecracker), "--no-api", "--config-file", str(config)],
                timeout_seconds=timeout_seconds,
                check=False,
            )
    except DeadlineExceeded:
        return f"nothing within {timeout_seconds:g} s"
    except (KernelError, OSError) as error:
        return str(error)[:MAX_REASON_CHARS]
    if done.status == 0 and PASSED in done.stdout:
        return ""
    _log.info("firecracker_probe_failed", status=done.status, stderr=done.stderr_tail)
    last = done.stderr_tail.rpartition("\n")[2]
    return last[:MAX_REASON_CHARS] or f"it ended with status {done.status}"


def _key(binaries: Binaries, guest: Guest) -> str:
    """Names what the finding depends on besides the boot of the host."""
    facts = [boot_id(), str(KVM.exists()), guest.initrd.sha256, guest.kernel.sha256]
    for path in (binaries.firecracker, binaries.jailer):
        status = path.stat()
        facts.append(f"{path} {status.st_mtime_ns} {status.st_size}")
    return " ".join(facts)


async def probe(
    binaries: Binaries,
    guest: Guest,
    *,
    state_dir: Path,
    elf_dir: Path,
    timeout_seconds: float = PROBE_SECONDS,
) -> Finding:
    """What Firecracker can do here; from memory if it was found out since the host booted.

    Raises:
        FailedPrecondition: a program does not say its version.
    """
    path, key = state_dir / _FILE, _key(binaries, guest)
    if (known := recall(path, key)) is not None:
        with contextlib.suppress(KeyError):
            return Finding(
                works=bool(known["works"]),
                sentence=str(known["sentence"]),
                version=str(known["version"]),
            )

    async def probe_boot() -> str:
        return await boot_once(binaries, guest, elf_dir, timeout_seconds)

    finding = await decide(
        kvm_exists=KVM.exists(),
        version=await version_of(binaries.firecracker),
        jailer=await version_of(binaries.jailer),
        filters=await asyncio.to_thread(filters_by_itself, binaries.firecracker),
        probe_boot=probe_boot,
    )
    facts = {"works": finding.works, "sentence": finding.sentence, "version": finding.version}
    remember(path, key, facts)
    return finding
