"""What every driver must do: the texts of `metald.drivers.driver`, as tests."""

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ironworks.metald.drivers.driver import (
    Accel,
    DriverError,
    DriverKind,
    ExitKind,
    ExitReport,
    GuestEndedError,
    Handle,
    VmmSpec,
)
from ironworks.metald.steps import Step

from .conftest import NESTED

if TYPE_CHECKING:
    from .conftest import Place

pytestmark = pytest.mark.root
READY_SECONDS = 60.0


async def page(address: str) -> bytes:
    """The guest's answer; asked until somebody listens."""
    async with asyncio.timeout(READY_SECONDS):
        while True:
            try:
                reader, writer = await asyncio.open_connection(address, 8080)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            try:
                writer.write(b"GET / HTTP/1.0\r\n\r\n")
                return await reader.read()
            finally:
                writer.close()


async def booted(handle: Handle) -> Handle:
    await handle.boot()
    async with asyncio.timeout(READY_SECONDS):
        await handle.wait_ready()
    return handle


async def ended(handle: Handle) -> ExitReport:
    async with asyncio.timeout(READY_SECONDS):
        return await handle.wait()


def assert_confined(spec: VmmSpec, pid: int, kind: DriverKind) -> None:
    """What the kernel says of a VMM: whose it is, what it may, where it is."""
    status = Path(f"/proc/{pid}/status").read_text()
    assert f"Uid:\t{spec.uid}\t{spec.uid}\t{spec.uid}" in status
    assert f"Gid:\t{spec.gid}\t{spec.gid}\t{spec.gid}" in status
    netns = Path("/run/netns") / spec.netns
    assert Path(f"/proc/{pid}/ns/net").stat().st_ino == netns.stat().st_ino
    if kind is DriverKind.FAKE:
        return
    for line in (
        "Groups:\t \n",
        "CapEff:\t0000000000000000\n",
        "NoNewPrivs:\t1\n",
        "Seccomp:\t2\n",
    ):
        assert line in status
    for space in ("mnt", "pid", "ipc", "uts"):
        assert (
            Path(f"/proc/{pid}/ns/{space}").readlink() != Path(f"/proc/self/ns/{space}").readlink()
        )
    limits = Path(f"/proc/{pid}/limits").read_text()
    files = next(line for line in limits.splitlines() if line.startswith("Max open files"))
    assert files.split()[3:5] == ["1024", "1024"]


async def test_the_probe_says_what_and_why(place: "Place") -> None:
    probe = await place.driver().probe()
    assert probe.kind is place.kind.kind
    assert probe.available
    assert probe.sentence.endswith(".")
    assert probe.capabilities.max_vcpus >= 1
    if NESTED and probe.kind is not DriverKind.FAKE:
        assert probe.accel is Accel.KVM
    if NESTED and probe.kind is DriverKind.QEMU:
        assert "microvm" in probe.sentence


async def test_a_whole_life(place: "Place") -> None:
    assets = place.files()
    driver = place.driver()
    first = await driver.create(place.spec)
    evidence = first.evidence
    assert (evidence.vm_id, evidence.kind) == (place.spec.vm_id, place.kind.kind)
    assert evidence.pid in place.pids()
    assert evidence.pid not in {os.getpid(), os.getpgid(0)}
    assert_confined(place.spec, evidence.pid, place.kind.kind)
    assert os.getsid(evidence.pid) != os.getsid(0)
    assert first.console_path.is_file()

    await booted(first)
    await first.wait_ready()
    assert (await page(place.address)).startswith(b"HTTP/1.")
    counters = await first.block_counters()
    assert min(counters.read_bytes, counters.written_bytes, counters.read_operations) >= 0
    await first.close()

    # Another metald: nothing of the first is left but the evidence.
    driver = place.driver()
    assert await driver.adopt(replace(evidence, pid_start_ticks=1)) is None
    assert await driver.adopt(replace(evidence, boot_id="another")) is None
    second = await driver.adopt(evidence)
    assert second is not None
    # It may have been killed while the guest booted: the boot is begun again, and goes on.
    await second.boot()
    async with asyncio.timeout(READY_SECONDS):
        await second.wait_ready()
    assert (await second.block_counters()).read_bytes >= counters.read_bytes

    assert not await second.stands_still()
    await second.pause()
    assert await second.stands_still()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await page(place.address)
    await second.resume()
    assert not await second.stands_still()
    assert (await page(place.address)).startswith(b"HTTP/1.")

    waiting = asyncio.gather(second.wait(), second.wait())
    await second.shutdown()
    async with asyncio.timeout(READY_SECONDS):
        one, other = await waiting
    assert one == other == await second.wait()
    assert (one.kind, one.workload_status, one.clean) == (ExitKind.WORKLOAD, 0, True)
    assert one.console_tail
    assert one.sentence.endswith(".")
    await second.kill()
    await second.close()
    assert await driver.adopt(evidence) is None
    assert (await driver.post_mortem(evidence)).workload_status == 0
    await driver.destroy(place.spec.jail_dir, evidence)
    await driver.destroy(place.spec.jail_dir, evidence)
    assert place.files() == assets
    assert place.pids() == set()


async def test_a_reboot_is_a_fresh_vmm_in_the_same_place(place: "Place") -> None:
    assets = place.files()
    driver = place.driver()
    first = await booted(await driver.create(place.with_guest(place.kind.ends_by_itself)))
    assert (await ended(first)).workload_status == 3
    await first.close()
    said = first.console_path.read_bytes()

    second = await driver.reboot(place.spec, first.evidence)
    assert (second.evidence.pid, second.evidence.vm_id) != (first.evidence.pid, "")
    assert second.evidence.pid in place.pids()
    await booted(second)
    assert (await page(place.address)).startswith(b"HTTP/1.")
    memory = await second.guest_memory()
    assert 0 < memory.available_bytes < memory.total_bytes
    assert second.console_path.read_bytes().startswith(said)
    await second.close()

    # What still runs is ended first, and the end of an earlier VMM is not taken for this one's.
    third = await place.driver().reboot(place.spec, second.evidence)
    assert await driver.adopt(second.evidence) is None
    await third.kill()
    assert (await ended(third)).kind is ExitKind.KILLED
    await third.close()
    await driver.destroy(place.spec.jail_dir, third.evidence)
    assert place.files() == assets
    assert place.pids() == set()


async def test_a_vmm_that_was_never_booted_is_killed(place: "Place") -> None:
    handle = await place.driver().create(place.spec)
    await handle.kill()
    await handle.kill()
    report = await ended(handle)
    assert report.kind is ExitKind.KILLED
    assert report.clean
    assert place.pids() == set()
    await handle.close()


async def test_a_vmm_that_is_killed_by_another_has_crashed(place: "Place") -> None:
    handle = await place.driver().create(place.spec)
    os.kill(handle.evidence.pid, signal.SIGKILL)
    report = await ended(handle)
    assert (report.kind, report.vmm_status) == (ExitKind.CRASHED, -signal.SIGKILL)
    assert "SIGKILL" in report.sentence
    assert not report.clean
    await handle.close()


async def test_a_guest_that_ends_before_it_is_ready_says_how(place: "Place") -> None:
    handle = await place.driver().create(place.with_guest(place.kind.dies))
    with pytest.raises(GuestEndedError) as error:
        await booted(handle)
    assert error.value.report == await ended(handle)
    assert not error.value.report.clean
    assert error.value.sentence
    await handle.close()


async def test_an_end_that_nobody_watched_is_told_afterwards(place: "Place") -> None:
    driver = place.driver()
    handle = await driver.create(place.with_guest(place.kind.ends_by_itself))
    await booted(handle)
    await handle.close()
    async with asyncio.timeout(READY_SECONDS):
        while place.pids():  # noqa: ASYNC110 - another process makes it so
            await asyncio.sleep(0.02)
    assert await place.driver().adopt(handle.evidence) is None
    report = await place.driver().post_mortem(handle.evidence)
    assert (report.kind, report.workload_status) == (ExitKind.WORKLOAD, 3)
    assert "3" in report.sentence


async def test_destroy_ends_what_still_runs(place: "Place") -> None:
    assets = place.files()
    handle = await place.driver().create(place.spec)
    await handle.close()
    await place.driver().destroy(place.spec.jail_dir, handle.evidence)
    assert place.pids() == set()
    assert place.files() == assets
    assert await place.driver().adopt(handle.evidence) is None


class Raises:
    """Fails one step."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.reached = False

    async def reach(self, step: Step, vm_id: str) -> None:
        if step is self.step:
            self.reached = True
            raise DriverError(step, "made to fail")


@pytest.mark.parametrize(
    "step", [Step.JAIL_PREPARE, Step.VMM_CONFIGURE, Step.VMM_SPAWN, Step.VMM_CONNECT], ids=str
)
async def test_a_step_of_create_that_fails_leaves_nothing(place: "Place", step: Step) -> None:
    assets = place.files()
    faults = Raises(step)
    driver = place.driver(faults)
    with pytest.raises(DriverError) as error:
        await driver.create(place.spec)
    assert faults.reached
    assert error.value.step is step
    assert place.pids() == set()
    assert place.files() == assets
    await driver.destroy(place.spec.jail_dir, None)


@pytest.mark.parametrize(
    ("step", "call"),
    [
        (Step.GUEST_START, "boot"),
        (Step.GUEST_READY, "wait_ready"),
        (Step.GUEST_PAUSE, "pause"),
        (Step.GUEST_RESUME, "resume"),
        (Step.GUEST_SHUTDOWN, "shutdown"),
        (Step.VMM_KILL, "kill"),
    ],
    ids=str,
)
async def test_every_method_names_its_step(place: "Place", step: Step, call: str) -> None:
    handle = await place.driver(Raises(step)).create(place.spec)
    with pytest.raises(DriverError, match="made to fail"):
        await getattr(handle, call)()
    await handle.close()


async def test_a_place_that_is_not_there_is_an_error_with_a_step(place: "Place") -> None:
    with pytest.raises(DriverError) as error:
        await place.driver().create(replace(place.spec, netns="iw-none"))
    assert error.value.sentence
    assert place.pids() == set()
