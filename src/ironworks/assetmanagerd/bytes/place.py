"""Place stored bytes in a directory of the host, never outside of what may be named.

The directory is walked from its root component by component, each opened without following links,
and the new name is made relative to the last descriptor: nothing that is renamed or linked
meanwhile can lead elsewhere. All calls block: run them in a thread.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ironworks.assetmanagerd.bytes.disk import disk_errors, hash_file, open_exact
from ironworks.assetmanagerd.types import PrepareMethod
from ironworks.model.errors import DataLoss, FailedPrecondition, InvalidRequest, PermissionDenied

_FICLONE = 0x40049409
_COPY_BYTES = 16 * 1024 * 1024
_MAX_PATH_CHARS = 4095
_NO_LINK = (errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP)


def split_below(directory: str, roots: Sequence[Path]) -> tuple[Path, tuple[str, ...]]:
    """The root that `directory` is below, and the components that lead there from it.

    Raises:
        InvalidRequest: it is not an absolute path without `.`, `..` and NUL.
        PermissionDenied: it is below none of the roots.
    """
    parts = directory.split("/")
    if (
        not directory.startswith("/")
        or len(directory) > _MAX_PATH_CHARS
        or "\0" in directory
        or any(part in ("", ".", "..") for part in parts[1:])
    ):
        raise InvalidRequest("directory must be an absolute path without empty, . and .. parts.")
    path = Path(directory)
    for root in roots:
        if path != root and path.is_relative_to(root):
            return root, path.relative_to(root).parts
    raise PermissionDenied(
        "This directory is not below one where assets may be placed.",
        hint="Set prepare_roots, or name a directory below the jails.",
    )


def open_below(root: Path, parts: Sequence[str]) -> int:
    """A descriptor of the directory at `parts` below `root`; the caller closes it.

    Raises:
        FailedPrecondition: a component does not exist, is no directory, or is a symbolic link.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    fd = -1
    try:
        fd = os.open(root, flags)
        for part in parts:
            inner = os.open(part, flags | os.O_NOFOLLOW, dir_fd=fd)
            os.close(fd)
            fd = inner
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        raise FailedPrecondition(
            "The directory does not exist, or a part of it is no directory or a symbolic link.",
            context={"root": str(root), "parts": list(parts), "error": str(error)},
        ) from error
    return fd


def place(
    path: Path, *, sha256: str, size_bytes: int, directory_fd: int, file_name: str
) -> PrepareMethod:
    """Make `file_name` in the directory be the bytes of the read-only file at `path`.

    Raises:
        DataLoss: the bytes are gone or damaged.
        FailedPrecondition: there is another file of that name.
        ResourceExhausted: a copy was needed, and the disk is full.
    """
    source_fd = open_exact(path, sha256, size_bytes)
    try:
        there = _same_is_there(source_fd, sha256, directory_fd, file_name)
        if there is not None:
            return there
        try:
            os.link(path, file_name, dst_dir_fd=directory_fd, follow_symlinks=False)
        except FileExistsError:
            raise _occupied(file_name) from None
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
        else:
            return PrepareMethod.HARD_LINK
        with disk_errors("the VM's files"):
            return _copy(source_fd, sha256, directory_fd, file_name)
    finally:
        os.close(source_fd)


def _occupied(file_name: str) -> FailedPrecondition:
    return FailedPrecondition(f"The directory has another file {file_name} already.")


def _same_is_there(
    source_fd: int, sha256: str, directory_fd: int, file_name: str
) -> PrepareMethod | None:
    try:
        fd = os.open(file_name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory_fd)
    except FileNotFoundError:
        return None
    except OSError:
        raise _occupied(file_name) from None
    try:
        there, source = os.fstat(fd), os.fstat(source_fd)
        if (there.st_dev, there.st_ino) == (source.st_dev, source.st_ino):
            return PrepareMethod.HARD_LINK
        if stat.S_ISREG(there.st_mode) and hash_file(fd).sha256 == sha256:
            return PrepareMethod.COPY
    finally:
        os.close(fd)
    raise _occupied(file_name)


def _copy(source_fd: int, sha256: str, directory_fd: int, file_name: str) -> PrepareMethod:
    temporary = f".{file_name}.partial"
    with suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=directory_fd)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    fd = os.open(temporary, flags, 0o444, dir_fd=directory_fd)
    try:
        method = _fill(source_fd, fd)
        if method is PrepareMethod.COPY and hash_file(fd).sha256 != sha256:
            raise DataLoss("The bytes of this asset are damaged.", context={"sha256": sha256})
        os.link(
            temporary,
            file_name,
            src_dir_fd=directory_fd,
            dst_dir_fd=directory_fd,
            follow_symlinks=False,
        )
    except FileExistsError:
        raise _occupied(file_name) from None
    finally:
        os.close(fd)
        os.unlink(temporary, dir_fd=directory_fd)
    return method


def _fill(source_fd: int, target_fd: int) -> PrepareMethod:
    try:
        fcntl.ioctl(target_fd, _FICLONE, source_fd)
    except OSError:
        position = 0
        while count := os.sendfile(target_fd, source_fd, position, _COPY_BYTES):
            position += count
        return PrepareMethod.COPY
    return PrepareMethod.REFLINK
