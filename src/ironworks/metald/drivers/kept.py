"""What drivers whose VMM has a keeper (`metald.jail.keeper`) have in common."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

from ironworks.metald.drivers.driver import DriverError, Evidence, GuestMemory
from ironworks.metald.drivers.processes import VmmProcess, boot_id, is_alive
from ironworks.metald.guest.control import ControlChannel
from ironworks.metald.jail.keeper import find_keepers, kill_group
from ironworks.metald.steps import Step
from ironworks.runtime.process import start_ticks

NETNS_DIRECTORY = Path("/run/netns")
MEMORY_SECONDS = 5.0
"""How long a guest may take to tell its memory."""
END_SECONDS = 5.0
"""A keeper ends with its VMM; one that does not within this time is killed too."""
_PID, _TICKS = "keeper_pid", "keeper_start_ticks"


def watch_keeper(pid: int) -> VmmProcess:
    """Watch a keeper that was just started."""
    return VmmProcess(pid, start_ticks(pid) or 0, os.pidfd_open(pid), child=True)


def keeper_details(keeper: VmmProcess) -> dict[str, str]:
    """What `Evidence.details` has of a keeper."""
    return {_PID: str(keeper.pid), _TICKS: str(keeper.start_ticks)}


def adopt_keeper(evidence: Evidence) -> VmmProcess | None:
    """Watch the keeper that an earlier metald started; None if it is no more."""
    if evidence.boot_id != boot_id():
        return None
    try:
        pid = int(evidence.details[_PID])
        ticks = int(evidence.details[_TICKS])
    except (KeyError, ValueError):
        return None
    return VmmProcess.adopt(pid, ticks)


async def take_over(evidence: Evidence) -> VmmProcess | None:
    """The keeper of a VMM that still runs; None if there is no such VM any more.

    A VMM without its keeper is ended: its console goes nowhere, and nobody would see its end.
    """
    keeper = adopt_keeper(evidence)
    if keeper is None:
        await end_vmm(evidence, None)
        return None
    if not is_alive(evidence):
        keeper.close()
        return None
    return keeper


async def end_all(console: Path, evidence: Evidence | None) -> None:
    """End a VMM and its keeper, and every keeper of this console that nobody remembers."""
    if evidence is not None:
        keeper = adopt_keeper(evidence)
        await end_vmm(evidence, keeper)
        if keeper is not None:
            keeper.close()
    for pid in await asyncio.to_thread(find_keepers, console):
        await kill_group(pid)


async def ask_memory(control: ControlChannel) -> GuestMemory:
    """See `Handle.guest_memory`."""
    try:
        async with asyncio.timeout(MEMORY_SECONDS):
            memory = await control.memory()
    except (TimeoutError, ConnectionError) as error:
        raise DriverError(
            Step.METERING_ATTACH, "The guest does not tell its memory.", detail=repr(error)
        ) from error
    return GuestMemory(total_bytes=memory.total_bytes, available_bytes=memory.available_bytes)


async def end_vmm(evidence: Evidence, keeper: VmmProcess | None) -> None:
    """Kill QEMU, let its keeper read the last of its output, and wait until both are gone."""
    vmm = None
    if evidence.boot_id == boot_id():
        vmm = VmmProcess.adopt(evidence.pid, evidence.pid_start_ticks)
    if vmm is not None:
        try:
            await vmm.kill()
        finally:
            vmm.close()
    if keeper is None:
        return
    try:
        async with asyncio.timeout(END_SECONDS):
            await keeper.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(keeper.pid, signal.SIGKILL)
        await keeper.wait()
