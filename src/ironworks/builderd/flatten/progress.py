"""Tell how far the present step has come, now and then."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

_REPORT_BYTES = 16 << 20
Say = Callable[[dict[str, Any]], None]


class Progress:
    """Bytes that a step has done, of those that it has to do; used by several threads."""

    def __init__(self, say: Say) -> None:
        """`say` is told `step`, `done_bytes` and `total_bytes`; 0: it has no bytes to count."""
        self._say = say
        self._lock = threading.Lock()
        self._step = ""
        self._total_bytes = self._done_bytes = self._told_bytes = 0

    def begin(self, step: str, total_bytes: int = 0) -> None:
        """The next step."""
        with self._lock:
            self._step, self._total_bytes = step, total_bytes
            self._done_bytes = self._told_bytes = 0
            self._tell()

    def add(self, size_bytes: int) -> None:
        """So many bytes more are done."""
        with self._lock:
            self._done_bytes += size_bytes
            if self._done_bytes - self._told_bytes >= _REPORT_BYTES:
                self._tell()

    def _tell(self) -> None:
        self._told_bytes = self._done_bytes
        self._say(
            {
                "step": self._step,
                "done_bytes": self._done_bytes,
                "total_bytes": self._total_bytes,
            }
        )
