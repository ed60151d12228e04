"""Merge the headers of all layers into the tree that the image is.

Source: OCI image specification 1.1, "Image Layer Filesystem Changeset"; where it leaves a choice,
as umoci does. The tree lives in memory; the data stay in the layers' tars.

- A whiteout `.wh.NAME` hides NAME of the layers below, `.wh..wh..opq` all that they have in a
  directory; neither hides what its own layer brings, wherever in the layer it stands.
- An entry replaces what has its name, but a directory keeps what is in it.
- A hard link is a second name of what its target names at that moment, from whichever layer.
- A parent that is a symbolic link is followed within the image; one that does not exist is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ironworks.builderd.flatten.headers import Entry, Kind
from ironworks.builderd.flatten.plan import Limits
from ironworks.builderd.flatten.refusal import bad
from ironworks.model.errors import InvalidRequest

Step = tuple["Node | None", bytes, bytes, "Node"]

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_MAX_LINKS_FOLLOWED = 40
_IMPLICIT_MODE = 0o755
_RUN_BYTES = 128


class Node:
    """A file, directory, link or device of the image; several names may share one.

    `children` of a directory: name → the node and the last layer that touched the name.
    """

    __slots__ = ("children", "entry", "layer", "number", "path")

    def __init__(self, entry: Entry, layer: int) -> None:
        self.entry = entry
        self.layer = layer
        self.children: dict[bytes, tuple[Node, int]] | None = (
            {} if entry.kind is Kind.DIRECTORY else None
        )
        self.path = b""
        """First name under which it was written out; empty: not yet."""
        self.number = 0
        """Its inode, where the writer numbers them; 0: none yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One name of the finished tree; `link_to` names the first name of the same file."""

    path: bytes
    entry: Entry
    layer: int
    link_to: bytes = b""


def _directory() -> Entry:
    return Entry(
        path=(),
        kind=Kind.DIRECTORY,
        mode=_IMPLICIT_MODE,
        uid=0,
        gid=0,
        mtime=0,
        size=0,
        offset=0,
    )


class Tree:
    """The tree of an image; layers are added lowest first."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._count = self._metadata_bytes = self._file_bytes = 0
        self.root = Node(_directory(), -1)

    def add_layer(self, layer: int, entries: Iterable[Entry]) -> None:
        """Apply one layer.

        Raises:
            InvalidRequest: an entry is refused; says which and why.
        """
        for entry in entries:
            self._spend(entry)
            if not entry.path:
                self._set_root(entry, layer)
            elif entry.path[-1].startswith(_WHITEOUT):
                self._whiteout(entry, layer)
            else:
                self._put(entry, layer)
            # The tree knows its names; a million paths would be more than all else.
            entry.path = ()

    def _spend(self, entry: Entry) -> None:
        """Hold the image to its bounds; what is replaced later has been held all the same."""
        self._count_one()
        self._file_bytes += entry.size
        if self._file_bytes > self._limits.unpacked_bytes:
            raise InvalidRequest(
                f"The image unpacks to more than {self._limits.unpacked_bytes} bytes.",
                hint="Make it smaller, or ask the operator for a higher limit.",
            )
        self._keep(len(entry.target) + (len(entry.path[-1]) if entry.path else 0))
        for name, value in entry.xattrs.items():
            self._keep(len(name) + len(value))
        self._keep(_RUN_BYTES * len(entry.runs or ()))

    def _count_one(self) -> None:
        self._count += 1
        if self._count > self._limits.file_count:
            raise InvalidRequest(
                f"The image has more than {self._limits.file_count} files.",
                hint="Make it smaller, or ask the operator for a higher limit.",
            )

    def _keep(self, size_bytes: int) -> None:
        self._metadata_bytes += size_bytes
        if self._metadata_bytes > self._limits.metadata_bytes:
            raise InvalidRequest(
                "The image's names, links and extended attributes together are longer than "
                f"{self._limits.metadata_bytes} bytes."
            )

    def _set_root(self, entry: Entry, layer: int) -> None:
        if entry.kind is not Kind.DIRECTORY:
            raise bad("the root of the image is not a directory")
        self.root.entry, self.root.layer = entry, layer

    def _put(self, entry: Entry, layer: int) -> None:
        name = b"/".join(entry.path)
        if any(part.startswith(_WHITEOUT) for part in entry.path):
            raise bad("a directory has a name that is reserved for whiteouts", name)
        parent = self._enter(entry.path[:-1], layer, name)
        children = _children(parent)
        last = entry.path[-1]
        if entry.kind is Kind.HARD_LINK:
            children[last] = (self._link_target(entry, name), layer)
            return
        there = children.get(last)
        if there is not None and entry.kind is Kind.DIRECTORY and there[0].children is not None:
            there[0].entry, there[0].layer = entry, layer
            children[last] = (there[0], layer)
            return
        children[last] = (Node(entry, layer), layer)

    def _link_target(self, entry: Entry, name: bytes) -> Node:
        parts = tuple(entry.target.split(b"/"))
        found = self._find(parts[:-1], name)
        target = None if found is None or found.children is None else found.children.get(parts[-1])
        if target is None:
            raise bad("it is a hard link to nothing", name)
        if target[0].children is not None:
            raise bad("it is a hard link to a directory", name)
        if parts == entry.path:
            raise bad("it is a hard link to itself", name)
        return target[0]

    # --- whiteouts --------------------------------------------------------------------------------

    def _whiteout(self, entry: Entry, layer: int) -> None:
        name = b"/".join(entry.path)
        last = entry.path[-1]
        parent = self._find(entry.path[:-1], name)
        if last == _OPAQUE:
            if parent is not None and parent.children is not None:
                _hide_all(parent, layer)
            return
        hidden = last[len(_WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise bad("it is a whiteout of nothing", name)
        if parent is None or parent.children is None:
            return
        there = parent.children.get(hidden)
        if there is None:
            return
        if there[1] != layer:
            del parent.children[hidden]
        elif there[0].children is not None:
            _hide_all(there[0], layer)

    # --- walking ----------------------------------------------------------------------------------

    def _find(self, parts: tuple[bytes, ...], name: bytes) -> Node | None:
        """The directory at `parts`, or None; nothing is made."""
        return self._walk(parts, name, make_in_layer=None)

    def _enter(self, parts: tuple[bytes, ...], layer: int, name: bytes) -> Node:
        """The directory at `parts`, made as far as it does not exist, touched by `layer`."""
        found = self._walk(parts, name, make_in_layer=layer)
        if found is None:
            raise bad("a part of its name is not a directory", name)
        return found

    def _walk(
        self, parts: tuple[bytes, ...], name: bytes, *, make_in_layer: int | None
    ) -> Node | None:
        trail = [self.root]
        waiting = list(reversed(parts))
        followed = 0
        while waiting:
            part = waiting.pop()
            if part == b"..":
                if len(trail) == 1:
                    raise bad("a symbolic link on its way leads out of the image", name)
                trail.pop()
                continue
            there = self._step(trail[-1], part, make_in_layer)
            if there is None:
                return None
            node = there[0]
            if node.entry.kind is Kind.SYMLINK:
                followed += 1
                if followed > _MAX_LINKS_FOLLOWED:
                    raise bad("symbolic links on its way lead in a circle", name)
                if node.entry.target.startswith(b"/"):
                    trail = [self.root]
                waiting.extend(_steps(node.entry.target))
                continue
            if node.children is None:
                return None
            if make_in_layer is not None and there[1] != make_in_layer:
                _children(trail[-1])[part] = (node, make_in_layer)
            trail.append(node)
        return trail[-1]

    def _step(
        self, directory: Node, part: bytes, make_in_layer: int | None
    ) -> tuple[Node, int] | None:
        children = _children(directory)
        if part not in children and make_in_layer is not None:
            # A short name may bring as many directories as it has parts.
            self._count_one()
            self._keep(len(part))
            children[part] = (Node(_directory(), make_in_layer), make_in_layer)
        return children.get(part)

    # --- the finished tree ------------------------------------------------------------------------

    def walk(self) -> Iterator[Step]:
        """Every name, parents first, siblings by their bytes.

        Yields:
            The directory, the name in it, the whole path and what it names; the root's first, with
            no directory and no name.
        """
        yield None, b"", b"", self.root
        waiting = [(self.root, b"", iter(sorted(_children(self.root))))]
        while waiting:
            directory, path, names = waiting[-1]
            for name in names:
                # The name may have been taken out since the directory was entered.
                there = _children(directory).get(name)
                if there is None:
                    continue
                whole = path + b"/" + name if path else name
                # Links may lead deeper than any name of a layer says.
                if len(whole) > self._limits.path_bytes:
                    raise bad(f"its name is longer than {self._limits.path_bytes} bytes", whole)
                yield directory, name, whole, there[0]
                if there[0].children is not None:
                    waiting.append((there[0], whole, iter(sorted(there[0].children))))
                    break
            else:
                waiting.pop()

    def items(self) -> Iterator[Item]:
        """Every name but the root's, in the order of `walk`. Can be had once."""
        for parent, _, path, node in self.walk():
            if parent is not None:
                yield self._item(path, node)

    def lookup(self, path: bytes) -> Node | None:
        """What a path names, links followed; None: nothing, or nothing that can be reached."""
        try:
            for _ in range(_MAX_LINKS_FOLLOWED):
                *parts, last = path.split(b"/")
                parent = self._find(tuple(part for part in parts if part), path)
                there = None if parent is None else _children(parent).get(last)
                if there is None or there[0].entry.kind is not Kind.SYMLINK:
                    return None if there is None else there[0]
                target = there[0].entry.target
                base = b"" if target.startswith(b"/") else b"/".join(parts)
                path = base + b"/" + b"/".join(reversed(_steps(target)))
        except InvalidRequest:
            pass
        return None

    def remove(self, directory: Node, name: bytes) -> None:
        """Take a name out; what it names stays if it has another."""
        del _children(directory)[name]

    def _item(self, path: bytes, node: Node) -> Item:
        if node.entry.kind is not Kind.FILE or not node.path:
            node.path = path
            return Item(path=path, entry=node.entry, layer=node.layer)
        return Item(path=path, entry=node.entry, layer=node.layer, link_to=node.path)


def _children(node: Node) -> dict[bytes, tuple[Node, int]]:
    if node.children is None:
        raise bad("a part of its name is not a directory")
    return node.children


def _steps(target: bytes) -> list[bytes]:
    """Components of a symbolic link, the last first."""
    return [step for step in reversed(target.split(b"/")) if step not in (b"", b".")]


def _hide_all(directory: Node, layer: int) -> None:
    """Remove what `layer` has not touched from a directory, at any depth."""
    waiting = [directory]
    while waiting:
        children = _children(waiting.pop())
        for name in [name for name, (_, touched) in children.items() if touched != layer]:
            del children[name]
        waiting.extend(node for node, _ in children.values() if node.children is not None)
