"""Use cases that only read: VMs, the host, a console."""

import asyncio
import os
from collections import deque
from collections.abc import AsyncGenerator, Container, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection

from ironworks.metald import capacity_store, store
from ironworks.metald.app.context import Context
from ironworks.metald.types import (
    Reservation,
    Resources,
    StepTiming,
    Transition,
    Vm,
    VmFilter,
    VmKey,
    VmPage,
    VmState,
)
from ironworks.model.errors import FailedPrecondition, InvalidRequest
from ironworks.model.pages import PageSpec

CONSOLE_CHUNK_BYTES = 64 * 1024
CONSOLE_POLL_SECONDS = 0.1
CONSOLE_NAME = "console.log"
"""In the jail, whichever the driver."""
MAX_TAIL_LINES = 10_000
_OVER = frozenset({VmState.STOPPED, VmState.FAILED, VmState.DELETING, VmState.DELETED})


@dataclass(frozen=True, slots=True, kw_only=True)
class VmDetails:
    """A VM with its past."""

    vm: Vm
    history: Sequence[Transition]
    timings: Sequence[StepTiming]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleStart:
    """Where a stream of the console begins: at an offset, or with the last lines."""

    offset: int = 0
    tail_lines: int | None = None


async def get_vm(context: Context, vm_id: str, tenant_id: str | None) -> Vm:
    """One VM, of this tenant if one is given.

    Raises:
        NotFound: there is none.
    """
    return await context.db.read(lambda connection: store.read_vm(connection, vm_id, tenant_id))


async def get_details(context: Context, vm_id: str, tenant_id: str | None) -> VmDetails:
    """One VM with history and timings, all of one moment.

    Raises:
        NotFound: there is none.
    """

    def read(connection: Connection) -> VmDetails:
        return VmDetails(
            vm=store.read_vm(connection, vm_id, tenant_id),
            history=store.history(connection, vm_id),
            timings=store.timings(connection, vm_id),
        )

    return await context.db.read(read)


async def list_vms(
    context: Context, wanted: VmFilter, page: PageSpec, known: Container[VmKey] = ()
) -> VmPage:
    """A page of VMs, without those that the caller knows as they are now."""
    return await context.db.read(lambda connection: store.list_vms(connection, wanted, page, known))


async def taken(context: Context) -> tuple[Resources, Resources]:
    """What VMs take of the host now, and what is reserved."""
    now_ns = context.clock.now_ns()
    return await context.db.read(
        lambda connection: (
            store.committed(connection),
            capacity_store.reserved(connection, now_ns),
        )
    )


async def list_reservations(
    context: Context, tenant_id: str | None, page: PageSpec
) -> tuple[Sequence[Reservation], tuple[int, str] | None]:
    """A page of reservations and the sort keys of its end, if there is more."""
    now_ns = context.clock.now_ns()
    return await context.db.read(
        lambda connection: capacity_store.list_reservations(connection, tenant_id, page, now_ns)
    )


async def stream_console(
    context: Context, vm: Vm, start: ConsoleStart, *, follow: bool
) -> AsyncGenerator[tuple[int, bytes]]:
    """Pieces of the console's log with their offsets.

    Raises:
        FailedPrecondition: there is no log (yet).
        InvalidRequest: the start is out of bounds.
    """
    if start.offset < 0 or not 0 <= (start.tail_lines or 0) <= MAX_TAIL_LINES:
        raise InvalidRequest(f"offset must be at least 0, tail_lines 0 to {MAX_TAIL_LINES}.")
    path = _console(context, vm)
    if path is None:
        raise FailedPrecondition(
            f"VM {vm.vm_id} is {vm.state} and has no console log.", hint=vm.reason
        )
    at = start.offset
    if start.tail_lines is not None:
        at = await asyncio.to_thread(_tail_offset, path, start.tail_lines)
    cut_bytes = 0
    while True:
        # Asked before reading: what was written before the end is then read after it.
        over = (await context.read(vm.vm_id)).state in _OVER
        now_path = _console(context, vm) or path
        size_bytes = await asyncio.to_thread(_size, now_path)
        if size_bytes < at and at > start.offset:
            # A flood: the driver has dropped the older half, most of which was sent already.
            cut_bytes += at - size_bytes
            at = size_bytes
        # Without `follow` no further than it was: a guest may write faster than anybody reads.
        while (follow or at < size_bytes) and (
            chunk := await asyncio.to_thread(_read, now_path, at)
        ):
            yield at + cut_bytes, chunk
            at += len(chunk)
        if over or not follow:
            return
        await context.clock.sleep(CONSOLE_POLL_SECONDS)


def _console(context: Context, vm: Vm) -> Path | None:
    handle = context.handles.get(vm.vm_id)
    for path in (
        None if handle is None else handle.console_path,
        context.jails.archived_console(vm.vm_id),
        # Between two VMMs there is no handle that knows.
        vm.evidence.jail_dir / CONSOLE_NAME if vm.evidence is not None else None,
    ):
        if path is not None and path.is_file():
            return path
    return None


def _open(path: Path) -> int:
    # The VMM's user may own the file: never follow a link that it put there.
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _read(path: Path, offset: int) -> bytes:
    try:
        descriptor = _open(path)
    except OSError:
        return b""
    try:
        return os.pread(descriptor, CONSOLE_CHUNK_BYTES, offset)
    finally:
        os.close(descriptor)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def _tail_offset(path: Path, lines: int) -> int:
    starts: deque[int] = deque([0], maxlen=lines + 1)
    at = 0
    try:
        descriptor = _open(path)
    except OSError:
        return 0
    with os.fdopen(descriptor, "rb") as file:
        for line in file:
            at += len(line)
            starts.append(at)
    # The last start is the end itself unless the last line is still open.
    return starts[0] if len(starts) > lines else 0
