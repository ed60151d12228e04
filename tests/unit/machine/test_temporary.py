"""A temporary platform is found and removed by the next one when its owner was killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ironworks.machine import temporary
from ironworks.runtime.process import start_ticks


@pytest.fixture(autouse=True)
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(temporary, "PARENT", tmp_path)
    return tmp_path


def test_a_directory_belongs_to_the_process_that_made_it(parent: Path) -> None:
    directory = temporary.make_directory("x")
    assert directory.parent == parent
    assert not temporary.is_orphan(directory)


def test_a_pid_that_was_given_to_another_process_is_not_the_owner() -> None:
    directory = temporary.make_directory("x")
    own = start_ticks(os.getpid())
    assert own is not None
    owner = {"pid": os.getpid(), "start_ticks": own - 1}
    (directory / temporary.OWNER_FILE).write_text(json.dumps(owner))
    assert temporary.is_orphan(directory)


def test_an_owner_that_has_ended() -> None:
    directory = temporary.make_directory("x")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        owner = {"pid": process.pid, "start_ticks": start_ticks(process.pid)}
        (directory / temporary.OWNER_FILE).write_text(json.dumps(owner))
        assert not temporary.is_orphan(directory)
    assert temporary.is_orphan(directory)


def test_a_directory_of_somebody_else_is_no_orphan(parent: Path) -> None:
    stranger = parent / f"{temporary.PREFIX}stranger"
    stranger.mkdir()
    (stranger / "important").touch()
    assert not temporary.is_orphan(stranger)
    (stranger / "important").unlink()
    assert temporary.is_orphan(stranger)


@pytest.mark.root
async def test_sweeping_removes_orphans_and_nothing_else(parent: Path) -> None:
    lives, orphan = temporary.make_directory("lives"), temporary.make_directory("dead")
    (orphan / temporary.OWNER_FILE).write_text(json.dumps({"pid": 1, "start_ticks": 1}))
    (parent / f"{temporary.PREFIX}link").symlink_to(orphan)
    assert await temporary.sweep() == [orphan]
    assert not orphan.exists()
    assert lives.exists()
