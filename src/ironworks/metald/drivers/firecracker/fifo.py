"""A FIFO that a VMM writes to and that is always drained, so that the VMM never finds it full."""

import asyncio
import contextlib
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path

F_SETPIPE_SZ = 1031
"""From linux/fcntl.h; Python 3.11 on Linux has it as `fcntl.F_SETPIPE_SZ` too."""
FIFO_BYTES = 1024 * 1024
"""Room for what comes while no metald reads; the kernel's default is 64 KiB."""
READ_BYTES = 64 * 1024
MAX_READS = 64
"""Reads at one go: a writer without end does not hold the loop."""


def make_fifo(path: Path, uid: int, gid: int) -> None:
    """Make a FIFO that only a VM's user may open.

    Raises:
        OSError: it is there, or cannot be made.
    """
    os.mkfifo(path, 0o600)
    os.chown(path, uid, gid, follow_symlinks=False)


class DrainedFifo:
    """The reading end. Opened for writing too, so that it never ends while the VMM restarts it."""

    def __init__(self, path: Path, take: Callable[[bytes], None]) -> None:
        """Open it and drain it from now on, in the running loop.

        Args:
            path: The FIFO; not followed if it is a link, since it lies where the VMM may write.
            take: Gets what is read.

        Raises:
            OSError: it is not there, or no FIFO.
        """
        flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(path, flags)
        if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise FileNotFoundError(f"{path} is no FIFO")
        # A host may allow less; then it stays as it is.
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, F_SETPIPE_SZ, FIFO_BYTES)
        self._descriptor = descriptor
        self._take = take
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(descriptor, self.drain)

    def drain(self) -> None:
        """Take what is there now."""
        for _ in range(MAX_READS):
            if self._descriptor < 0:
                return
            try:
                data = os.read(self._descriptor, READ_BYTES)
            except BlockingIOError:
                return
            if not data:
                return
            self._take(data)

    def close(self) -> None:
        """Stop reading."""
        if self._descriptor < 0:
            return
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1
