import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from ironworks.metald.drivers.driver import DriverKind, Evidence
from ironworks.metald.drivers.processes import (
    VmmProcess,
    boot_id,
    is_alive,
    mark_reboot,
    since_reboot,
    tail,
)
from ironworks.runtime.process import start_ticks


def spawn(tmp_path: Path, code: str) -> VmmProcess:
    return VmmProcess.spawn([sys.executable, "-c", code], output=tmp_path / "out.log")


def evidence(process: VmmProcess, tmp_path: Path) -> Evidence:
    return Evidence(
        kind=DriverKind.FAKE,
        vm_id="vm_x",
        pid=process.pid,
        pid_start_ticks=process.start_ticks,
        boot_id=boot_id(),
        jail_dir=tmp_path,
    )


async def test_a_child_ends_with_its_status_for_all_who_wait(tmp_path: Path) -> None:
    process = spawn(tmp_path, "print('hello'); raise SystemExit(3)")
    assert await asyncio.gather(process.wait(), process.wait()) == [3, 3]
    assert process.ended
    assert (tmp_path / "out.log").read_text() == "hello\n"
    await process.kill()
    process.close()
    process.close()


async def test_it_stands_apart_from_us(tmp_path: Path) -> None:
    code = "import os,signal; print(os.getsid(0)==os.getpid(), signal.getsignal(signal.SIGPIPE)"
    process = spawn(tmp_path, code + "==signal.SIG_IGN, os.environ.get('HOME'))")
    assert await process.wait() == 0
    # Python itself ignores SIGPIPE at its start, whatever it was given.
    assert (tmp_path / "out.log").read_text() == "True True None\n"


async def test_a_signal_ends_it_and_says_so(tmp_path: Path) -> None:
    process = spawn(tmp_path, "import time; time.sleep(600)")
    assert is_alive(evidence(process, tmp_path))
    process.send(signal.SIGTERM)
    assert await process.wait() == -signal.SIGTERM
    assert not is_alive(evidence(process, tmp_path))


async def test_another_metald_finds_the_very_process_or_none(tmp_path: Path) -> None:
    process = spawn(tmp_path, "import time; time.sleep(600)")
    adopted = VmmProcess.adopt(process.pid, process.start_ticks)
    assert adopted is not None
    assert VmmProcess.adopt(process.pid, process.start_ticks + 1) is None
    await process.kill()
    assert await adopted.wait() is None
    assert VmmProcess.adopt(process.pid, process.start_ticks) is None


async def test_evidence_of_another_boot_proves_nothing(tmp_path: Path) -> None:
    own = start_ticks(os.getpid())
    assert own is not None
    claim = Evidence(
        kind=DriverKind.FAKE,
        vm_id="vm_x",
        pid=os.getpid(),
        pid_start_ticks=own,
        boot_id="another",
        jail_dir=tmp_path,
    )
    assert not is_alive(claim)


async def test_a_program_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nothing"):
        VmmProcess.spawn(["/nothing/here"], output=tmp_path / "out.log")


def test_the_tail_is_short_clean_and_never_fails(tmp_path: Path) -> None:
    console = tmp_path / "console"
    assert tail(console) == ()
    console.write_bytes(b"\x1b[1mbold\x1b[0m\r\n\n  \nbad\xff\n" + b"x" * 2000 + b"\nlast")
    lines = tail(console)
    assert lines[0] == "[1mbold[0m"
    assert lines[1] == "bad\ufffd"
    assert lines[2] == "x" * 500
    assert lines[3] == "last"
    console.write_bytes(b"".join(b"%d\n" % number for number in range(100_000)))
    assert tail(console) == tuple(str(number) for number in range(99_980, 100_000))
    assert tail(console, 1) == ("99999",)


def test_what_an_earlier_vmm_printed_is_told_apart(tmp_path: Path) -> None:
    console = tmp_path / "console.log"
    mark_reboot(console)
    assert not console.exists()
    console.write_text("ironworks: exited 3")
    assert since_reboot(tail(console)) == ("ironworks: exited 3",)
    mark_reboot(console)
    assert since_reboot(tail(console)) == ()
    with console.open("a") as file:
        file.write("again\n")
    assert since_reboot(tail(console)) == ("again",)
    assert tail(console)[0] == "ironworks: exited 3"
