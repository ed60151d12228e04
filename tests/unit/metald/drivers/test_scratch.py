"""The disk that takes what a guest writes."""

import os
import subprocess
from pathlib import Path

import pytest

from ironworks.metald.drivers.driver import DriverError
from ironworks.metald.drivers.scratch import MIN_SCRATCH_BYTES, make_scratch
from ironworks.model.units import MIB

UID = 1_900_004


@pytest.mark.root
async def test_an_ext4_of_this_size_that_takes_no_room_yet(tmp_path: Path) -> None:
    path = tmp_path / "scratch.img"
    await make_scratch(path, 256 * MIB, UID, UID)
    status = path.stat()
    assert (status.st_size, status.st_uid, status.st_gid) == (256 * MIB, UID, UID)
    assert status.st_mode & 0o777 == 0o600
    assert status.st_blocks * 512 < 32 * MIB
    done = subprocess.run(["e2fsck", "-fn", str(path)], capture_output=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.root
async def test_a_reboot_finds_its_own(tmp_path: Path) -> None:
    path = tmp_path / "scratch.img"
    await make_scratch(path, MIN_SCRATCH_BYTES, UID, UID)
    inode = path.stat().st_ino
    await make_scratch(path, 2 * MIN_SCRATCH_BYTES, UID, UID)
    assert (path.stat().st_ino, path.stat().st_size) == (inode, MIN_SCRATCH_BYTES)


async def test_what_cannot_be_made_is_said(tmp_path: Path) -> None:
    with pytest.raises(DriverError, match="smaller than 16 MiB"):
        await make_scratch(tmp_path / "scratch.img", MIB, os.getuid(), os.getgid())
    with pytest.raises(DriverError, match="could not be made: No such file"):
        await make_scratch(tmp_path / "none/s", 64 * MIB, os.getuid(), os.getgid())
    assert list(tmp_path.iterdir()) == []
