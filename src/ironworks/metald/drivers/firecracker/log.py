"""Firecracker's log as it comes out of its FIFO: a file that keeps a bounded amount of it."""

import os
from pathlib import Path

MAX_BYTES = 64 * 1024


class BoundedLog:
    """Appends to a file until it is full; what is full keeps its beginning, where causes stand."""

    def __init__(self, path: Path) -> None:
        """Open the file; made if it is not there.

        Raises:
            OSError: it cannot be made.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(path, flags, 0o600)

    def write(self, data: bytes) -> None:
        """Append what there is room for."""
        if self._descriptor < 0:
            return
        room = MAX_BYTES - os.fstat(self._descriptor).st_size
        if room > 0:
            os.write(self._descriptor, data[:room])

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
