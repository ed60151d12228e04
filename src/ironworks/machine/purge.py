"""Remove all that a platform whose owner died has left on this host, and its directory.

In this order, so that nothing comes back: supervisor and services, then what metald made for VMs
(metald's own code does that, `python -m ironworks.metald.purge`), mounts, files.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from pathlib import Path

from ironworks.machine import inventory
from ironworks.model.errors import Internal
from ironworks.runtime.process import run

_WAIT_SECONDS = 10.0
_POLL_SECONDS = 0.05


def _environment_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes() + b"\0"
    except OSError:
        return b""


def _pids(data_dir: Path) -> list[int]:
    """Processes that were started with this data directory in their environment, not ourselves."""
    needle = f"IRONWORKS_DATA_DIR={data_dir}\0".encode()
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    ours = {os.getpid(), os.getppid()}
    return [pid for pid in pids if pid not in ours and needle in _environment_of(pid)]


async def _end_processes(data_dir: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in _pids(data_dir):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        for _ in range(int(_WAIT_SECONDS / _POLL_SECONDS)):
            if not _pids(data_dir):
                return
            await asyncio.sleep(_POLL_SECONDS)


async def purge(data_dir: Path) -> None:
    """Remove everything of the platform over `data_dir`; safe to repeat.

    Raises:
        Internal: something could not be removed; names it.
    """
    data_dir = data_dir.resolve()
    await _end_processes(data_dir)
    env = {**os.environ, "IRONWORKS_DATA_DIR": str(data_dir)}
    await run([sys.executable, "-m", "ironworks.metald.purge"], timeout_seconds=60, env=env)
    for item in sorted(await inventory.take(data_dir), reverse=True):
        if item.kind == "mount":
            await run(["umount", "--lazy", item.name], timeout_seconds=10, check=False)
    await asyncio.to_thread(shutil.rmtree, data_dir, ignore_errors=True)
    if data_dir.exists():
        raise Internal(f"{data_dir} could not be removed whole.", hint="Remove it by hand.")
