"""Run other programs: bounded in time and output, no shell, errors that carry what they said."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ironworks.model.errors import DeadlineExceeded, FailedPrecondition, Internal

MAX_OUTPUT_BYTES = 8 * 1024 * 1024
_TAIL_CHARS = 2000
FIRST_NICE = -15
MAX_FILES = 65_536

_START_TIME_FIELD = 22 - 3
"""Index of field 22 of `/proc/<pid>/stat` among what follows the program's name."""


def start_ticks(pid: int) -> int | None:
    """Start time of a live process in clock ticks; None if it is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name stands in parentheses and may itself have spaces and parentheses.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in {"Z", "X"} else int(fields[_START_TIME_FIELD])


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """What a program left: its exit status (negative: the signal) and its output, bounded."""

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: bytes

    @property
    def stderr_tail(self) -> str:
        """The end of what it said on standard error."""
        return self.stderr.decode(errors="replace").strip()[-_TAIL_CHARS:]


async def _read_bounded(stream: asyncio.StreamReader) -> bytes:
    kept = bytearray()
    while chunk := await stream.read(65536):
        kept += chunk[: MAX_OUTPUT_BYTES - len(kept)]
    return bytes(kept)


async def _feed(process: asyncio.subprocess.Process, stdin: bytes | None) -> None:
    if process.stdin is None:
        return
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(stdin or b"")
        await process.stdin.drain()
        process.stdin.close()


async def _start(
    argv: Sequence[str], env: Mapping[str, str] | None, cwd: Path | None, *, reads: bool
) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE if reads else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=None if env is None else dict(env),
            cwd=cwd,
            start_new_session=True,
        )
    except (FileNotFoundError, PermissionError) as error:
        if cwd is not None and str(error.filename) == str(cwd):
            raise Internal(
                f"{argv[0]} has no directory to work in.", context={"cwd": str(cwd)}
            ) from None
        raise FailedPrecondition(
            f"The program {argv[0]} is not installed, or not executable.",
            hint="Run `./iron setup`, which installs deploy/debian-packages.txt.",
            context={"error": str(error)},
        ) from None


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill the whole group, even if its leader has ended: what it left behind holds our pipes."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


async def run(
    argv: Sequence[str],
    *,
    timeout_seconds: float,
    check: bool = True,
    stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Completed:
    """Run a program to its end, in a process group of its own.

    Args:
        argv: Program and arguments; found on PATH, never through a shell.
        timeout_seconds: After this the whole process group is killed.
        check: Raise when the exit status is not 0.
        stdin: Bytes for its standard input; None is an empty input.
        env: Its whole environment; None hands ours on.
        cwd: Its working directory.

    Raises:
        FailedPrecondition: the program is not installed.
        DeadlineExceeded: it did not end in time.
        Internal: it failed and `check` is set; the context has the end of its standard error.
    """
    process = await _start(argv, env, cwd, reads=stdin is not None)
    if process.stdout is None or process.stderr is None:
        raise Internal("A pipe to a program could not be made.")
    try:
        async with asyncio.timeout(timeout_seconds):
            out, err, _, _ = await asyncio.gather(
                _read_bounded(process.stdout),
                _read_bounded(process.stderr),
                _feed(process, stdin),
                process.wait(),
            )
    except TimeoutError:
        await _end(process)
        raise DeadlineExceeded(
            f"{argv[0]} did not end within {timeout_seconds:g} seconds.",
            context={"argv": list(argv)},
        ) from None
    except BaseException:
        await _end(process)
        raise
    done = Completed(argv=tuple(argv), status=process.returncode or 0, stdout=out, stderr=err)
    if check and done.status != 0:
        raise Internal(
            f"{argv[0]} failed with status {done.status}.",
            context={"argv": list(argv), "stderr": done.stderr_tail},
        )
    return done


def open_many_files() -> int:
    """Let this process have as many descriptors as the system allows, up to MAX_FILES; how many.

    Logins and systemd give 1,024 and allow more for whoever asks; a host with 200 VMs needs them.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most


def go_first() -> bool:
    """Let this thread go before those that wait longer for a core; False: the kernel refuses.

    For a thread that must be on time on a machine that its VMs keep busy. What it starts, threads
    and processes, is as any other (SCHED_RESET_ON_FORK).
    """
    try:
        ordinary = os.SCHED_OTHER | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, ordinary, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, 0, FIRST_NICE)
    except OSError:
        return False
    return True
