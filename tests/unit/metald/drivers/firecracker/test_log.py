"""Firecracker's log."""

from pathlib import Path

import pytest

from ironworks.metald.drivers.firecracker.log import MAX_BYTES, BoundedLog


def test_it_is_bounded_and_keeps_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "vmm.log"
    log = BoundedLog(path)
    log.write(b"cause\n")
    for _ in range(3):
        log.write(b"x" * MAX_BYTES)
    log.close()
    log.close()
    log.write(b"late")
    assert path.stat().st_size == MAX_BYTES
    assert path.read_bytes().startswith(b"cause\n")


def test_what_stands_there_counts(tmp_path: Path) -> None:
    path = tmp_path / "vmm.log"
    path.write_bytes(b"y" * (MAX_BYTES - 2))
    log = BoundedLog(path)
    log.write(b"abcd")
    log.close()
    assert path.read_bytes().endswith(b"yab")


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "vmm.log").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic links"):
        BoundedLog(tmp_path / "vmm.log")
