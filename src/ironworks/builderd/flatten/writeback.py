"""Let the disk begin while a file is being written, so that a later fsync has little to do."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress

_PERIOD_SECONDS = 0.02
_BEGIN_WRITING = 2
"""SYNC_FILE_RANGE_WRITE of sync_file_range(2): begins, and does not wait."""


@contextmanager
def written_back(path: str) -> Generator[None]:
    """Hand what another process writes into `path` to the disk as it comes.

    Nothing depends on it: the file may not exist yet, or never.
    """
    ended = threading.Event()
    thread = threading.Thread(target=_write_back, args=(path, ended))
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _write_back(path: str, ended: threading.Event) -> None:
    begin = ctypes.CDLL(None).sync_file_range
    begin.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    while not ended.wait(_PERIOD_SECONDS):
        with suppress(OSError):
            fd = os.open(path, os.O_RDONLY)
            try:
                begin(fd, 0, 0, _BEGIN_WRITING)
            finally:
                os.close(fd)
