"""The driver with real processes, FIFOs and sockets, and a Firecracker that is not one."""

import asyncio
import contextlib
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from ironworks.metald.drivers.driver import (
    DriverError,
    ExitKind,
    ExitReport,
    GuestConfig,
    GuestEndedError,
    VmmSpec,
)
from ironworks.metald.drivers.firecracker import FirecrackerDriver, FirecrackerHandle
from ironworks.metald.drivers.firecracker import handle as handle_module
from ironworks.metald.drivers.processes import is_stopped
from ironworks.metald.guest.build import DEFAULT_DIR, find
from ironworks.metald.steps import NoSteps, Step
from ironworks.model.units import MIB
from ironworks.runtime.clock import SystemClock

from .test_machine import SPEC

pytestmark = pytest.mark.root
UID = 1_900_005
FAKE = Path(__file__).with_name("fake_firecracker.py")
ASSETS = {"kernel", "initrd", "rootfs"}


class Place:
    """A VM's directory, and programs that take orders."""

    def __init__(self, tmp_path: Path) -> None:
        self.jail_dir = tmp_path / "vm"
        self.programs = tmp_path / "bin"
        self.programs.mkdir()
        self.jail_dir.mkdir()
        guest = find(DEFAULT_DIR)
        assert guest is not None, "`./iron test` builds it"
        (self.jail_dir / "kernel").symlink_to(guest.kernel_path)
        for name in ("initrd", "rootfs"):
            (self.jail_dir / name).write_bytes(b"x")
        for name in ("jailer", "firecracker"):
            program = self.programs / name
            program.write_text(f'#!/bin/sh\nexec /usr/bin/python3 {FAKE} "$0" "$@"\n')
            program.chmod(0o755)
        self.order()

    def order(self, **orders: object) -> None:
        (self.programs / "orders.json").write_text(json.dumps(orders))

    def driver(self) -> FirecrackerDriver:
        return FirecrackerDriver(
            SystemClock(), NoSteps(), guest_dir=DEFAULT_DIR, state_dir=self.programs
        )

    def spec(self) -> VmmSpec:
        return replace(
            SPEC,
            jail_dir=self.jail_dir,
            kernel_path=self.jail_dir / "kernel",
            initrd_path=self.jail_dir / "initrd",
            rootfs_path=self.jail_dir / "rootfs",
            uid=UID,
            gid=UID,
        )

    def files(self) -> set[str]:
        return {path.name for path in self.jail_dir.iterdir()}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    made = Place(tmp_path)
    monkeypatch.setenv("FIRECRACKER_BIN", str(made.programs / "firecracker"))
    monkeypatch.setenv("JAILER_BIN", str(made.programs / "jailer"))
    return made


async def booted(handle: FirecrackerHandle) -> FirecrackerHandle:
    await handle.boot()
    async with asyncio.timeout(20):
        await handle.wait_ready()
    return handle


async def ended(handle: FirecrackerHandle) -> ExitReport:
    async with asyncio.timeout(20):
        report = await handle.wait()
    await handle.close()
    return report


@pytest.mark.parametrize("version", ["1.15.1", "1.16.1"])
async def test_a_life_over_two_metalds(place: Place, version: str) -> None:
    place.order(version=version)
    first = await place.driver().create(place.spec())
    assert (await first.block_counters()).read_bytes == 0
    await booted(first)
    assert (await first.block_counters()).read_bytes == 20
    assert (await first.guest_memory()).available_bytes == 50 * 1024
    assert not await first.stands_still()
    await first.pause()
    assert await first.stands_still()
    stopped = version == "1.16.1"
    assert is_stopped(first.evidence.pid) is stopped
    # Paused, it is still read, and found by a metald that starts.
    assert (await first.block_counters()).read_bytes == (20 if stopped else 30)
    meanwhile = await place.driver().adopt(first.evidence)
    assert meanwhile is not None
    await meanwhile.close()
    await first.resume()
    status = Path(f"/proc/{first.evidence.pid}/status").read_text()
    assert f"Uid:\t{UID}\t{UID}\t{UID}" in status
    await first.close()

    second = await place.driver().adopt(first.evidence)
    assert second is not None
    await second.boot()  # one that was begun before is begun again
    async with asyncio.timeout(20):
        await second.wait_ready()
    assert (await second.block_counters()).read_bytes == (30 if stopped else 40)
    assert second.torn_lines == 0
    await second.shutdown()
    report = await ended(second)
    assert (report.kind, report.workload_status) == (ExitKind.WORKLOAD, 0)
    assert {"guest: booted", "guest: heard clock"} <= set(report.console_tail)
    assert await place.driver().adopt(first.evidence) is None
    assert (await place.driver().post_mortem(first.evidence)).workload_status == 0
    await place.driver().destroy(place.jail_dir, first.evidence)
    assert place.files() == ASSETS


async def test_a_reboot_keeps_console_and_disk(place: Place) -> None:
    spec = replace(place.spec(), scratch_bytes=64 * MIB)
    first = await booted(await place.driver().create(spec))
    inode = (place.jail_dir / "scratch.img").stat().st_ino
    await first.close()
    second = await booted(await place.driver().reboot(spec, first.evidence))
    assert second.evidence.pid != first.evidence.pid
    assert (place.jail_dir / "scratch.img").stat().st_ino == inode
    for _ in range(500):
        if second.console_path.read_text().count("guest: booted") == 2:
            break
        await asyncio.sleep(0.02)
    assert second.console_path.read_text().count("guest: booted") == 2
    assert (await second.block_counters()).read_bytes == 20
    await second.kill()
    assert (await ended(second)).kind is ExitKind.KILLED
    place.order(refuse=["/boot-source"])
    with pytest.raises(DriverError):
        await place.driver().reboot(spec, second.evidence)
    assert place.files() == {*ASSETS, "console.log", "scratch.img"}
    await place.driver().destroy(place.jail_dir, second.evidence)
    assert place.files() == ASSETS


async def test_a_refusal_is_quoted_and_nothing_is_left(place: Place) -> None:
    place.order(refuse=["/network-interfaces/eth0"])
    with pytest.raises(DriverError, match="eth0 is refused") as caught:
        await place.driver().create(place.spec())
    assert caught.value.step is Step.VMM_CONNECT
    assert place.files() == ASSETS


@pytest.mark.parametrize(
    ("status", "complaint", "words"), [(1, "No such tap.", "No such tap."), (153, "", "ended")]
)
async def test_a_firecracker_that_does_not_start_says_why(
    place: Place, status: int, complaint: str, words: str
) -> None:
    place.order(exit_early=status, complaint=complaint)
    with pytest.raises(DriverError, match=words):
        await place.driver().create(place.spec())
    assert place.files() == ASSETS


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (148, ExitKind.SECCOMP, "filter forbids"),
        (149, ExitKind.CRASHED, "SIGBUS"),
        (152, ExitKind.CRASHED, "refused its configuration"),
        (1, ExitKind.CRASHED, "Firecracker failed with status 1"),
        (0, ExitKind.POWEROFF, "powered off"),
    ],
)
async def test_an_end_before_the_guest_is_ready_is_explained(
    place: Place, status: int, kind: ExitKind, words: str
) -> None:
    place.order(exit_at_start=status)
    handle = await place.driver().create(place.spec())
    # Whether it still answers the call that starts it is a matter of microseconds.
    with contextlib.suppress(DriverError):
        await handle.boot()
    with pytest.raises(GuestEndedError, match=words) as caught:
        await handle.wait_ready()
    assert caught.value.report.kind is kind
    assert caught.value.report.vmm_status == status
    await handle.close()
    await place.driver().destroy(place.jail_dir, handle.evidence)


async def test_one_that_is_killed_has_crashed(place: Place) -> None:
    handle = await booted(await place.driver().create(place.spec()))
    os.kill(handle.evidence.pid, signal.SIGKILL)
    report = await ended(handle)
    assert (report.kind, report.vmm_status) == (ExitKind.CRASHED, -signal.SIGKILL)
    with pytest.raises(DriverError, match="disks' counters"):
        await handle.block_counters()
    await place.driver().destroy(place.jail_dir, handle.evidence)


async def test_one_that_lost_its_keeper_is_ended(place: Place) -> None:
    handle = await booted(await place.driver().create(place.spec()))
    os.kill(int(handle.evidence.details["keeper_pid"]), signal.SIGKILL)
    assert (await ended(handle)).kind is ExitKind.CRASHED
    assert await place.driver().adopt(handle.evidence) is None
    await place.driver().destroy(place.jail_dir, handle.evidence)
    assert place.files() == ASSETS


async def test_an_init_of_the_image_is_stopped_by_the_keyboard(place: Place) -> None:
    guest = GuestConfig(hostname="web", argv=("/sbin/init",), image_init=True)
    handle = await booted(await place.driver().create(replace(place.spec(), guest=guest)))
    await handle.shutdown()
    report = await ended(handle)
    assert report.kind is ExitKind.POWEROFF
    assert "guest: Ctrl-Alt-Del" in report.console_tail
    await place.driver().destroy(place.jail_dir, handle.evidence)


async def test_so_is_a_guest_that_was_cut_off(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handle_module, "ATTACH_SECONDS", 0.05)
    handle = await place.driver().create(place.spec())
    await handle.boot()
    await handle._links.control.close()  # pyright: ignore[reportPrivateUsage] - as a flood does
    await handle.shutdown()
    assert (await ended(handle)).kind is ExitKind.POWEROFF
    await place.driver().destroy(place.jail_dir, handle.evidence)


async def test_a_kernel_that_is_none_is_said(place: Place) -> None:
    (place.jail_dir / "kernel").unlink()
    (place.jail_dir / "kernel").write_text("no kernel")
    with pytest.raises(DriverError, match="neither a bzImage nor an ELF") as caught:
        await place.driver().create(place.spec())
    assert caught.value.step is Step.JAIL_PREPARE


async def test_programs_that_are_missing_are_named(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRECRACKER_BIN", "/none/firecracker")
    probe = await place.driver().probe()
    assert not probe.available
    assert "/none/firecracker, which FIRECRACKER_BIN names" in probe.sentence
    with pytest.raises(DriverError, match="There is no firecracker"):
        await place.driver().create(place.spec())
    assert place.files() == ASSETS
