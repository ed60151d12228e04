"""Readiness: whether a port of the guest answers, asked from outside, without a program inside.

A boot waits for `until_ready`. From then on a task per VM asks every `period_seconds` and writes
when the answer has changed for good; `decide.observe` says when that is.
"""

import asyncio
import contextlib
from dataclasses import replace

from ironworks.metald import decide, store
from ironworks.metald.app.context import Context, warn
from ironworks.metald.decide import Health
from ironworks.metald.steps import Step
from ironworks.metald.types import Readiness, Vm, VmState
from ironworks.model.errors import Aborted, Internal, IronError

FIRST_WAIT_SECONDS = 0.01
MAX_BOOT_WAIT_SECONDS = 0.1
"""Between two tries before a VM is ready: whoever boots it waits for the answer."""
MAX_STATUS_LINE_BYTES = 1024
_ANY_SUCCESS = range(200, 400)


async def passes(address: str, readiness: Readiness) -> bool:
    """One try."""
    try:
        async with asyncio.timeout(readiness.timeout_seconds):
            reader, writer = await asyncio.open_connection(
                address, readiness.port, limit=MAX_STATUS_LINE_BYTES
            )
            try:
                if not readiness.http_path:
                    return True
                return await _status_fits(reader, writer, address, readiness)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError, ValueError):
        # ValueError: what answered does not speak HTTP, or does not stop.
        return False


async def _status_fits(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    address: str,
    readiness: Readiness,
) -> bool:
    request = (
        f"GET {readiness.http_path} HTTP/1.1\r\nHost: {address}:{readiness.port}\r\n"
        "User-Agent: ironworks-readiness\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    )
    writer.write(request.encode())
    await writer.drain()
    # The status line and no more: what else a guest sends is of no interest, and unbounded.
    version, _, rest = (await reader.readline()).decode("latin-1").partition(" ")
    if not version.startswith("HTTP/1."):
        return False
    status = int(rest[:3])
    if readiness.expected_status:
        return status == readiness.expected_status
    return status in _ANY_SUCCESS


def _address(context: Context, vm: Vm) -> str:
    if vm.slot is None:
        raise Internal(f"VM {vm.vm_id} has no network slot.")
    return str(context.network.names(vm.slot).address)


async def until_ready(context: Context, vm: Vm) -> None:
    """Wait until the VM's check passes; at once if it has none."""
    readiness = vm.spec.readiness
    if readiness is None:
        return
    await context.steps.reach(Step.READINESS_PORT, vm.vm_id)
    address, health = _address(context, vm), Health(ready=False)
    # Most servers listen within milliseconds of their start: asked often at first.
    longest = min(MAX_BOOT_WAIT_SECONDS, readiness.period_seconds)
    wait_seconds = FIRST_WAIT_SECONDS
    while True:
        passed = await passes(address, readiness)
        health = decide.observe(health, readiness, passed=passed)
        if health.ready:
            return
        await context.clock.sleep(longest if passed else wait_seconds)
        wait_seconds = min(2 * wait_seconds, longest)


def start(context: Context, vm: Vm) -> None:
    """Watch a RUNNING VM's readiness from now on, in place of an earlier watch."""
    if vm.spec.readiness is None:
        return
    token = object()
    context.monitors[vm.vm_id] = token
    context.tasks.start(_watch(context, vm, vm.spec.readiness, token), name=f"health {vm.vm_id}")


def stop(context: Context, vm_id: str) -> None:
    """Watch it no longer."""
    context.monitors.pop(vm_id, None)


async def _watch(context: Context, vm: Vm, readiness: Readiness, token: object) -> None:
    address, health = _address(context, vm), Health(ready=vm.ready)
    while True:
        await context.clock.sleep(readiness.period_seconds)
        if context.monitors.get(vm.vm_id) is not token:
            return
        passed = await passes(address, readiness)
        if context.monitors.get(vm.vm_id) is not token:
            return
        now = decide.observe(health, readiness, passed=passed)
        # What could not be written yet is seen, and written, by the next try.
        if now.ready == health.ready or await _written(context, vm.vm_id, readiness, now):
            health = now


async def _written(context: Context, vm_id: str, readiness: Readiness, health: Health) -> bool:
    try:
        return await _write(context, vm_id, readiness, health)
    except Aborted:
        return False
    except IronError as error:
        warn("readiness_not_written", error, vm_id=vm_id)
        return False


async def _write(context: Context, vm_id: str, readiness: Readiness, health: Health) -> bool:
    context.operations.begin(vm_id, "health")
    try:
        vm = await context.db.read(lambda connection: store.find_vm(connection, vm_id))
        if vm is None or vm.state is not VmState.RUNNING or vm.restart_at_ns:
            return False
        what = (
            f"an HTTP request for {readiness.http_path}" if readiness.http_path else "a connection"
        )
        reason = (
            "Its readiness check passes again."
            if health.ready
            else f"Its readiness check fails: {what} on port {readiness.port} is not answered."
        )
        await context.amend(replace(vm, ready=health.ready, reason=reason))
        return True
    finally:
        context.operations.end(vm_id)
