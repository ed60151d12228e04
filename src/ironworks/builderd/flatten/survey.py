"""Look through the finished tree for what policies object to, and take it out where they say so.

A finding is what the image brings; what is done about it is the plan's `rules`. Only rules of the
plan are looked for.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping

from ironworks.builderd.flatten.headers import Entry, Kind
from ironworks.builderd.flatten.plan import MAX_FINDING_PATHS, Action, Finding, Rule
from ironworks.builderd.flatten.refusal import printable
from ironworks.builderd.flatten.tree import Node, Tree

_SETID = 0o6000
_STICKY = 0o1000
_OTHERS_WRITE = 0o002
_CAPABILITY = b"security.capability"
_MIN_KEY_BYTES, _MAX_KEY_BYTES = 64, 64 << 10
_HEAD_BYTES = 4096
_KEY = re.compile(rb"^-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----", re.MULTILINE)

Read = Callable[[int, Entry, int], bytes]
"""Layer, entry and how many bytes of its beginning → the bytes."""
_Name = tuple[Node | None, bytes, bytes]
"""A directory, a name in it, and the whole path."""


def survey(tree: Tree, rules: Mapping[Rule, Action], read: Read) -> tuple[Finding, ...]:
    """Find what `rules` name, and strip what they say.

    Args:
        tree: The finished tree; is changed where a rule strips.
        rules: Rule → what is done.
        read: Gives the beginning of a file.
    """
    met: dict[Rule, list[_Name]] = {rule: [] for rule in Rule if rule in rules}
    counts: Counter[Rule] = Counter()
    if not met:
        return ()
    changes: list[tuple[Rule, _Name, Node]] = []
    for parent, name, path, node in tree.walk():
        for rule, found in met.items():
            if not _MEETS[rule](node, read):
                continue
            counts[rule] += 1
            if len(found) < MAX_FINDING_PATHS:
                found.append((parent, name, path))
            if rules[rule] is Action.STRIP:
                # Later: a file of many names is found under each of them.
                changes.append((rule, (parent, name, path), node))
    for rule, (parent, name, _), node in changes:
        if rule not in (Rule.DEVICE_NODES, Rule.PRIVATE_KEYS):
            _strip(node.entry, rule)
        elif parent is not None:
            tree.remove(parent, name)
    return tuple(
        Finding(
            rule=rule,
            action=rules[rule],
            paths=tuple(printable(path) for _, _, path in found),
            path_count=counts[rule],
        )
        for rule, found in met.items()
    )


def _strip(entry: Entry, rule: Rule) -> None:
    if rule is Rule.SETUID_FILES:
        entry.mode &= ~_SETID
    elif rule is Rule.WORLD_WRITABLE_DIRECTORIES:
        entry.mode |= _STICKY
    elif rule is Rule.FILE_CAPABILITIES:
        entry.xattrs = {name: value for name, value in entry.xattrs.items() if name != _CAPABILITY}


def _is_setuid(node: Node, _: Read) -> bool:
    return node.entry.kind is Kind.FILE and bool(node.entry.mode & _SETID)


def _has_capabilities(node: Node, _: Read) -> bool:
    return _CAPABILITY in node.entry.xattrs


def _is_device(node: Node, _: Read) -> bool:
    return node.entry.kind in (Kind.BLOCK, Kind.CHARACTER)


def _is_world_writable(node: Node, _: Read) -> bool:
    mode = node.entry.mode
    return node.children is not None and mode & (_OTHERS_WRITE | _STICKY) == _OTHERS_WRITE


def _is_private_key(node: Node, read: Read) -> bool:
    entry = node.entry
    if entry.kind is not Kind.FILE or not _MIN_KEY_BYTES <= entry.size <= _MAX_KEY_BYTES:
        return False
    return _KEY.search(read(node.layer, entry, _HEAD_BYTES)) is not None


_MEETS: Mapping[Rule, Callable[[Node, Read], bool]] = {
    Rule.SETUID_FILES: _is_setuid,
    Rule.FILE_CAPABILITIES: _has_capabilities,
    Rule.DEVICE_NODES: _is_device,
    Rule.WORLD_WRITABLE_DIRECTORIES: _is_world_writable,
    Rule.PRIVATE_KEYS: _is_private_key,
}
