"""Every way in which a real QEMU and its guest can end, and what is said of it."""

import asyncio
import ctypes
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ironworks.metald.drivers.driver import (
    DriverError,
    ExitKind,
    ExitReport,
    GuestConfig,
    GuestEndedError,
)
from ironworks.metald.drivers.qemu import QemuDriver, QemuHandle
from ironworks.metald.guest.build import DEFAULT_DIR
from ironworks.metald.steps import NoSteps
from ironworks.model.units import MIB
from ironworks.runtime.clock import SystemClock
from ironworks.testkit.rooms import Room

pytestmark = [pytest.mark.vm, pytest.mark.root]
BOOT_SECONDS = 90.0
_ATTACH, _DETACH, _GET_REGISTERS, _SET_REGISTERS = 16, 17, 12, 13
_ALL_THREADS = 0x40000000
_REGISTERS, _RAX, _ORIGINAL_RAX, _RIP = 27, 10, 15, 16
_FORK, _SYSCALL_BYTES = 57, 2


@pytest.fixture
async def driver(tmp_path_factory: pytest.TempPathFactory, room: Room) -> AsyncIterator[QemuDriver]:
    made = QemuDriver(
        SystemClock(),
        NoSteps(),
        guest_dir=DEFAULT_DIR,
        state_dir=tmp_path_factory.getbasetemp(),
    )
    yield made
    await made.destroy(room.jail_dir, None)
    assert room.processes() == []


async def ready(handle: QemuHandle) -> None:
    await handle.boot()
    async with asyncio.timeout(BOOT_SECONDS):
        await handle.wait_ready()


async def ended(handle: QemuHandle) -> ExitReport:
    async with asyncio.timeout(BOOT_SECONDS):
        report = await handle.wait()
    await handle.close()
    assert report.sentence.endswith(".")
    return report


def shell(script: str) -> GuestConfig:
    return GuestConfig(hostname="h", argv=("sh", "-c", script))


async def test_a_kernel_that_panics(driver: QemuDriver, room: Room) -> None:
    script = "echo about to crash; sleep 0.2; echo c >/proc/sysrq-trigger"
    handle = await driver.create(room.spec(shell(script)))
    await ready(handle)
    report = await ended(handle)
    assert (report.kind, report.workload_status) == (ExitKind.PANIC, None)
    assert report.sentence == "The guest's kernel panicked: sysrq triggered crash."
    assert "about to crash" in report.console_tail
    assert any("Kernel panic - not syncing" in line for line in report.console_tail)
    assert not report.clean


async def test_a_vmm_that_the_kernel_kills_for_its_memory(driver: QemuDriver, room: Room) -> None:
    handle = await driver.create(room.spec(shell("sleep 600")))
    for cgroup in room.cgroups:
        for name in ("memory.max", "memory.limit_in_bytes"):
            if (cgroup / name).exists():
                (cgroup / name).write_text(str(120 * MIB))
    with pytest.raises(GuestEndedError, match="SIGKILL, which metald did not send"):
        await ready(handle)
    report = await ended(handle)
    assert (report.kind, report.vmm_status) == (ExitKind.CRASHED, -signal.SIGKILL)


def call_from_outside(pid: int, number: int) -> None:
    """Have the main thread of a process make a system call, as an intruder in it would."""
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    registers = (ctypes.c_ulonglong * _REGISTERS)()
    assert ptrace(_ATTACH, pid, None, None) == 0
    os.waitpid(pid, _ALL_THREADS)
    assert ptrace(_GET_REGISTERS, pid, None, registers) == 0
    # It waits in a call: its next instruction stands behind one that calls.
    registers[_RIP] -= _SYSCALL_BYTES
    registers[_RAX] = number
    registers[_ORIGINAL_RAX] = ctypes.c_ulonglong(-1).value
    assert ptrace(_SET_REGISTERS, pid, None, registers) == 0
    assert ptrace(_DETACH, pid, None, None) == 0


async def test_a_vmm_that_does_what_its_filter_forbids(driver: QemuDriver, room: Room) -> None:
    handle = await driver.create(room.spec(shell("sleep 600")))
    await asyncio.to_thread(call_from_outside, handle.evidence.pid, _FORK)
    report = await ended(handle)
    assert (report.kind, report.vmm_status) == (ExitKind.SECCOMP, -signal.SIGSYS)
    assert report.sentence == "QEMU made a system call that its filter forbids, and was ended."


async def test_a_kernel_that_is_none(driver: QemuDriver, room: Room) -> None:
    spec = room.spec(shell("sleep 600"))
    spec.kernel_path.chmod(0o644)
    spec.kernel_path.write_bytes(b"no kernel at all" * 1000)
    with pytest.raises(DriverError) as caught:
        await driver.create(spec)
    assert "kernel" in caught.value.sentence


async def test_a_guest_that_never_answers_can_be_ended(driver: QemuDriver, room: Room) -> None:
    spec = room.spec(shell("sleep 600"))
    handle = await driver.create(spec)
    # Not even its first instruction runs.
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await handle.wait_ready()
    await handle.shutdown()
    await handle.kill()
    report = await ended(handle)
    assert (report.kind, report.sentence) == (ExitKind.KILLED, "The VM was ended by force.")


async def test_an_init_of_the_image_is_process_1_and_stops_at_the_power_button(
    driver: QemuDriver, room: Room
) -> None:
    guest = GuestConfig(hostname="own", argv=("--all", "of it"), image_init=True)
    handle = await driver.create(room.spec(guest))
    await ready(handle)
    async with asyncio.timeout(BOOT_SECONDS):
        while "waits" not in Path(handle.console_path).read_text():  # noqa: ASYNC110 - another process makes it so
            await asyncio.sleep(0.05)
    await handle.shutdown()
    report = await ended(handle)
    assert (report.kind, report.workload_status, report.clean) == (ExitKind.POWEROFF, None, True)
    assert "process 1: /sbin/init --all of it" in report.console_tail
    assert "the button was pressed" in report.console_tail
