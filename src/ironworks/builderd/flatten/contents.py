"""Read files of the finished tree: a few, for what is looked up in them. Bounded."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ironworks.builderd.flatten.headers import Entry, Kind
from ironworks.builderd.flatten.tree import Tree

_MAX_READ_BYTES = 64 << 20


class Contents:
    """What is in the tree's files; `layers` are the tars that hold it."""

    def __init__(self, tree: Tree, layers: Sequence[int]) -> None:
        self._tree = tree
        self._layers = layers

    def head(self, layer: int, entry: Entry, count: int) -> bytes:
        """The first `count` bytes of a file; a sparse one is taken for empty."""
        if entry.runs is not None:
            return b""
        return os.pread(self._layers[layer], min(count, entry.size), entry.offset)

    def read(self, path: bytes) -> bytes | None:
        """A whole file, links followed; None if there is none, or it is larger than 64 MiB."""
        node = self._tree.lookup(path)
        if node is None or node.entry.kind is not Kind.FILE or node.entry.size > _MAX_READ_BYTES:
            return None
        return self.head(node.layer, node.entry, node.entry.size)

    def names(self, path: bytes) -> tuple[bytes, ...]:
        """Names in a directory; none if it is none."""
        node = self._tree.lookup(path)
        return () if node is None or node.children is None else tuple(node.children)
