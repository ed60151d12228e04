"""Ending what runs in a cgroup, and removing it from every hierarchy."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path

from ironworks.runtime.clock import Clock

TRIES = 200
PERIOD_SECONDS = 0.02


async def remove(directories: Sequence[Path], clock: Clock) -> bool:
    """Kill what is in a cgroup, wait until it is empty, remove it; False: something does not end.

    Args:
        directories: The cgroup's directory in each hierarchy; one that is not there is no fault.
        clock: For the waits between tries.
    """
    for _ in range(TRIES):
        if await asyncio.to_thread(try_remove, directories):
            return True
        await clock.sleep(PERIOD_SECONDS)
    return False


def try_remove(directories: Sequence[Path]) -> bool:
    """Kill what is in it, or remove it if nothing is; answers whether it is gone."""
    if _kill_all(directories):
        return False
    gone = True
    for directory in directories:
        try:
            directory.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            gone = False
    return gone


def remove_empty(directories: Iterable[Path]) -> None:
    """Remove those that are there and have nothing in them."""
    for directory in directories:
        with contextlib.suppress(OSError):
            directory.rmdir()


def _kill_all(directories: Iterable[Path]) -> bool:
    found = False
    for directory in directories:
        with contextlib.suppress(OSError):
            for line in (directory / "cgroup.procs").read_text(encoding="ascii").split():
                found = True
                # 0 stands for a process of a pid namespace that we cannot see into, and to kill 0
                # would be suicide.
                if int(line) > 0:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(line), signal.SIGKILL)
    return found
