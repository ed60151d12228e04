"""The disk that takes what a guest writes: an empty ext4, sparse, made for one VM."""

import os
from pathlib import Path

from ironworks.metald.drivers.driver import DriverError
from ironworks.metald.steps import Step
from ironworks.model.units import MIB
from ironworks.runtime.process import run

MIN_SCRATCH_BYTES = 16 * MIB
"""Below it there is no room for a file system worth having."""
MAKE_SECONDS = 60.0
_MKE2FS = "/usr/sbin/mke2fs"


async def make_scratch(path: Path, size_bytes: int, uid: int, gid: int) -> None:
    """Make the disk; one that is there stays as it is, for a reboot finds its own.

    Its blocks are taken from the host's disk as the guest writes them.

    Raises:
        DriverError: the size is out of bounds, or there is no room.
        FailedPrecondition: mke2fs is not installed.
    """
    if size_bytes < MIN_SCRATCH_BYTES:
        raise DriverError(
            Step.JAIL_PREPARE,
            f"The VM's disk is smaller than {MIN_SCRATCH_BYTES // MIB} MiB.",
        )
    if path.exists():
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            os.ftruncate(descriptor, size_bytes)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DriverError(
            Step.JAIL_PREPARE, f"The VM's disk could not be made: {error.strerror}."
        ) from error
    lazily = "lazy_itable_init=1,lazy_journal_init=1"
    argv = [_MKE2FS, "-q", "-F", "-t", "ext4", "-m", "0", "-E", lazily, str(path)]
    done = await run(argv, timeout_seconds=MAKE_SECONDS, check=False)
    if done.status:
        raise DriverError(
            Step.JAIL_PREPARE, "The VM's disk could not be formatted.", detail=done.stderr_tail
        )
    os.chown(path, uid, gid)
