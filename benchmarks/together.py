"""Watch the programs of builds that run at once: what memory they have, and what processors."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from pathlib import Path

from ironworks.builderd.cgroup import PARENT
from ironworks.model.units import NS_PER_SECOND
from ironworks.runtime.cgroup_layout import read_layout
from ironworks.runtime.clock import SystemClock

_PERIOD_SECONDS = 0.02
_WRITERS = frozenset({"sqfstar", "mke2fs"})
_MEMORY = ("RssAnon:", "RssShmem:")
_KIB = 1024
_CLOCK = SystemClock()


class Together:
    """What the cgroups of builds were seen with; `watch` until it is cancelled.

    Memory is what processes have to themselves, not the kernel's cache of files that they read or
    write, which it takes back when it needs it.
    """

    def __init__(self) -> None:
        self._roots = [root / PARENT for root in read_layout().roots]
        self._cpu_ns: dict[str, int] = {}
        self._span_ns: dict[str, tuple[int, int]] = {}
        self.memory_bytes: dict[str, int] = defaultdict(int)
        """Cgroup → the most that its programs had at a time, without the file-system writer."""

    @property
    def processors(self) -> float:
        """How many processors the builds used together while both ran."""
        if len(self._span_ns) < 2:  # noqa: PLR2004 - two at once
            return 0.0
        began = min(first for first, _ in self._span_ns.values())
        ended = max(last for _, last in self._span_ns.values())
        return sum(self._cpu_ns.values()) / max(1, ended - began)

    async def watch(self) -> None:
        """Look every 20 ms."""
        while True:
            for root in self._roots:
                # Directories come and go meanwhile.
                with contextlib.suppress(OSError):
                    for directory in root.glob("*/*.flatten"):
                        self._look(directory)
            await _CLOCK.sleep(_PERIOD_SECONDS)

    def _look(self, directory: Path) -> None:
        now_ns, name = _CLOCK.monotonic_ns(), directory.name
        used_ns = _cpu_ns(directory)
        if used_ns is not None:
            first, _ = self._span_ns.get(name, (now_ns, now_ns))
            self._span_ns[name] = first, now_ns
            self._cpu_ns[name] = max(used_ns, self._cpu_ns.get(name, 0))
        pids = (directory / "cgroup.procs").read_text().split()
        found = sum(_memory_bytes(Path("/proc") / pid) for pid in pids)
        self.memory_bytes[name] = max(found, self.memory_bytes[name])


def _cpu_ns(directory: Path) -> int | None:
    with contextlib.suppress(OSError):
        return int((directory / "cpuacct.usage").read_text())
    with contextlib.suppress(OSError):
        for line in (directory / "cpu.stat").read_text().splitlines():
            if line.startswith("usage_usec "):
                return int(line.split()[1]) * (NS_PER_SECOND // 1_000_000)
    return None


def _memory_bytes(process: Path) -> int:
    with contextlib.suppress(OSError):
        if (process / "comm").read_text().strip() not in _WRITERS:
            lines = (process / "status").read_text().splitlines()
            return sum(int(line.split()[1]) * _KIB for line in lines if line.startswith(_MEMORY))
    return 0
