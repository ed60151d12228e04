"""The steps of flattening one image."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from ironworks.builderd.flatten.archive import Counts, count
from ironworks.builderd.flatten.blobs import Budget, no_room, unpack_all
from ironworks.builderd.flatten.contents import Contents
from ironworks.builderd.flatten.headers import read_entries
from ironworks.builderd.flatten.packages import find_packages
from ironworks.builderd.flatten.plan import Action, Flattened, Plan
from ironworks.builderd.flatten.progress import Progress, Say
from ironworks.builderd.flatten.squashfs import write_squashfs
from ironworks.builderd.flatten.survey import survey
from ironworks.builderd.flatten.tree import Tree
from ironworks.builderd.flatten.users import user_id
from ironworks.model.errors import Internal


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
    with ExitStack() as held:
        tars = unpack_all(plan, budget, progress)
        for fd, _ in tars:
            held.callback(os.close, fd)
        return _flatten(plan, tars, progress, held.close)


def _flatten(
    plan: Plan, tars: Sequence[tuple[int, int]], progress: Progress, fed: Callable[[], None]
) -> Flattened:
    tree = Tree(plan.limits)
    for index, (fd, size) in enumerate(tars):
        tree.add_layer(index, read_entries(fd, size, plan.limits))
    progress.begin("looking through the tree")
    contents = Contents(tree, [fd for fd, _ in tars])
    findings = survey(tree, plan.rules, contents.head)
    packages, notes = find_packages(contents.read, contents.names)
    user = user_id(contents.read(b"etc/passwd"), plan.user)
    refused = any(one.action is Action.REFUSE and one.path_count for one in findings)
    size_bytes = 0
    if plan.output and not refused:
        counts = _write(plan, tree, [fd for fd, _ in tars], progress, fed)
        size_bytes = os.stat(plan.output).st_size  # noqa: PTH116 - as all here
    else:
        counts = count(tree)
    return Flattened(
        size_bytes=size_bytes,
        unpacked_bytes=counts.unpacked_bytes,
        file_count=counts.file_count,
        notes=notes,
        findings=findings,
        packages=packages,
        user_id=user,
    )


def _write(
    plan: Plan, tree: Tree, layers: list[int], progress: Progress, fed: Callable[[], None]
) -> Counts:
    try:
        if plan.format == "squashfs":
            return write_squashfs(plan, tree, layers, progress, fed)
        if plan.format == "ext4":
            from ironworks.builderd.flatten.ext4 import write_ext4  # noqa: PLC0415 - most are not

            identity = hashlib.sha256("".join(layer.diff_id for layer in plan.layers).encode())
            return write_ext4(plan.output, tree, layers, identity.digest(), progress)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise no_room() from error
        raise
    raise Internal(f"{plan.format!r} is no format that is written.")
