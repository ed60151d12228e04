"""Pages are tested like code: they build, their commands exist, their Python is right."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclopts import CycloptsError

from ironworks.cli.main import make_app

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
OF_THE_SCRIPT = {"setup", "test", "check", "bench", "generate"}
"""Commands that `./iron` itself does, before the command line is reached."""
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def written() -> list[Path]:
    """Pages that people wrote."""
    pages = [path for path in DOCS.rglob("*.md") if path.parent.name not in {"reference", "api"}]
    return sorted([*pages, ROOT / "README.md", ROOT / "CONTRIBUTING.md"])


def blocks(language: str) -> Iterator[tuple[str, str]]:
    for page in written():
        for found, text in _BLOCK.findall(page.read_text()):
            if found == language:
                yield f"{page.relative_to(ROOT)}", text


def commands() -> list[tuple[str, str]]:
    """Every call of `iron` in a shell block, with the page that has it."""
    found: list[tuple[str, str]] = []
    for page, text in [*blocks("sh"), *blocks("bash"), *blocks("console")]:
        for line in text.splitlines():
            command = line.partition(" #")[0].strip().removeprefix("$ ").removeprefix("sudo ")
            command = re.sub(r"^\w+=\$?\(?", "", command)
            command = re.split(r" [|<>] ", command)[0].rstrip(")")
            if command.startswith(("iron ", "./iron ")):
                found.append((page, command.partition(" ")[2]))
    return found


def test_there_are_commands_to_test() -> None:
    assert len(commands()) > 20


@pytest.mark.parametrize(("page", "command"), commands())
def test_commands_in_pages_exist_with_their_options(page: str, command: str) -> None:
    arguments = shlex.split(command)
    if arguments[0] in OF_THE_SCRIPT:
        assert f"{arguments[0]})" in (ROOT / "iron").read_text()
        return
    try:
        make_app().parse_args(arguments)
    except CycloptsError as error:
        pytest.fail(f"{page}: iron {command}: {error}")


def test_python_in_pages_has_the_right_types(tmp_path: Path) -> None:
    examples = list(blocks("python"))
    assert len(examples) >= 4
    for number, (page, text) in enumerate(examples):
        (tmp_path / f"example_{number}.py").write_text(f"# {page}\n{text}")
    checker = [sys.executable, "-m", "basedpyright", "--level", "error", "--pythonpath"]
    done = subprocess.run(
        [*checker, sys.executable, str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_the_pages_build_without_a_dead_link(tmp_path: Path) -> None:
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    done = subprocess.run(
        [str(Path(sys.executable).parent / "zensical"), "build", "--strict"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "build/docs/tutorial/first-deployment/index.html").exists()


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "zensical.toml").read_text()
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert {page for page in pages if f'"{page}"' not in navigation} == set()


def test_the_generated_reference_is_current() -> None:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "deploy/reference.py")
    assert spec is not None
    assert spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    sys.modules["reference"] = reference
    spec.loader.exec_module(reference)
    stale = [
        name
        for name, text in reference.render().items()
        if (DOCS / "reference" / name).read_text() != text
    ]
    assert stale == [], "run .venv/bin/python deploy/reference.py"
