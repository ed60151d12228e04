"""Purging ends the processes of one data directory and removes it; nothing else is touched."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ironworks.machine import inventory
from ironworks.machine.purge import purge

pytestmark = pytest.mark.root
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(flush=True)
time.sleep(60)
"""


@contextmanager
def process(data_dir: Path) -> Generator[subprocess.Popen[bytes]]:
    env = {"IRONWORKS_DATA_DIR": str(data_dir)}
    argv = [sys.executable, "-c", STUBBORN]
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        running.stdout.readline()
        yield running
        running.kill()


async def test_processes_mounts_and_files_of_one_platform_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ironworks.machine.purge._WAIT_SECONDS", 0.3)
    dead, other = tmp_path / "dead", tmp_path / "other"
    (dead / "m").mkdir(parents=True)
    other.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(dead / "m")], check=True)
    with process(dead) as gone, process(other) as stays:
        await purge(dead)
        assert gone.wait(5) == -9
        assert stays.poll() is None
    assert not dead.exists()
    assert other.exists()
    assert await inventory.take(dead) == frozenset()
    await purge(dead)
