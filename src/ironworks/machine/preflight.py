"""What must be there before the platform starts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ironworks.model.errors import FailedPrecondition, PermissionDenied
from ironworks.model.units import GIB, format_bytes

PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "skopeo": "skopeo",
    "sqfstar": "squashfs-tools",
    "bwrap": "bubblewrap",
    "nft": "nftables",
    "setpriv": "util-linux",
}
"""Program → Debian package that has it."""

MIN_FREE_BYTES = 2 * GIB
"""A data directory with less free space is refused: the first build would fill the disk."""


class MissingProgram(FailedPrecondition):
    """A program that the platform runs is not installed."""

    exit_status = 80


class NoSpace(FailedPrecondition):
    """The data directory cannot be used: full, read-only, not a directory."""

    exit_status = 81


class NoGuest(FailedPrecondition):
    """No guest kernel has been built."""

    exit_status = 84


def check_root() -> None:
    """Raise PermissionDenied unless we are root."""
    if os.geteuid() != 0:
        raise PermissionDenied(
            "The platform needs root: it makes network namespaces, cgroups and jails.",
            hint="Run the command again with sudo.",
        )


def check_programs() -> None:
    """Raise MissingProgram if a program is not installed."""
    missing = {name: package for name, package in PROGRAMS.items() if shutil.which(name) is None}
    if missing:
        raise MissingProgram(
            f"Not installed: {', '.join(sorted(missing))}.",
            hint=f"Run `./iron setup`, or apt-get install {' '.join(sorted(missing.values()))}.",
        )


def check_disk(data_dir: Path, min_free_bytes: int = MIN_FREE_BYTES) -> None:
    """Raise NoSpace if the file system of `data_dir` is nearly full or read-only."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o711)
        free_bytes = shutil.disk_usage(data_dir).free
    except OSError as error:
        raise NoSpace(
            f"The data directory {data_dir} cannot be used: {error.strerror}.",
            hint="Give another with --data-dir.",
        ) from None
    if not os.access(data_dir, os.W_OK):
        raise NoSpace(
            f"The data directory {data_dir} cannot be used: it is read-only.",
            hint="Give another with --data-dir.",
        )
    if free_bytes < min_free_bytes:
        raise NoSpace(
            f"{data_dir} has {format_bytes(free_bytes)} free; the platform needs "
            f"{format_bytes(min_free_bytes)}.",
            hint="Free some space, or give another place with --data-dir.",
        )


def check_guest(guest_dir: Path) -> None:
    """Raise NoGuest if no guest kernel and initrd have been built."""
    if not any(guest_dir.glob("*/manifest.json")):
        raise NoGuest(
            f"There is no guest kernel in {guest_dir}.",
            hint="Run `./iron setup`, which builds it.",
        )


def check_all(data_dir: Path, guest_dir: Path) -> None:
    """All checks, the cheapest to mend first."""
    check_root()
    check_programs()
    check_disk(data_dir)
    check_guest(guest_dir)
