"""Everything of Ironworks that exists on this host, read from the kernel, not from our records."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from ironworks.runtime.process import run
from ironworks.runtime.settings import tag_of

_CGROUPS = Path("/sys/fs/cgroup")
_NETNS = Path("/run/netns")
PREFIX = "iw"
"""Every link and namespace of ours begins with it; then comes the tag of the data directory."""


@dataclass(frozen=True, slots=True, order=True)
class Item:
    """One thing: `kind` is process, link, namespace, cgroup, mount, jail or nftables."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def _processes(data_dir: Path, tag: str) -> set[Item]:
    """Processes that were started for this data directory, and those in its cgroups."""
    found: set[Item] = set()
    variable = f"IRONWORKS_DATA_DIR={data_dir}\0".encode()
    path = f"{data_dir}/".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            ours = path in command or variable in (entry / "environ").read_bytes() + b"\0"
            ours = ours or f"/ironworks/{tag}/" in (entry / "cgroup").read_text()
        except OSError:
            continue  # it ended, or it is a kernel thread
        if ours and command:
            words = command.replace(b"\0", b" ").decode(errors="replace")
            found.add(Item("process", f"{entry.name} {words[:80].strip()}"))
    return found


async def _links(tag: str) -> set[Item]:
    listed = await run(["ip", "-json", "link", "show"], timeout_seconds=10)
    names = (link["ifname"] for link in cast("list[dict[str, str]]", json.loads(listed.stdout)))
    return {Item("link", name) for name in names if name.startswith(f"{PREFIX}{tag}")}


async def _tables(tag: str) -> set[Item]:
    listed = await run(["nft", "list", "tables"], timeout_seconds=10, check=False)
    lines = listed.stdout.decode().splitlines()
    return {Item("nftables", line) for line in lines if line.endswith(f" {PREFIX}_{tag}")}


def _namespaces(tag: str) -> set[Item]:
    names = (entry.name for entry in _NETNS.iterdir()) if _NETNS.is_dir() else ()
    return {Item("namespace", name) for name in names if name.startswith(f"{PREFIX}-{tag}")}


def _cgroups(tag: str) -> set[Item]:
    """In the v2 hierarchy, and in each of v1: one directory below the mount point."""
    found: set[Item] = set()
    for root in (_CGROUPS, *_CGROUPS.glob("*/")):
        base = root / "ironworks" / tag
        found |= {Item("cgroup", str(path)) for path in (base, *base.glob("**/")) if path.is_dir()}
    return found


def _mounts(data_dir: Path) -> set[Item]:
    lines = Path("/proc/self/mounts").read_text().splitlines()
    points = (line.split(" ")[1] for line in lines)
    return {Item("mount", point) for point in points if point.startswith(f"{data_dir}/")}


def _jails(data_dir: Path) -> set[Item]:
    jails = data_dir / "jails"
    return {Item("jail", str(path)) for path in jails.iterdir()} if jails.is_dir() else set()


async def take(data_dir: Path) -> frozenset[Item]:
    """What there is now of the platform of `data_dir`."""
    tag = tag_of(data_dir)
    found = _processes(data_dir, tag) | _namespaces(tag) | _cgroups(tag) | _mounts(data_dir)
    return frozenset(found | _jails(data_dir) | await _links(tag) | await _tables(tag))
