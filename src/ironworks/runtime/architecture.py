"""What this machine's processors run."""

from __future__ import annotations

import platform

_OCI_NAMES = {"x86_64": "amd64", "aarch64": "arm64"}


def host_architecture() -> str:
    """Architecture of this machine as OCI names it."""
    machine = platform.machine()
    return _OCI_NAMES.get(machine, machine)
