"""Every module has a test of its own; those that have none yet are on a list that only shrinks."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent
TESTS = HERE.parent
SOURCES = TESTS.parent / "src/ironworks"
NOT_MIRRORED = {"gen", "migrations", "testkit", "sync"}
"""Generated, or made for tests."""
NOTHING_TO_TEST = {"__init__", "__main__", "types", "tables", "settings", "service"}
"""Declarations; and composition roots, which integration tests start."""
KINDS = ("unit", "property", "conformance", "simulation", "integration", "vm")
MOST_UNTESTED = 0
"""Lower it with the list; never raise it."""


def modules() -> list[Path]:
    return sorted(
        path.relative_to(SOURCES)
        for path in SOURCES.rglob("*.py")
        if not NOT_MIRRORED.intersection(path.relative_to(SOURCES).parts)
        and path.stem not in NOTHING_TO_TEST
    )


def has_test(module: Path) -> bool:
    """Whether some kind of tests has a file for the module, or for the package that it is in."""
    candidates = [module.parent / f"test_{module.stem}.py", *of_package(module)]
    return any((TESTS / kind / candidate).exists() for kind in KINDS for candidate in candidates)


def of_package(module: Path) -> list[Path]:
    """`metald/jail/mounts.py` may be tested with its siblings: `test_jail.py`, here or beside."""
    package = module.parent
    if len(package.parts) < 2:
        return []
    name = f"test_{package.name}.py"
    return [package / name, package.parent / name]


def test_the_list_of_modules_without_a_test_is_true_and_only_shrinks() -> None:
    untested = [str(module) for module in modules() if not has_test(module)]
    listed = (HERE / "untested.txt").read_text().splitlines()
    assert listed == untested
    assert len(listed) <= MOST_UNTESTED
