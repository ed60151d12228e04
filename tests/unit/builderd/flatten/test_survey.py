"""What policies object to is found under every name, and taken out where they say so."""

from __future__ import annotations

from ironworks.builderd.flatten.headers import Entry, Kind
from ironworks.builderd.flatten.plan import MAX_FINDING_PATHS, Action, Limits, Rule
from ironworks.builderd.flatten.survey import survey
from ironworks.builderd.flatten.tree import Tree

KEY = b"-----BEGIN OPENSSH PRIVATE KEY-----\n" + b"b3BlbnNzaC1rZXktdjE\n" * 8


def entry(path: str, kind: Kind = Kind.FILE, mode: int = 0o644, **more: object) -> Entry:
    parts = tuple(path.encode().split(b"/"))
    values = {"uid": 0, "gid": 0, "mtime": 0, "size": 0, "offset": 0, **more}
    return Entry(path=parts, kind=kind, mode=mode, **values)  # type: ignore[arg-type]


def tree_of(*entries: Entry) -> Tree:
    tree = Tree(Limits())
    tree.add_layer(0, entries)
    return tree


def no_content(_layer: int, _entry: Entry, _count: int) -> bytes:
    return b""


def left(tree: Tree) -> dict[str, Entry]:
    return {item.path.decode(): item.entry for item in tree.items()}


def test_nothing_is_looked_for_without_rules() -> None:
    tree = tree_of(entry("su", mode=0o4755))
    assert survey(tree, {}, no_content) == ()
    assert left(tree)["su"].mode == 0o4755


def test_setuid_and_setgid_are_found_under_every_name_and_stripped() -> None:
    tree = tree_of(
        entry("su", mode=0o4755),
        entry("wall", mode=0o2755),
        entry("again", Kind.HARD_LINK, target=b"su"),
        entry("shared", Kind.DIRECTORY, 0o2775),
    )
    (found,) = survey(tree, {Rule.SETUID_FILES: Action.STRIP}, no_content)
    assert found.paths == ("again", "su", "wall")
    assert found.path_count == 3
    modes = {path: one.mode for path, one in left(tree).items()}
    assert modes == {"su": 0o755, "wall": 0o755, "again": 0o755, "shared": 0o2775}


def test_what_is_allowed_or_refused_is_found_and_stays() -> None:
    for action in (Action.ALLOW, Action.REFUSE):
        tree = tree_of(entry("dev/null", Kind.CHARACTER, device=(1, 3)))
        (found,) = survey(tree, {Rule.DEVICE_NODES: action}, no_content)
        assert (found.action, found.paths) == (action, ("dev/null",))
        assert "dev/null" in left(tree)


def test_nodes_and_keys_are_left_out() -> None:
    tree = tree_of(
        entry("dev/sda", Kind.BLOCK, device=(8, 0)),
        entry("root/.ssh/id", size=len(KEY)),
        entry("root/note", size=200),
        entry("root/link", Kind.HARD_LINK, target=b"root/.ssh/id"),
    )

    def read(_layer: int, one: Entry, _count: int) -> bytes:
        return KEY if one.size == len(KEY) else b"see -----BEGIN PRIVATE KEY----- in the manual"

    rules = {Rule.DEVICE_NODES: Action.STRIP, Rule.PRIVATE_KEYS: Action.STRIP}
    nodes, keys = survey(tree, rules, read)
    assert nodes.paths == ("dev/sda",)
    assert keys.paths == ("root/.ssh/id", "root/link")
    assert sorted(left(tree)) == ["dev", "root", "root/.ssh", "root/note"]


def test_capabilities_and_sticky_bits() -> None:
    capable = {b"security.capability": b"x", b"user.note": b"y"}
    tree = tree_of(
        entry("ping", xattrs=capable),
        entry("drop", Kind.DIRECTORY, 0o777),
        entry("tmp", Kind.DIRECTORY, 0o1777),
        entry("link", Kind.SYMLINK, 0o777, target=b"tmp"),
    )
    rules = {
        Rule.FILE_CAPABILITIES: Action.STRIP,
        Rule.WORLD_WRITABLE_DIRECTORIES: Action.STRIP,
    }
    capabilities, writable = survey(tree, rules, no_content)
    assert capabilities.paths == ("ping",)
    assert writable.paths == ("drop",)
    after = left(tree)
    assert dict(after["ping"].xattrs) == {b"user.note": b"y"}
    assert after["drop"].mode == 0o1777


def test_paths_are_bounded_and_fit_for_people() -> None:
    tree = tree_of(*(entry(f"s{n:03}\x1b[1m", mode=0o4755) for n in range(150)))
    (found,) = survey(tree, {Rule.SETUID_FILES: Action.REFUSE}, no_content)
    assert len(found.paths) == MAX_FINDING_PATHS
    assert found.path_count == 150
    assert found.paths[0] == "s000?[1m"
