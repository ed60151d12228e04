"""The seal with a real program in the VMM's place."""

import subprocess
from pathlib import Path

import pytest

from ironworks.metald.jail.seal import build_seal

BUSYBOX = "/usr/bin/busybox"
pytestmark = pytest.mark.root


async def run(directory: Path, vmm: str, *words: str) -> subprocess.CompletedProcess[str]:
    """The sealed program's end; its own name and its arguments are `words`."""
    seal = await build_seal(directory, name="sealed", vmm=vmm)
    return subprocess.run(
        words, executable=seal, capture_output=True, text=True, check=False, timeout=30
    )


async def test_what_is_sealed_gets_its_arguments_and_runs_under_the_filter(tmp_path: Path) -> None:
    done = await run(tmp_path, BUSYBOX, "cat", "/proc/self/status")
    assert done.returncode == 0, done.stderr
    status = dict(line.split(":", 1) for line in done.stdout.splitlines())
    assert (status["Seccomp"].strip(), status["NoNewPrivs"].strip()) == ("2", "1")


@pytest.mark.parametrize(
    "words",
    [
        ("unshare", "-m", "true"),
        ("mount", "-t", "tmpfs", "none", "/mnt"),
        ("chroot", "/", "true"),
        ("hostname", "other"),
    ],
)
async def test_root_itself_is_refused_what_the_filter_refuses(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    done = await run(tmp_path, BUSYBOX, *words)
    assert done.returncode != 0
    assert "not permitted" in done.stderr or "permission denied" in done.stderr


async def test_a_vmm_that_is_missing_is_said(tmp_path: Path) -> None:
    done = await run(tmp_path, str(tmp_path / "none"), "vmm")
    assert done.returncode == 125
    assert done.stderr == "seal: The VMM could not be started: No such file or directory.\n"
