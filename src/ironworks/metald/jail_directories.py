"""The directory of each VM's jail, and the console that outlives it.

`<data>/jails/<vm_id>` belongs to root and to the VM's group, which may enter it and nothing more;
what is in it is the driver's affair and assetmanagerd's.
"""

import asyncio
import contextlib
import errno
import os
import shutil
import stat
from pathlib import Path
from typing import Protocol

from ironworks.model.errors import FailedPrecondition, Internal

ROOTFS_NAME = "rootfs"
"""Name of the root file system in a jail."""
_CHUNK_BYTES = 1024 * 1024


class Jails(Protocol):
    """What the rest of metald calls."""

    def path(self, vm_id: str) -> Path:
        """Where a VM's jail is, or would be."""
        ...

    def archived_console(self, vm_id: str) -> Path:
        """Where the console of an ended VM is kept."""
        ...

    async def create(self, vm_id: str, gid: int) -> Path:
        """Make the directory, empty."""
        ...

    async def archive_console(self, vm_id: str, console: Path) -> None:
        """Keep the console beyond the jail; nothing happens if there is none."""
        ...

    async def remove(self, vm_id: str) -> None:
        """Remove the directory with all that is in it. Idempotent."""
        ...

    async def forget_console(self, vm_id: str) -> None:
        """Remove the kept console. Idempotent."""
        ...

    async def present(self) -> frozenset[str]:
        """VM ids of which a jail or a kept console is there."""
        ...


class JailDirectories:
    """The real `Jails`."""

    def __init__(self, jails_dir: Path, consoles_dir: Path, console_max_bytes: int) -> None:
        """Work below these two directories; both are made if they are not there."""
        self._jails_dir = jails_dir
        self._consoles_dir = consoles_dir
        self._console_max_bytes = console_max_bytes

    def path(self, vm_id: str) -> Path:
        """See `Jails`."""
        return self._jails_dir / vm_id

    def archived_console(self, vm_id: str) -> Path:
        """See `Jails`."""
        return self._consoles_dir / f"{vm_id}.log"

    async def create(self, vm_id: str, gid: int) -> Path:
        """See `Jails`."""
        return await asyncio.to_thread(self._create, vm_id, gid)

    def _create(self, vm_id: str, gid: int) -> Path:
        path = self.path(vm_id)
        try:
            # Others may pass through to their own jail, and cannot list whose there are.
            self._jails_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
            _remove_tree(path)
            path.mkdir(mode=0o750)
            os.chown(path, 0, gid)
            path.chmod(0o750)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise FailedPrecondition(
                    "There is no disk space for the VM's jail.",
                    hint="Free space in the data directory.",
                ) from error
            raise FailedPrecondition(
                f"The VM's jail could not be made: {error.strerror}.",
                hint="metald must run as root, and own its data directory.",
                context={"path": str(path)},
            ) from error
        return path

    async def archive_console(self, vm_id: str, console: Path) -> None:
        """See `Jails`."""
        await asyncio.to_thread(self._archive, vm_id, console)

    def _archive(self, vm_id: str, console: Path) -> None:
        target = self.archived_console(vm_id)
        if target.exists():
            return
        self._consoles_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        # The VMM's user may own the file: what is no plain file is no console, and not followed.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            descriptor = os.open(console, flags)
        except OSError:
            return
        with os.fdopen(descriptor, "rb", buffering=0) as source:
            status = os.fstat(source.fileno())
            if not stat.S_ISREG(status.st_mode):
                return
            source.seek(max(0, status.st_size - self._console_max_bytes))
            with partial.open("wb") as kept:
                shutil.copyfileobj(source, kept, _CHUNK_BYTES)
        partial.replace(target)

    async def remove(self, vm_id: str) -> None:
        """See `Jails`."""
        try:
            await asyncio.to_thread(_remove_tree, self.path(vm_id))
        except OSError as error:
            raise Internal(
                "The VM's jail could not be removed.", context={"os_error": str(error)}
            ) from error

    async def forget_console(self, vm_id: str) -> None:
        """See `Jails`."""
        await asyncio.to_thread(self.archived_console(vm_id).unlink, missing_ok=True)

    async def present(self) -> frozenset[str]:
        """See `Jails`."""
        return await asyncio.to_thread(self._present)

    def _present(self) -> frozenset[str]:
        found: set[str] = set()
        with contextlib.suppress(FileNotFoundError):
            found.update(path.name for path in self._jails_dir.iterdir())
        with contextlib.suppress(FileNotFoundError):
            found.update(path.stem for path in self._consoles_dir.iterdir())
        return frozenset(name for name in found if name.startswith("vm_"))


def _remove_tree(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
        return
    # rmtree never follows symbolic links and works with directory descriptors.
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)
