"""VMM processes, for every driver: spawned so that they outlive metald, watched, found again."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Self

from ironworks.metald.drivers.driver import (
    CONSOLE_LINE_CHARS,
    CONSOLE_TAIL_LINES,
    Evidence,
)
from ironworks.runtime.process import start_ticks

REBOOT_LINE = "ironworks: the VM is booted again"
_TAIL_BYTES = 64 * 1024
_PRINTABLE_FROM = " "


@cache
def boot_id() -> str:
    """Id of this boot of the host."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def is_alive(evidence: Evidence) -> bool:
    """Whether the very process that `evidence` names still runs."""
    return evidence.boot_id == boot_id() and start_ticks(evidence.pid) == evidence.pid_start_ticks


def is_stopped(pid: int) -> bool:
    """Whether a process stands still because a signal said so."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[:1] == ["T"]


def tail(path: Path, lines: int = CONSOLE_TAIL_LINES) -> tuple[str, ...]:
    """Last lines of a console's log that have text, oldest first, control characters taken out."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ()
    cleaned = (
        "".join(char for char in line if char >= _PRINTABLE_FROM and char != "\x7f")
        for line in text.replace("\r", "\n").split("\n")
    )
    return tuple(line[:CONSOLE_LINE_CHARS] for line in cleaned if line.strip())[-lines:]


def mark_reboot(console: Path) -> None:
    """Divide a console's log: what stands above this line is of a VMM that is no more."""
    if console.is_file():
        with console.open("ab") as file:
            file.write(f"\n{REBOOT_LINE}\n".encode())


def since_reboot(lines: tuple[str, ...]) -> tuple[str, ...]:
    """The lines of the present VMM, out of those of a console's log."""
    for index in range(len(lines) - 1, -1, -1):
        if lines[index] == REBOOT_LINE:
            return lines[index + 1 :]
    return lines


class VmmProcess:
    """A process that is watched by its pidfd; needs a running loop.

    A child is reaped and its status known; one that another metald has started only ends.
    """

    def __init__(self, pid: int, ticks: int, descriptor: int, *, child: bool) -> None:
        """Watch the process behind `descriptor`; use `spawn` or `adopt`."""
        self.pid = pid
        self.start_ticks = ticks
        self._descriptor = descriptor
        self._child = child
        self._status: int | None = None
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(descriptor, self._on_end)

    @classmethod
    def spawn(
        cls,
        argv: Sequence[str],
        *,
        output: Path,
        env: Mapping[str, str] | None = None,
    ) -> Self:
        """Start a program in a session of its own, its output going to a file.

        Args:
            argv: Program, with its whole path, and arguments.
            output: Appended to; made with mode 0600 if it is not there.
            env: Its whole environment; None is an empty one but for PATH.

        Raises:
            OSError: it cannot be started.
        """
        environment = dict(env) if env is not None else {"PATH": os.environ.get("PATH", "")}
        output_flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        pid = os.posix_spawn(
            argv[0],
            list(argv),
            environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.fspath(output), output_flags, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=[],
            # Python ignores these, and what is ignored would stay so in the VMM.
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
        )
        return cls(pid, start_ticks(pid) or 0, os.pidfd_open(pid), child=True)

    @classmethod
    def adopt(cls, pid: int, ticks: int) -> Self | None:
        """Watch the live process `pid` that started at `ticks`; None if it is no more."""
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            return None
        # Looked at only now: the pidfd holds on to whichever process it is.
        if start_ticks(pid) != ticks:
            os.close(descriptor)
            return None
        return cls(pid, ticks, descriptor, child=False)

    def _on_end(self) -> None:
        self._loop.remove_reader(self._descriptor)
        if self._child:
            with contextlib.suppress(ChildProcessError):
                _, status = os.waitpid(self.pid, os.WNOHANG)
                self._status = os.waitstatus_to_exitcode(status)
        self._ended.set()

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self._ended.is_set()

    @property
    def status(self) -> int | None:
        """Exit status, negative: the signal; None: it runs, or was not our child."""
        return self._status

    async def wait(self) -> int | None:
        """Wait for its end, in any number of tasks; answers `status`."""
        await self._ended.wait()
        return self._status

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens if it has ended."""
        if self.ended:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, number)

    async def kill(self) -> None:
        """End it now; returns when it is gone."""
        self.send(signal.SIGKILL)
        await self.wait()

    def close(self) -> None:
        """Stop watching; the process runs on."""
        if self._descriptor < 0:
            return
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1
