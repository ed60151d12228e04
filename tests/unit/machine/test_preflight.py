from __future__ import annotations

import os
from pathlib import Path

import pytest

from ironworks.machine import preflight
from ironworks.model.errors import FailedPrecondition, PermissionDenied


def test_no_root_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(PermissionDenied, match=r"needs root.*sudo"):
        preflight.check_root()


def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(FailedPrecondition, match=r"qemu-system-x86_64.*qemu-system-x86"):
        preflight.check_programs()


def test_no_free_disk(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="free; the platform needs"):
        preflight.check_disk(tmp_path, min_free_bytes=1 << 60)


def test_a_data_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FailedPrecondition, match="cannot be used"):
        preflight.check_disk(tmp_path / "file")


def test_a_data_directory_that_is_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def access(path: Path, mode: int) -> bool:
        return (path, mode) != (tmp_path, os.W_OK)

    monkeypatch.setattr(os, "access", access)
    with pytest.raises(preflight.NoSpace, match="read-only"):
        preflight.check_disk(tmp_path, min_free_bytes=0)


def test_no_guest_kernel(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"iron setup"):
        preflight.check_guest(tmp_path)
    (tmp_path / "6.1").mkdir()
    (tmp_path / "6.1" / "manifest.json").touch()
    preflight.check_guest(tmp_path)
