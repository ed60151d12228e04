"""House rules that no linter has: sizes, names, and nothing of one machine in the repository."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_FILE_LINES = 499
MAX_FUNCTION_LINES = 59
BANNED_NAMES = {"utils", "util", "common", "helpers", "helper", "manager", "managers", "misc"}

_TIMES = {"ns", "us", "ms", "seconds", "nanos", "millis"}
UNITS = _TIMES | {"bytes", "kib", "mib", "gib", "chars"}
QUANTITY = re.compile(r"(^|_)(timeout|delay|interval|period|duration|elapsed|ttl|lifetime|size)$")

PUBLIC_HOSTS = {
    # What documents and licences point to; a page that is not public has no place here.
    "www.apache.org",
    "www.w3.org",
    "github.com",
    "docs.docker.com",
}
LOCAL_HOST = re.compile(
    r"(.*\.)?example\.(com|net|org)|(.*\.)?localhost|.*\.(local|test|example|invalid)"
    r"|[0-9.]+|[a-z-]{1,20}"
)
URL = re.compile(r"https?://([A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*)")
EMAIL = re.compile(r"[\w.+-]+@[A-Za-z0-9-]+\.[A-Za-z]{2,}")
# In pieces, so that this file does not have what it looks for.
MACHINE_PATHS = re.compile("/wor" + "k/|/ho" + "me/[a-z]|/roo" + "t/|/Use" + "rs/")
BY_HAND = re.compile("(?i)co-autho" + "red-by|signed-of" + "f-by|@autho" + "r")


@cache
def committed() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, timeout=60
    )
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file() and path.name != "uv.lock"]


def written() -> list[Path]:
    """Python that people write: generated code is the generator's affair."""
    generated = {ROOT / "src/ironworks/gen", ROOT / "src/ironworks/sdk/sync"}
    return [
        path
        for path in committed()
        if path.suffix == ".py" and not generated.intersection(path.parents)
    ]


@cache
def texts() -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for path in committed():
        try:
            found.append((str(path.relative_to(ROOT)), path.read_text()))
        except UnicodeDecodeError:
            continue
    return found


@cache
def trees() -> list[tuple[str, ast.Module]]:
    return [(str(path.relative_to(ROOT)), ast.parse(path.read_text())) for path in written()]


def test_files_are_short() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in written()}
    assert {name: count for name, count in lines.items() if count > MAX_FILE_LINES} == {}


def test_functions_are_short() -> None:
    long = [
        f"{name}: {node.name} has {lines} lines"
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert long == []


def test_modules_are_named_after_what_they_are_about() -> None:
    found = [
        str(path.relative_to(ROOT))
        for path in committed()
        if path.suffix == ".py"
        and BANNED_NAMES.intersection({path.stem, *path.relative_to(ROOT).parts[:-1]})
        # What all services share on the wire is the one exception.
        and "gen/ironworks/common" not in str(path)
    ]
    assert found == []


def names(tree: ast.Module) -> Iterator[tuple[str, ast.expr | None]]:
    """Arguments, attributes and variables, with what they are annotated with."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            yield node.arg, node.annotation
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node.annotation
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    yield target.id, None


def test_units_stand_last_in_names() -> None:
    misplaced = [
        f"{file}: {name}"
        for file, tree in trees()
        for name, _ in names(tree)
        if (words := name.lower().strip("_").split("_"))
        and UNITS.intersection(words[:-1])
        and words[-1] not in UNITS
        and "per" not in words
        # Mount flags are the kernel's names.
        and not name.strip("_").startswith("MS_")
    ]
    assert misplaced == []


def test_numbers_that_measure_something_say_their_unit() -> None:
    bare = [
        f"{file}: {name}"
        for file, tree in trees()
        for name, annotation in names(tree)
        if annotation is not None
        and re.fullmatch(r"(int|float)( \| None)?", ast.unparse(annotation))
        and QUANTITY.search(name.lower())
        and not re.search(r"(page_size|^size)$", name)  # these count things
    ]
    assert bare == []


def test_no_link_leads_to_a_host_that_is_not_public() -> None:
    strange = sorted(
        f"{name}: {host}"
        for name, text in texts()
        for host in URL.findall(text)
        if host not in PUBLIC_HOSTS and not LOCAL_HOST.fullmatch(host)
    )
    assert strange == []


@pytest.mark.parametrize("pattern", [MACHINE_PATHS, BY_HAND])
def test_nothing_tells_who_wrote_it_or_where(pattern: re.Pattern[str]) -> None:
    told = [
        f"{name}: {match.group()}" for name, text in texts() for match in pattern.finditer(text)
    ]
    assert told == []


def test_addresses_of_people_are_not_in_the_repository() -> None:
    addresses = [
        f"{name}: {address}"
        for name, text in texts()
        for address in EMAIL.findall(text)
        if not re.search(r"\.(example|test|invalid|localhost)$|@example\.", address)
    ]
    assert addresses == []
