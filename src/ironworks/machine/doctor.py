"""Whether this machine can run the platform, and how: preflight checks and the host's probe."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ironworks.machine import preflight
from ironworks.model.errors import IronError
from ironworks.runtime.process import run

PROBE_SECONDS = 120.0
"""A probe boots a guest, once for each boot of the host, and that may be emulated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check; `problem` is empty if it passed."""

    check: str
    problem: str
    hint: str = ""


def checks(data_dir: Path, guest_dir: Path) -> list[Finding]:
    """All preflight checks, each with what it found: unlike a start, none stops the others."""
    every: tuple[tuple[str, Callable[[], None]], ...] = (
        ("root", preflight.check_root),
        ("programs", preflight.check_programs),
        ("disk", lambda: preflight.check_disk(data_dir)),
        ("guest kernel", lambda: preflight.check_guest(guest_dir)),
    )
    return [_checked(name, check) for name, check in every]


def _checked(name: str, check: Callable[[], None]) -> Finding:
    try:
        check()
    except IronError as error:
        return Finding(check=name, problem=error.message, hint=error.hint)
    return Finding(check=name, problem="")


async def probe(data_dir: Path) -> dict[str, Any]:
    """What metald finds out about this host: `python -m ironworks.metald.doctor`.

    Raises:
        IronError: it could not be asked.
    """
    env = {**os.environ, "IRONWORKS_DATA_DIR": str(data_dir)}
    argv = [sys.executable, "-m", "ironworks.metald.doctor"]
    done = await run(argv, timeout_seconds=PROBE_SECONDS, env=env)
    return json.loads(done.stdout)
