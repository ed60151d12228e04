"""Network namespaces, by system call: made, entered by a thread, removed.

A network namespace belongs to a thread. Work in one is done by a thread that is made for it, enters
(or makes) the namespace, and ends; no other thread of metald ever leaves the root namespace.
"""

import ctypes
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

_T = TypeVar("_T")
_CLONE_NEWNET = 0x40000000
_MS_BIND = 0x1000
_MNT_DETACH = 2
_SELF = b"/proc/thread-self/ns/net"
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _in_thread(enter: Callable[[], None], work: Callable[[], _T]) -> _T:
    answer: list[_T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            enter()
            answer.append(work())
        except BaseException as error:  # noqa: BLE001 - carried over to the caller's thread
            failure.append(error)

    thread = threading.Thread(target=body, name="netns")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return answer[0]


def create(path: Path, work: Callable[[], _T]) -> _T:
    """Make a namespace, bind it at `path`, and run `work` in it; blocks.

    Raises:
        FileExistsError: something is at `path`.
        OSError: not permitted, or no room.
    """

    def enter() -> None:
        _check(_libc.unshare(_CLONE_NEWNET), "unshare")
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDONLY, 0o444))
        _check(_libc.mount(_SELF, os.fsencode(path), b"none", _MS_BIND, None), "mount")

    return _in_thread(enter, work)


def run_in(path: Path, work: Callable[[], _T]) -> _T:
    """Run `work` in the namespace that is bound at `path`; blocks.

    Raises:
        OSError: it is not there, or is no network namespace.
    """

    def enter() -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_libc.setns(descriptor, _CLONE_NEWNET), "setns")
        finally:
            os.close(descriptor)

    return _in_thread(enter, work)


def bind(path: Path, pid: int) -> None:
    """Bind the namespace of a process at `path`; brings back one whose name is gone.

    Raises:
        FileExistsError: something is at `path`.
        OSError: there is no such process.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDONLY, 0o444))
    source = f"/proc/{pid}/ns/net".encode()
    _check(_libc.mount(source, os.fsencode(path), b"none", _MS_BIND, None), "mount")


def is_bound(path: Path) -> bool:
    """Whether a namespace is bound at `path`: its file may be there without it."""
    try:
        return path.stat().st_dev != path.parent.stat().st_dev
    except FileNotFoundError:
        return False


def remove(path: Path) -> None:
    """Unbind the namespace and remove its file; it ends with its last process. Idempotent."""
    result = _libc.umount2(os.fsencode(path), _MNT_DETACH)
    # EINVAL: nothing is mounted there, only the file was made.
    if result != 0 and ctypes.get_errno() not in {errno.EINVAL, errno.ENOENT}:
        number = ctypes.get_errno()
        raise OSError(number, f"umount {path}: {os.strerror(number)}")
    path.unlink(missing_ok=True)
