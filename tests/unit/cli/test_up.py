from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ironworks.cli import up
from ironworks.machine import platform
from ironworks.model.errors import DeadlineExceeded, NotFound

HOLDER = """
import sys, time
from pathlib import Path
from ironworks.machine.platform import data_dir_lock
with data_dir_lock(Path(sys.argv[1])):
    print(flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> subprocess.Popen[bytes]:
    """A process that holds the data directory as a supervisor does."""
    argv = [sys.executable, "-c", HOLDER, str(tmp_path)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    described = platform.PlatformFile(
        pid=process.pid,
        data_dir=str(tmp_path),
        api_url="",
        ca_file="",
        edge_port=0,
        services={},
        pids={},
    )
    path = platform.platform_file_path(tmp_path)
    fields = {name: getattr(described, name) for name in platform.PlatformFile.__slots__}
    path.write_text(json.dumps(fields))
    return process


def test_the_argument_wins_over_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IRONWORKS_DATA_DIR", "/nowhere")
    assert up.settings_of(tmp_path).data_dir == tmp_path


def test_down_ends_the_supervisor_and_waits_for_it(
    tmp_path: Path, holder: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    up.down(data_dir=tmp_path)
    assert holder.wait(5) == -signal.SIGTERM
    assert "has stopped" in capsys.readouterr().out


def test_down_where_nothing_runs(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="No platform runs over"):
        up.down(data_dir=tmp_path)


def test_a_supervisor_that_does_not_stop_is_said_so(
    tmp_path: Path, holder: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def deaf(_pid: int, _number: int) -> None:
        """Nothing happens."""

    monkeypatch.setattr(os, "kill", deaf)
    monkeypatch.setattr(up, "DOWN_SECONDS", 0.3)
    with pytest.raises(DeadlineExceeded, match="did not stop within"):
        up.down(data_dir=tmp_path)
    monkeypatch.undo()
    holder.kill()
    holder.wait()
