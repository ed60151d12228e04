"""A platform for a while: its own directory, its own process, nothing left at the end.

`iron demo`, the benchmarks and the tests use it. A temporary platform whose owner was killed is
found by the next one (`sweep`) and removed: its directory names the owner by pid and start time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO, cast

from ironworks.machine.platform import PlatformFile, read_platform_file
from ironworks.machine.purge import purge
from ironworks.model.errors import DeadlineExceeded, FailedPrecondition, NotFound
from ironworks.runtime.process import start_ticks

PARENT = Path("/var/tmp")  # noqa: S108 - directories in it are made by mkdtemp, mode 0700
PREFIX = "ironworks-"
OWNER_FILE = "owner.json"
START_SECONDS = 120
STOP_SECONDS = 30
_LOG = "supervisor.log"
_POLL_SECONDS = 0.05


def is_orphan(directory: Path) -> bool:
    """Whether the owner of a temporary platform has ended."""
    try:
        owner = cast("dict[str, int]", json.loads((directory / OWNER_FILE).read_bytes()))
        return start_ticks(owner["pid"]) != owner["start_ticks"]
    except (OSError, ValueError, KeyError, TypeError):
        # Without an owner file it is ours only if we were killed between two system calls; it is
        # then empty, and rmdir refuses everything else.
        return directory.is_dir() and not any(directory.iterdir())


async def sweep() -> list[Path]:
    """Remove what killed owners have left; answers whose directories."""
    swept: list[Path] = []
    for directory in sorted(PARENT.glob(f"{PREFIX}*")):
        if directory.is_dir() and not directory.is_symlink() and is_orphan(directory):
            await purge(directory)
            swept.append(directory)
    return swept


def make_directory(purpose: str) -> Path:
    """A new directory that `sweep` finds when we die."""
    directory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{purpose}-", dir=PARENT))
    owner = {"pid": os.getpid(), "start_ticks": start_ticks(os.getpid())}
    (directory / OWNER_FILE).write_text(json.dumps(owner))
    # Jails below are entered by other users; what is private has modes of its own.
    directory.chmod(0o711)
    return directory


async def _until_ready(process: asyncio.subprocess.Process, data_dir: Path) -> PlatformFile:
    for _ in range(int(START_SECONDS / _POLL_SECONDS)):
        with contextlib.suppress(NotFound):
            return read_platform_file(data_dir)
        if process.returncode is not None:
            raise _why_it_ended(process, data_dir / _LOG)
        await asyncio.sleep(_POLL_SECONDS)
    raise DeadlineExceeded(f"The platform was not ready within {START_SECONDS} seconds.")


class StartFailed(FailedPrecondition):
    """`iron up` ended before the platform was ready; says what it said, with its exit status."""

    def __init__(self, sentence: str, exit_status: int) -> None:
        super().__init__(sentence)
        self.exit_status = exit_status


def _why_it_ended(process: asyncio.subprocess.Process, log: Path) -> StartFailed:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    sentence = lines[-1].removeprefix("iron: ") if lines else "The platform ended while starting."
    return StartFailed(sentence, process.returncode or FailedPrecondition.exit_status)


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


@asynccontextmanager
async def started(
    data_dir: Path, env: Mapping[str, str] | None = None
) -> AsyncGenerator[PlatformFile]:
    """`iron up` over `data_dir` as a process of its own, until the block ends.

    Raises:
        IronError: it did not start; with the sentence that it said itself.
    """
    with (data_dir / _LOG).open("wb") as log:
        process = await _spawn(data_dir, env, log)
    try:
        yield await _until_ready(process, data_dir)
    finally:
        await asyncio.shield(_stop(process))


async def _spawn(
    data_dir: Path, env: Mapping[str, str] | None, log: BinaryIO
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        "setpriv",
        "--pdeathsig",
        "TERM",
        "--",
        sys.executable,
        "-m",
        "ironworks.cli.main",
        "up",
        "--data-dir",
        str(data_dir),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=log,
        env={**os.environ, **(env or {}), "IRONWORKS_DATA_DIR": str(data_dir)},
        start_new_session=True,
    )


@asynccontextmanager
async def temporary_platform(
    purpose: str, env: Mapping[str, str] | None = None
) -> AsyncGenerator[PlatformFile]:
    """A platform in a directory of its own; both are gone when the block ends.

    Args:
        purpose: Part of the directory's name.
        env: Settings above the defaults.
    """
    await sweep()
    data_dir = make_directory(purpose)
    try:
        async with started(data_dir, env) as described:
            yield described
    finally:
        await asyncio.shield(purge(data_dir))
