"""The steps of flattening one image."""

from __future__ import annotations

import errno
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

from ironworks.builderd.flatten.archive import Counts, count
from ironworks.builderd.flatten.blobs import Budget, no_room, unpack
from ironworks.builderd.flatten.contents import Contents
from ironworks.builderd.flatten.ext4 import write_ext4
from ironworks.builderd.flatten.headers import read_entries
from ironworks.builderd.flatten.packages import find_packages
from ironworks.builderd.flatten.plan import Action, Flattened, Plan
from ironworks.builderd.flatten.progress import Progress, Say
from ironworks.builderd.flatten.squashfs import write_squashfs
from ironworks.builderd.flatten.survey import survey
from ironworks.builderd.flatten.tree import Tree
from ironworks.builderd.flatten.users import user_id
from ironworks.model.errors import Internal

_CHUNK_BYTES = 1 << 20
_THREADS_PER_PROCESSOR = 4


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
    progress = Progress(say)
    budget = Budget(plan.limits, plan.scratch)
    progress.begin("unpacking layers", sum(layer.size_bytes for layer in plan.layers))
    # More threads than processors: else the last layers leave processors idle.
    threads = min(max(1, len(plan.layers)), _THREADS_PER_PROCESSOR * plan.processors)
    with ThreadPoolExecutor(threads) as pool:
        waiting = [
            pool.submit(unpack, layer, plan.scratch, budget, progress) for layer in plan.layers
        ]
        tars = [one.result() for one in waiting]
    tree = Tree(plan.limits)
    for index, (fd, size) in enumerate(tars):
        tree.add_layer(index, read_entries(fd, size, plan.limits))
    progress.begin("looking through the tree")
    contents = Contents(tree, [fd for fd, _ in tars])
    findings = survey(tree, plan.rules, contents.head)
    packages, notes = find_packages(contents.read, contents.names)
    user = user_id(contents.read(b"etc/passwd"), plan.user)
    refused = any(one.action is Action.REFUSE and one.path_count for one in findings)
    sha256, size_bytes = "", 0
    if plan.output and not refused:
        counts = _write(plan, tree, [fd for fd, _ in tars], progress)
        progress.begin("hashing the file system")
        with ThreadPoolExecutor(1) as pool:
            # To free so much takes as long as to hash it.
            for fd, _ in tars:
                pool.submit(os.close, fd)
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
        user_id=user,
    )


def _write(plan: Plan, tree: Tree, layers: list[int], progress: Progress) -> Counts:
    try:
        if plan.format == "squashfs":
            return write_squashfs(plan.output, plan.processors, tree, layers, progress)
        if plan.format == "ext4":
            identity = hashlib.sha256("".join(layer.diff_id for layer in plan.layers).encode())
            return write_ext4(plan.output, tree, layers, identity.digest(), progress)
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
