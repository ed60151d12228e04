"""Where readings come from: kept descriptors, read again and again with one system call each.

A reading is an integer: the value, or minus an `AbsenceReason` where there is none. (Ten times a
second for every VM, so no object is made for it.)
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from ironworks.metald.sampling.classes import InternalBytes, NoCounter, open_counter
from ironworks.metald.sampling.types import AbsenceReason

_log = structlog.stdlib.get_logger()

READ_BYTES = 64
"""More than any of these files has before the end of the number we want."""
MAX_VALUE = (1 << 64) - 1
US_PER_NS = 1000

CLONE_NEWNET = 0x40000000
CLONE_NEWNS = 0x00020000
MS_REC_PRIVATE = 0x4000 | 0x40000


_MALFORMED = -AbsenceReason.MALFORMED


def cpu_nanoseconds(content: bytes) -> int:
    """CPU time from `cpu.stat` of cgroup v2 (microseconds) or `cpuacct.usage` of v1.

    Raises:
        ValueError: there is none.
    """
    if content.startswith(b"usage_usec "):
        return int(content[11 : content.find(b"\n")]) * US_PER_NS
    return int(content)


def _reason(error: OSError) -> int:
    if error.errno in {errno.ENOENT, errno.ENODEV, errno.ENXIO}:
        return -AbsenceReason.GONE
    return -AbsenceReason.UNREADABLE


class CounterFile:
    """One file whose number is read at every tick.

    Attributes:
        descriptor: Kept open; -1 when closed.
    """

    def __init__(self, descriptor: int, parse: Callable[[bytes], int] = int) -> None:
        """Read from `descriptor`; `parse` raises ValueError where there is no number."""
        self.descriptor = descriptor
        self._parse = parse

    def read(self) -> int:
        """The reading now."""
        try:
            value = self._parse(os.pread(self.descriptor, READ_BYTES, 0))
        except OSError as error:
            return _reason(error)
        except ValueError:
            return _MALFORMED
        return value if 0 <= value <= MAX_VALUE else _MALFORMED

    def close(self) -> None:
        """Let go of the file; later readings are UNREADABLE."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class AbsentSource:
    """Stands for a file that is not there."""

    def __init__(self, reason: int) -> None:
        self._value = reason

    def read(self) -> int:
        """Always the same absence."""
        return self._value

    def close(self) -> None:
        """Nothing to let go of."""


Source = CounterFile | AbsentSource
NO_SOURCE = AbsentSource(-AbsenceReason.NO_SOURCE)


def open_source(path: str, parse: Callable[[bytes], int] = int) -> Source:
    """The source at `path`; an absent one if it cannot be opened. Never raises."""
    if not path:
        return NO_SOURCE
    try:
        return CounterFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC), parse)
    except OSError as error:
        return AbsentSource(_reason(error))


class TapSources:
    """A tap's counters from the guest's point of view."""

    def __init__(
        self, receive: Source, transmit: Source, internal: InternalBytes | None = None
    ) -> None:
        self.receive = receive
        """Bytes that the guest has received: what the host sent into the tap."""
        self.transmit = transmit
        """Bytes that the guest has sent: what the host read from the tap."""
        self.internal = internal or InternalBytes(NoCounter(transmit.read()))
        """Of these, bytes to VMs of the platform."""

    def close(self) -> None:
        """Let go of all."""
        self.receive.close()
        self.transmit.close()
        self.internal.close()


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _open_in_namespace(netns_path: str, tap: str) -> TapSources:
    """Open the tap's counters; the calling thread is in the namespace afterwards."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(netns_path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(libc.setns(descriptor, CLONE_NEWNET))
    finally:
        os.close(descriptor)
    # sysfs shows the interfaces of the namespace in which it is mounted, so it needs a mount of
    # its own; that is in a mount namespace which ends with this thread. Descriptors outlive it.
    _check(libc.unshare(CLONE_NEWNS))
    _check(libc.mount(b"none", b"/", None, MS_REC_PRIVATE, None))
    directory = tempfile.mkdtemp(prefix="iw-sysfs-")
    try:
        _check(libc.mount(b"sysfs", directory.encode(), b"sysfs", 0, None))
        statistics = Path(directory) / "class/net" / tap / "statistics"
        sources = TapSources(
            receive=open_source(str(statistics / "tx_bytes")),
            transmit=open_source(str(statistics / "rx_bytes")),
            internal=InternalBytes(open_counter()),
        )
        libc.umount2(directory.encode(), 2)  # MNT_DETACH
    finally:
        with contextlib.suppress(OSError):
            Path(directory).rmdir()
    return sources


def open_tap(netns: str, tap: str) -> TapSources:
    """The counters of `tap` in network namespace `netns`; absent ones if they cannot be opened.

    Blocks for a few milliseconds: call it from a thread. The work is done in a thread of its own,
    because a thread that has changed namespaces can never be used for anything else.
    """
    if not netns or not tap:
        return TapSources(NO_SOURCE, NO_SOURCE)
    found: list[TapSources] = []
    path = netns if netns.startswith("/") else f"/run/netns/{netns}"

    def work() -> None:
        try:
            found.append(_open_in_namespace(path, tap))
        except OSError as error:
            _log.warning("tap_unreadable", netns=netns, tap=tap, error=str(error))
            absent = AbsentSource(_reason(error))
            found.append(TapSources(absent, absent))

    thread = threading.Thread(target=work, name="open-tap")
    thread.start()
    thread.join()
    return found[0] if found else TapSources(NO_SOURCE, NO_SOURCE)
