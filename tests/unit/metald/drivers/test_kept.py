"""What drivers with a keeper share."""

import asyncio
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ironworks.metald.drivers import kept
from ironworks.metald.drivers.driver import DriverError, DriverKind, Evidence, GuestMemory
from ironworks.metald.drivers.kept import adopt_keeper, ask_memory, end_vmm, keeper_details
from ironworks.metald.drivers.processes import VmmProcess, boot_id
from ironworks.metald.guest.control import ControlChannel


def sleeper(tmp_path: Path) -> VmmProcess:
    code = "import time; time.sleep(60)"
    return VmmProcess.spawn([sys.executable, "-c", code], output=tmp_path / "out")


def evidence(vmm: VmmProcess, details: dict[str, str], tmp_path: Path) -> Evidence:
    return Evidence(
        kind=DriverKind.QEMU,
        vm_id="vm_x",
        pid=vmm.pid,
        pid_start_ticks=vmm.start_ticks,
        boot_id=boot_id(),
        jail_dir=tmp_path,
        details=details,
    )


async def test_a_keeper_is_found_by_what_was_written_down(tmp_path: Path) -> None:
    keeper = sleeper(tmp_path)
    proof = evidence(keeper, keeper_details(keeper), tmp_path)
    found = adopt_keeper(proof)
    assert found is not None
    assert found.pid == keeper.pid
    assert adopt_keeper(replace(proof, boot_id="another")) is None
    assert adopt_keeper(replace(proof, details={})) is None
    await keeper.kill()
    assert adopt_keeper(proof) is None
    found.close()
    keeper.close()


async def test_the_vmm_and_a_keeper_that_hangs_are_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "END_SECONDS", 0.05)
    vmm, keeper = sleeper(tmp_path), sleeper(tmp_path)
    proof = evidence(vmm, keeper_details(keeper), tmp_path)
    await end_vmm(proof, keeper)
    await vmm.wait()
    assert vmm.ended
    assert keeper.ended
    await end_vmm(proof, None)
    for process in (vmm, keeper):
        process.close()


async def test_a_guest_tells_its_memory_or_an_error_says_that_it_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = socket.socketpair()
    loop = asyncio.get_running_loop()
    _, channel = await loop.create_unix_connection(ControlChannel, sock=ours)
    os.write(theirs.fileno(), b"memory 4 9\n")
    asked = asyncio.gather(ask_memory(channel))
    await asyncio.sleep(0)
    os.write(theirs.fileno(), b"memory 8 2\n")
    (memory,) = await asked
    assert memory.total_bytes in {4096, 8192}
    assert isinstance(memory, GuestMemory)
    monkeypatch.setattr(kept, "MEMORY_SECONDS", 0.02)
    with pytest.raises(DriverError, match="does not tell its memory"):
        await ask_memory(channel)
    channel.close()
    await channel.wait_closed()
    theirs.close()
