"""`iron demo` as a new user runs it: a process, its output, its exit status, what it leaves."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ironworks.machine import inventory
from ironworks.machine.temporary import PARENT, PREFIX, sweep

pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.timeout(300)]

KEYS = {
    "ok", "image", "digest", "vmm", "accel", "build_ms", "boot_ms", "http_status",
    "samples_expected", "samples_received", "cost", "currency", "leaks", "total_seconds",
}  # fmt: skip


def iron(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ironworks.cli.main", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def directories() -> set[Path]:
    return set(PARENT.glob(f"{PREFIX}demo-*"))


def test_the_main_job() -> None:
    before = directories()
    process = iron("demo", "--json")
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    said = json.loads(out.splitlines()[-1])
    assert set(said) == KEYS
    assert said["ok"]
    assert said["http_status"] == 200
    assert said["vmm"] == "qemu"
    assert said["accel"] in {"kvm", "tcg"}
    assert said["digest"].startswith("sha256:")
    assert said["samples_received"] == said["samples_expected"] >= 40
    assert float(said["cost"]) > 0
    assert said["currency"] == "USD"
    assert said["leaks"] == 0
    for heading in ("Samples", "Usage", "Cost", "vcpu provisioned", "vCPU-hour (v1)", "It runs."):
        assert heading in out
    assert directories() <= before


def wait_for_line(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if word in line:
            return
    pytest.fail(f"the demo ended before {word!r}: {process.stderr and process.stderr.read()}")


def test_a_killed_demo_is_cleaned_up_by_the_next() -> None:
    before = directories()
    process = iron("demo")
    wait_for_line(process, "HTTP 200")
    made = directories() - before
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(made) == 1
    data_dir = made.pop()
    left = asyncio.run(inventory.take(data_dir))
    kinds = {item.kind for item in left}
    assert {"process", "namespace", "cgroup", "link", "jail"} <= kinds, "nothing was there to clean"
    swept = asyncio.run(sweep())
    assert data_dir in swept
    assert asyncio.run(inventory.take(data_dir)) == frozenset()
    assert not data_dir.exists()


def test_ctrl_c_leaves_nothing() -> None:
    before = directories()
    process = iron("demo", "--json")
    wait_for_line(process, "booting")
    made = directories() - before
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Interrupted" in err
    assert json.loads(out.splitlines()[-1])["error"] == "interrupted"
    for data_dir in made:
        assert asyncio.run(inventory.take(data_dir)) == frozenset()
        assert not data_dir.exists()
