from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ironworks.runtime.cgroup_layout import read_layout
from ironworks.runtime.cgroup_removal import remove, remove_empty, try_remove
from ironworks.runtime.clock import SystemClock


@pytest.fixture
def group() -> Iterator[list[Path]]:
    directories = [root / f"iwtest{os.getpid()}" for root in read_layout().roots]
    for directory in directories:
        directory.mkdir()
    yield directories
    for directory in directories:
        if directory.exists():
            directory.rmdir()


@pytest.mark.root
async def test_what_runs_in_a_group_is_killed_and_the_group_goes(group: list[Path]) -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        for directory in group:
            (directory / "cgroup.procs").write_text(str(process.pid))
        assert not try_remove(group), "it is killed first"
        assert process.wait() == -9
    assert await remove(group, SystemClock())
    assert not any(directory.exists() for directory in group)
    assert await remove(group, SystemClock()), "one that is gone is no fault"


def test_only_what_is_empty_goes(tmp_path: Path) -> None:
    (tmp_path / "full" / "inner").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    remove_empty([tmp_path / "full", tmp_path / "empty", tmp_path / "none"])
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
