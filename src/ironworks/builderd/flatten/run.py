"""The steps of flattening one image."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ironworks.builderd.flatten.archive import Counts, count
from ironworks.builderd.flatten.blobs import Budget, no_room, unpack
from ironworks.builderd.flatten.contents import Contents
from ironworks.builderd.flatten.ext4 import write_ext4
from ironworks.builderd.flatten.headers import read_entries
from ironworks.builderd.flatten.packages import find_packages
from ironworks.builderd.flatten.plan import Action, Flattened, Plan
from ironworks.builderd.flatten.squashfs import write_squashfs
from ironworks.builderd.flatten.survey import survey
from ironworks.builderd.flatten.tree import Tree
from ironworks.model.errors import Internal

_REPORT_BYTES = 16 << 20
_CHUNK_BYTES = 1 << 20
Say = Callable[[dict[str, Any]], None]


class _Progress:
    """Tells how many bytes have been unpacked, now and then."""

    def __init__(self, say: Say, total_bytes: int) -> None:
        self._say = say
        self._total_bytes = total_bytes
        self._lock = threading.Lock()
        self._done_bytes = self._told_bytes = 0

    def add(self, count: int) -> None:
        with self._lock:
            self._done_bytes += count
            if self._done_bytes - self._told_bytes < _REPORT_BYTES:
                return
            self._told_bytes = self._done_bytes
        self._say({"step": "unpacking layers", "done_bytes": self._done_bytes})


def flatten(plan: Plan, say: Say) -> Flattened:
    """Write the file system of an image.

    Args:
        plan: Layers, bounds and where to write.
        say: Is told of each step.

    Raises:
        InvalidRequest: the image is refused; says why.
        ResourceExhausted: the disk is full.
        Internal: a fault of ours.
    """
    progress = _Progress(say, sum(layer.size_bytes for layer in plan.layers))
    budget = Budget(plan.limits, plan.scratch, progress.add)
    say({"step": "unpacking layers", "done_bytes": 0})
    with ThreadPoolExecutor(max(1, plan.processors)) as pool:
        waiting = [pool.submit(unpack, layer, plan.scratch, budget) for layer in plan.layers]
        tars = [one.result() for one in waiting]
    tree = Tree(plan.limits)
    for index, (fd, size) in enumerate(tars):
        tree.add_layer(index, read_entries(fd, size, plan.limits))
    say({"step": "looking through the tree", "done_bytes": 0})
    contents = Contents(tree, [fd for fd, _ in tars])
    findings = survey(tree, plan.rules, contents.head)
    packages, notes = find_packages(contents.read, contents.names)
    refused = any(one.action is Action.REFUSE and one.path_count for one in findings)
    sha256, size_bytes = "", 0
    if plan.output and not refused:
        say({"step": "writing the file system", "done_bytes": 0})
        counts = _write(plan, tree, [fd for fd, _ in tars])
        sha256, size_bytes = _hash(plan.output)
    else:
        counts = count(tree)
    return Flattened(
        sha256=sha256,
        size_bytes=size_bytes,
        unpacked_bytes=counts.unpacked_bytes,
        file_count=counts.file_count,
        notes=notes,
        findings=findings,
        packages=packages,
    )


def _write(plan: Plan, tree: Tree, layers: list[int]) -> Counts:
    try:
        if plan.format == "squashfs":
            return write_squashfs(plan.output, plan.processors, tree, layers)
        if plan.format == "ext4":
            identity = hashlib.sha256("".join(layer.diff_id for layer in plan.layers).encode())
            return write_ext4(plan.output, tree, layers, identity.digest())
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise no_room() from error
        raise
    raise Internal(f"{plan.format!r} is no format that is written.")


def _hash(path: str) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    fd = os.open(path, os.O_RDONLY)
    try:
        while chunk := os.pread(fd, _CHUNK_BYTES, size):
            digest.update(chunk)
            size += len(chunk)
    finally:
        os.close(fd)
    return digest.hexdigest(), size
