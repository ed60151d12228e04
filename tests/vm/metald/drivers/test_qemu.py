"""The QEMU driver with real VMs. Each boot costs seconds, so each test looks at a lot."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ironworks.metald.drivers.driver import (
    DriverError,
    ExitKind,
    GuestConfig,
    GuestEndedError,
    GuestNetwork,
    RateLimits,
)
from ironworks.metald.drivers.qemu import QemuDriver, QemuHandle
from ironworks.metald.guest.build import DEFAULT_DIR, Guest
from ironworks.metald.steps import NoSteps, Step, Steps
from ironworks.model.units import MIB
from ironworks.runtime.clock import SystemClock
from ironworks.testkit.rooms import UID, Room, get_page, make_room, make_rootfs

pytestmark = [pytest.mark.vm, pytest.mark.root]

BOOT_SECONDS = 60.0


def make_driver(state_dir: Path, steps: Steps | None = None) -> QemuDriver:
    return QemuDriver(SystemClock(), steps or NoSteps(), guest_dir=DEFAULT_DIR, state_dir=state_dir)


@pytest.fixture
def new_driver(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], QemuDriver]:
    """Drivers of metald after metald; what the probe found is shared."""
    return lambda: make_driver(tmp_path_factory.getbasetemp())


@pytest.fixture
async def driver(new_driver: Callable[[], QemuDriver], room: Room) -> AsyncIterator[QemuDriver]:
    made = new_driver()
    yield made
    await made.destroy(room.jail_dir, None)
    left = {path.name for path in room.jail_dir.iterdir()}
    assert left == {"vmlinuz", "initrd.img", room.rootfs.name}
    assert room.processes() == []


async def boot(driver: QemuDriver, room: Room, guest: GuestConfig) -> QemuHandle:
    handle = await driver.create(room.spec(guest))
    await handle.boot()
    async with asyncio.timeout(BOOT_SECONDS):
        await handle.wait_ready()
    return handle


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(BOOT_SECONDS):
        while not holds():  # noqa: ASYNC110 - another process makes it so
            await asyncio.sleep(0.02)


def status_of(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/status").read_text()
    return {name: value.strip() for name, _, value in (x.partition(":") for x in text.splitlines())}


def assert_jailed(pid: int) -> None:
    status = status_of(pid)
    assert set(status["Uid"].split()) == {str(UID)}
    assert set(status["Gid"].split()) == {str(UID)}
    assert status["Groups"] == ""
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd")} == {0}
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    for kind in ("mnt", "pid", "ipc", "uts", "net"):
        assert Path(f"/proc/{pid}/ns/{kind}").readlink() != Path(f"/proc/self/ns/{kind}").readlink()
    root = Path(f"/proc/{pid}/root")
    assert {path.name for path in (root / "vm").iterdir()} == {
        "kernel",
        "initrd",
        "rootfs",
        "config",
    }
    assert not (root / "proc").exists()
    assert not (root / "dev").exists()
    assert not (root / "etc").exists()
    mounts = Path(f"/proc/{pid}/mounts").read_text().splitlines()
    assert all(mount.split()[3].split(",")[0] == "ro" for mount in mounts)


async def test_a_workload_runs_as_the_image_says_and_survives_metald(
    driver: QemuDriver, new_driver: Callable[[], QemuDriver], room: Room
) -> None:
    script = (
        'for one in "$0" "$@"; do echo "[$one]"; done; id; pwd; env; cat /etc/resolv.conf; '
        "hostname; httpd -p 8080 -h /www; trap 'echo caught; exit 7' USR1; "
        "while :; do sleep 0.1; done"
    )
    guest = GuestConfig(
        hostname="web-1",
        argv=("sh", "-c", script, "a b", "", 'c"$x', "ü"),
        env=(("GREETING", "hello  world"), ("EMPTY", "")),
        user="app",
        workdir="/srv/made here",
        stop_signal="SIGUSR1",
        network=GuestNetwork(nameservers=("192.0.2.53",)),
    )
    first = await boot(driver, room, guest)
    assert_jailed(first.evidence.pid)
    assert first.evidence.pid in room.processes()
    assert await get_page("/index.html") == "it works\n"
    await first.close()

    adopted = await new_driver().adopt(first.evidence)
    assert adopted is not None
    async with asyncio.timeout(BOOT_SECONDS):
        await adopted.wait_ready()
    await adopted.pause()
    await adopted.resume()
    assert (await adopted.block_counters()).read_bytes > 0
    assert await get_page("/index.html") == "it works\n"
    lines = adopted.console_path.read_text().splitlines()
    assert lines[:4] == ["[a b]", "[]", '[c"$x]', "[ü]"]
    assert "uid=1000(app) gid=1001(app) groups=1001(app),2000(extra)" in lines
    environment = {line for line in lines if "=" in line and not line.startswith("uid=")}
    assert environment - {"SHLVL=1", "PWD=/srv/made here"} == {
        "GREETING=hello  world",
        "EMPTY=",
        "HOME=/srv/app",
        "HOSTNAME=web-1",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }
    assert {"/srv/made here", "nameserver 192.0.2.53", "web-1"} <= set(lines)

    await adopted.shutdown()
    async with asyncio.timeout(BOOT_SECONDS):
        report = await adopted.wait()
    await adopted.close()
    assert (report.kind, report.workload_status) == (ExitKind.WORKLOAD, 7)
    assert report.sentence == "The workload ended with status 7."
    assert "caught" in report.console_tail
    assert await driver.adopt(first.evidence) is None


async def test_an_ext4_root_and_a_user_without_a_name(
    tmp_path: Path, guest: Guest, new_driver: Callable[[], QemuDriver]
) -> None:
    script = "(sleep 0.2 &) ; id; echo written >/etc/new; cat /etc/new; sleep 0.4; kill -9 $$"
    config = GuestConfig(hostname="gone", argv=("/bin/sh", "-c", script), user="0:5678", workdir="")
    with make_room(tmp_path, guest, make_rootfs(tmp_path, "ext4")) as room:
        driver = new_driver()
        handle = await driver.create(replace(room.spec(config), vcpus=2))
        await handle.boot()
        await handle.close()
        await until(lambda: room.processes() == [])
        report = await driver.post_mortem(handle.evidence)
        await driver.destroy(room.jail_dir, handle.evidence)
    assert (report.kind, report.workload_status) == (ExitKind.WORKLOAD, 128 + 9)
    assert report.sentence == "The workload was ended by signal 9."
    assert {"uid=0(root) gid=5678 groups=5678", "written"} <= set(report.console_tail)


async def test_a_workload_that_ignores_its_stop_signal_is_killed_after_the_grace(
    driver: QemuDriver, room: Room
) -> None:
    script = "trap '' TERM; echo armed; while :; do sleep 0.1; done"
    guest = GuestConfig(hostname="deaf", argv=("sh", "-c", script), stop_grace_seconds=0.4)
    handle = await boot(driver, room, guest)
    await until(lambda: "armed" in handle.console_path.read_text())
    await handle.shutdown()
    async with asyncio.timeout(BOOT_SECONDS):
        report = await handle.wait()
    await handle.close()
    assert (report.kind, report.workload_status) == (ExitKind.WORKLOAD, 128 + 9)


@pytest.mark.parametrize(
    ("argv", "user", "sentence"),
    [
        (
            ("/app/nothing",),
            "",
            'The entrypoint "/app/nothing" does not exist in the image.',
        ),
        (
            ("/app/loop",),
            "",
            (
                'The entrypoint "/app/loop" needs an interpreter or a dynamic loader that the '
                "image does not contain."
            ),
        ),
        (("sh",), "nobody", 'The image\'s user "nobody" is not in its /etc/passwd.'),
    ],
)
async def test_a_workload_that_cannot_be_started_is_explained(
    driver: QemuDriver, room: Room, argv: tuple[str, ...], user: str, sentence: str
) -> None:
    handle = await driver.create(room.spec(GuestConfig(hostname="h", argv=argv, user=user)))
    await handle.boot()
    with pytest.raises(GuestEndedError) as caught:
        async with asyncio.timeout(BOOT_SECONDS):
            await handle.wait_ready()
    await handle.close()
    assert caught.value.sentence == sentence
    assert not caught.value.report.clean
    assert f"ironworks: failed: {sentence}" in caught.value.console_tail


async def test_a_qemu_that_is_killed_is_reported_as_crashed(driver: QemuDriver, room: Room) -> None:
    handle = await driver.create(room.spec(GuestConfig(hostname="h", argv=("sh",))))
    os.kill(handle.evidence.pid, signal.SIGKILL)
    report = await handle.wait()
    assert (report.kind, report.vmm_status) == (ExitKind.CRASHED, -signal.SIGKILL)
    assert "SIGKILL" in report.sentence
    await handle.kill()
    await handle.close()


async def test_killing_leaves_no_process(driver: QemuDriver, room: Room) -> None:
    handle = await driver.create(room.spec(GuestConfig(hostname="h", argv=("sh",))))
    assert len(room.processes()) == 3
    await handle.kill()
    assert room.processes() == []
    assert (await handle.wait()).kind is ExitKind.KILLED
    await handle.close()


@pytest.mark.parametrize("watched", [True, False])
async def test_a_vm_that_lost_its_keeper_is_ended(
    driver: QemuDriver, room: Room, *, watched: bool
) -> None:
    handle = await driver.create(room.spec(GuestConfig(hostname="h", argv=("sh",))))
    if not watched:
        await handle.close()
    os.kill(int(handle.evidence.details["keeper_pid"]), signal.SIGKILL)
    if watched:
        assert (await handle.wait()).kind is ExitKind.CRASHED
        await handle.close()
    else:
        await until(lambda: len(room.processes()) == 2)
        assert await driver.adopt(handle.evidence) is None
    await until(lambda: room.processes() == [])


class Raises:
    """Fails one step."""

    def __init__(self, step: Step) -> None:
        self.step = step

    async def reach(self, step: Step, vm_id: str) -> None:
        if step is self.step:
            raise DriverError(step, "made to fail")


@pytest.mark.parametrize(
    "step", [Step.JAIL_PREPARE, Step.VMM_CONFIGURE, Step.VMM_SPAWN, Step.VMM_CONNECT]
)
async def test_a_step_that_fails_leaves_nothing(driver: QemuDriver, room: Room, step: Step) -> None:
    failing = make_driver(room.jail_dir.parent, Raises(step))
    with pytest.raises(DriverError, match="made to fail"):
        await failing.create(room.spec(GuestConfig(hostname="h", argv=("sh",))))
    assert room.processes() == []
    assert len(list(room.jail_dir.iterdir())) == 3


async def test_a_qemu_that_cannot_start_says_why(driver: QemuDriver, room: Room) -> None:
    spec = room.spec(GuestConfig(hostname="h", argv=("sh",)))
    spec.rootfs_path.chmod(0o400)
    with pytest.raises(DriverError) as caught:
        await driver.create(spec)
    assert "Could not open '/vm/rootfs': Permission denied" in caught.value.sentence
    with pytest.raises(DriverError, match=r"network namespace .* cannot be joined"):
        await driver.create(replace(spec, netns="iwtest-none"))
    assert room.processes() == []


async def test_a_disk_of_its_own_outlives_a_reboot_and_ipv6_is_up(
    driver: QemuDriver, room: Room
) -> None:
    script = "cat /etc/kept; echo kept >/etc/kept; cat /proc/net/if_inet6; cat /etc/hosts; sync"
    network = GuestNetwork(address_v6="fd00::2", prefix_length_v6=126, gateway_v6="fd00::1")
    guest = GuestConfig(hostname="h", argv=("sh", "-c", script), network=network)
    limits = RateLimits(disk_bytes=64 * MIB, disk_operations=5000)
    spec = replace(room.spec(guest), scratch_bytes=64 * MIB, rate_limits=limits)
    handle = await driver.create(spec)
    for again in (False, True):
        await handle.boot()
        async with asyncio.timeout(BOOT_SECONDS):
            report = await handle.wait()
        await handle.close()
        assert (report.kind, report.workload_status) == (ExitKind.WORKLOAD, 0)
        assert ("kept" in report.console_tail) is again
        assert any(
            line.startswith("fd000000000000000000000000000002") for line in report.console_tail
        )
        assert "fd00::2\th" in handle.console_path.read_text()
        if not again:
            handle = await driver.reboot(spec, handle.evidence)
    await driver.destroy(room.jail_dir, handle.evidence)
