"""The cgroup of each program that touches an image's bytes: its processors, memory and processes.

`ironworks-builds/<tag>/<name>` in every hierarchy that counts or limits; made before the program
starts, and removed with all that is left in it when the program has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from ironworks.builderd.types import BuilderSettings
from ironworks.model.errors import FailedPrecondition, Internal, ResourceExhausted
from ironworks.runtime import cgroup_removal
from ironworks.runtime.cgroup_layout import Layout, read_layout
from ironworks.runtime.clock import Clock
from ironworks.runtime.settings import tag_of

PARENT = "ironworks-builds"
CPU_PERIOD_US = 100_000
_CPU_WEIGHT, _V1_SHARES = 50, 512
"""Half of what a VM has by default: builds wait for VMs, not the other way round."""
_CREATE_TRIES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildLimits:
    """What one program and all its descendants may use together."""

    memory_bytes: int
    """With the pages of files that it writes; beyond it the kernel kills one of them."""
    processors: float
    process_count: int
    """Threads count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildGroup:
    """One cgroup."""

    directories: tuple[Path, ...]
    """One in each hierarchy."""
    memory_directory: Path
    limits: BuildLimits

    @property
    def join_paths(self) -> tuple[Path, ...]:
        """Files that a process writes its pid into to join."""
        return tuple(directory / "cgroup.procs" for directory in self.directories)

    def check_memory(self) -> None:
        """Say so if the kernel killed something in it for lack of memory.

        Raises:
            ResourceExhausted: it did.
        """
        for name in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError):
                for line in (self.memory_directory / name).read_text(encoding="ascii").splitlines():
                    if line.startswith("oom_kill ") and int(line.split()[1]):
                        raise ResourceExhausted(
                            f"The image needs more than the {self.limits.memory_bytes} bytes of "
                            "memory that a build has.",
                            hint="It has too many files; or raise the setting build_memory_bytes.",
                        )


class BuildGroups:
    """The cgroups of one platform's builds on this machine."""

    def __init__(self, layout: Layout, tag: str, limits: BuildLimits, clock: Clock) -> None:
        """Work below `ironworks-builds/<tag>` and nowhere else."""
        self._layout = layout
        self._place = Path(PARENT) / tag
        self._limits = limits
        self._clock = clock

    def _group(self, name: str) -> BuildGroup:
        roots, v1 = self._layout.roots, self._layout.v1
        return BuildGroup(
            directories=tuple(root / self._place / name for root in roots),
            memory_directory=v1.get("memory", roots[0]) / self._place / name,
            limits=self._limits,
        )

    @asynccontextmanager
    async def held(self, name: str) -> AsyncGenerator[BuildGroup]:
        """A fresh cgroup, for as long as the context lasts.

        Raises:
            FailedPrecondition: builderd may not make cgroups.
        """
        group = self._group(name)
        try:
            await self._make(group)
            yield group
        finally:
            await asyncio.shield(self._remove(group))

    async def _make(self, group: BuildGroup) -> None:
        for left in reversed(range(_CREATE_TRIES)):
            try:
                await asyncio.to_thread(self._create, group)
            except FileNotFoundError:
                # Another build's end took the empty parents away in between.
                if left == 0:
                    raise
            except OSError as error:
                if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
                    raise FailedPrecondition(
                        "builderd may not make cgroups on this host, and no build runs without.",
                        hint="Run it as root; or set build_cgroups to false: less is bounded then.",
                    ) from error
                raise
            else:
                return

    def _create(self, group: BuildGroup) -> None:
        for directory in group.directories:
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        limits = self._limits
        quota_us = int(limits.processors * CPU_PERIOD_US)
        v1 = {key: root / self._place / group.directories[0].name for key, root in self._v1()}
        if v1:
            values = (
                (v1["memory"] / "memory.limit_in_bytes", limits.memory_bytes),
                (v1["cpu"] / "cpu.shares", _V1_SHARES),
                (v1["cpu"] / "cpu.cfs_period_us", CPU_PERIOD_US),
                (v1["cpu"] / "cpu.cfs_quota_us", quota_us),
                (v1["pids"] / "pids.max", limits.process_count),
            )
        else:
            (directory,) = group.directories
            for parent in (directory.parents[2], directory.parents[1], directory.parent):
                _write(parent / "cgroup.subtree_control", "+cpu +memory +pids")
            values = (
                (directory / "memory.max", limits.memory_bytes),
                (directory / "cpu.weight", _CPU_WEIGHT),
                (directory / "cpu.max", f"{quota_us} {CPU_PERIOD_US}"),
                (directory / "pids.max", limits.process_count),
            )
        for path, value in values:
            _write(path, value)

    def _v1(self) -> Iterable[tuple[str, Path]]:
        return self._layout.v1.items()

    async def _remove(self, group: BuildGroup) -> None:
        if not await cgroup_removal.remove(group.directories, self._clock):
            raise Internal(
                "A process of a build does not end.",
                context={"cgroup": str(group.directories[0])},
            )
        self._remove_empty_parents()

    def sweep(self) -> None:
        """Kill all there is and remove it; what is left goes the next time."""
        for root in self._layout.roots:
            with contextlib.suppress(FileNotFoundError), os.scandir(root / self._place) as entries:
                for entry in entries:
                    if entry.is_dir():
                        # Once to kill, once to remove.
                        cgroup_removal.try_remove([Path(entry.path)])
                        cgroup_removal.try_remove([Path(entry.path)])
        self._remove_empty_parents()

    def _remove_empty_parents(self) -> None:
        cgroup_removal.remove_empty(
            parent for root in self._layout.roots for parent in (root / self._place, root / PARENT)
        )


def sweep_groups(settings: BuilderSettings, clock: Clock, worker: str) -> None:
    """Remove the cgroups of a worker that lives no more. Blocks."""
    if groups := build_groups(settings, clock, worker):
        groups.sweep()


def build_groups(settings: BuilderSettings, clock: Clock, worker: str = "") -> BuildGroups | None:
    """Where the builds of a worker get their cgroups; None: the operator wants none.

    Args:
        settings: What they may use.
        clock: For waits.
        worker: Its name; empty: this one's.

    Raises:
        FailedPrecondition: a controller that is needed is nowhere on this host.
    """
    if not settings.build_cgroups:
        return None
    limits = BuildLimits(
        memory_bytes=settings.build_memory_bytes,
        processors=settings.build_processors,
        process_count=settings.build_processes,
    )
    tag = f"{tag_of(settings.data_dir)}-{worker or settings.worker_name}"
    return BuildGroups(read_layout(), tag, limits, clock)


def _write(path: Path, value: object) -> None:
    path.write_text(str(value), encoding="ascii")
