"""The keeper: built once, started for each VMM, found again by its command line."""

import asyncio
import contextlib
import fcntl
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ironworks.metald.jail.programs import build

SOURCE = Path(__file__).parent / "keeper.c"
TAP_DESCRIPTOR = 10
"""Where the kept program finds its tap; `TAP_FD` in keeper.c."""
ERRORS_MAX_BYTES = 64 * 1024
_ABOVE_TARGETS = 64
_STDERR = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What the keeper does for one program.

    Attributes:
        cgroup_join_paths: Files to write its pid to.
        netns_path: Network namespace to be in; None stays in ours.
        tap: Tap to open in it; None opens none.
        uid: User that the keeper itself becomes, once the program runs.
        gid: Likewise its group.
        console_path: Log of the program's output; its older half goes when it is full.
        console_max_bytes: When it is full.
        errors_path: Log of its errors, of at most `ERRORS_MAX_BYTES`.
        orphans: Whether the program leaves a child behind that is to be kept in its place.
    """

    cgroup_join_paths: tuple[Path, ...]
    netns_path: Path | None
    tap: str | None
    uid: int
    gid: int
    console_path: Path
    console_max_bytes: int
    errors_path: Path
    orphans: bool = False


async def build_keeper(directory: Path) -> Path:
    """Return the keeper's path below `directory`; see `programs.build`.

    Raises:
        FailedPrecondition: as `build`.
    """
    return await build(directory, SOURCE, name="keeper")


def keeper_argv(keeper: Path, kept: Kept, program: Sequence[str]) -> list[str]:
    """The keeper's command line."""
    argv = [str(keeper)]
    for path in kept.cgroup_join_paths:
        argv += ["--cgroup", str(path)]
    if kept.netns_path is not None:
        argv += ["--netns", str(kept.netns_path)]
    if kept.tap is not None:
        argv += ["--tap", kept.tap]
    argv += ["--uid", str(kept.uid), "--gid", str(kept.gid)]
    argv += ["--console", str(kept.console_path), "--console-bytes", str(kept.console_max_bytes)]
    argv += ["--errors", str(kept.errors_path), "--errors-bytes", str(ERRORS_MAX_BYTES)]
    if kept.orphans:
        argv += ["--orphans", "1"]
    return [*argv, "--", *program]


def spawn_keeper(argv: Sequence[str], *, errors_path: Path, descriptors: Mapping[int, int]) -> int:
    """Start a keeper in a session of its own; it and its program outlive us.

    Args:
        argv: From `keeper_argv`.
        errors_path: Where the keeper's own complaints go, those from before it opens its logs.
        descriptors: Number in the program → open descriptor of ours, which stays ours.

    Returns:
        Its pid, which is also that of its process group.

    Raises:
        OSError: it cannot be started.
    """
    moved = {
        target: fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, _ABOVE_TARGETS)
        for target, source in descriptors.items()
    }
    log_flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    try:
        return os.posix_spawn(
            argv[0],
            list(argv),
            {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, os.fspath(errors_path), log_flags, 0o600),
                *((os.POSIX_SPAWN_CLOSE, number) for number in _inheritable()),
                *((os.POSIX_SPAWN_DUP2, source, target) for target, source in moved.items()),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
        )
    finally:
        for source in moved.values():
            os.close(source)


def _inheritable() -> list[int]:
    """Descriptors that any program we start would get: those that came with us from our parent."""
    found: list[int] = []
    for entry in os.scandir("/proc/self/fd"):
        number = int(entry.name)
        with contextlib.suppress(OSError):
            if number > _STDERR and not fcntl.fcntl(number, fcntl.F_GETFD) & fcntl.FD_CLOEXEC:
                found.append(number)
    return found


def find_keepers(console_path: Path) -> list[int]:
    """Pids of the keepers whose console's log this is: for what nobody remembers starting."""
    wanted = os.fsencode(console_path)
    found: list[int] = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError):
            words = (Path(entry.path) / "cmdline").read_bytes().split(b"\0")
            name = os.path.basename(words[0])  # noqa: PTH119 - bytes
            if name.startswith(b"keeper-") and wanted in words:
                found.append(int(entry.name))
    return found


async def kill_group(pid: int) -> None:
    """Kill a keeper with all that it started, and wait until it is gone."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        gone = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(descriptor, gone.set)
        try:
            await gone.wait()
        finally:
            loop.remove_reader(descriptor)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)  # noqa: ASYNC222 - does not wait
    finally:
        os.close(descriptor)
