"""What is generated is current; what is written by hand obeys the proto style."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
GENERATED = Path("src/ironworks/gen")


def buf(*arguments: str) -> None:
    tools = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["buf", *arguments],
        cwd=ROOT,
        env={**os.environ, "PATH": tools},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def sources(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): path.read_text()
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_generated_code_is_what_the_proto_files_say(tmp_path: Path) -> None:
    buf("generate", "-o", str(tmp_path))
    fresh, committed = sources(tmp_path / GENERATED), sources(ROOT / GENERATED)
    names = fresh.keys() | committed.keys()
    stale = sorted(name for name in names if committed.get(name) != fresh.get(name))
    assert stale == [], "run ./iron generate"


def test_the_proto_files_pass_buf_lint() -> None:
    buf("lint")
