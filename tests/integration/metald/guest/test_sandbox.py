"""The guest's init alone, in namespaces instead of a VM: the real program, from its first mount on.

It is process 1 of a sandbox that looks like a machine: a terminal for a console, another for the
control channel, `sandbox.c` for what takes real disks. It may set no clock and load no module.
"""

import asyncio
import contextlib
import os
import shutil
import subprocess
import tty
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ironworks.metald.drivers.driver import GuestConfig, GuestNetwork
from ironworks.metald.guest.build import default_source_dir
from ironworks.metald.guest.config import Control, PowerOff, config_disk
from ironworks.testkit.rooms import make_tree

pytestmark = pytest.mark.root
SECONDS = 20.0
NETWORK = GuestNetwork(
    nameservers=("192.0.2.53",), address_v6="fd00::2", prefix_length_v6=64, gateway_v6="fd00::1"
)
GUEST = GuestConfig(hostname="box", argv=("/bin/sh", "-c", "exit 0"), network=NETWORK)
SHOW = 'for one in "$0" "$@"; do echo "[$one]"; done; id; pwd; env'
# In namespaces of its own only: `$$` says so. There a power-off ends nothing but the sandbox.
_LAUNCH = """
set -e
[ $$ = 1 ] && [ "$(readlink /proc/self/ns/pid)" != "$1" ]
mount --make-rprivate / && cd "$2"
mount -t tmpfs none dev && mount -t tmpfs none sys
mknod -m 666 dev/null c 1 3 && mknod -m 666 dev/zero c 1 5 && mknod -m 666 dev/tty c 5 0
touch dev/console dev/vport0p1 dev/vda && cp config dev/vdb
mount --bind "$3" dev/console && mount --bind "$4" dev/vport0p1
mkdir -p sys/block/vda sys/block/vdb sys/fs/cgroup
mkdir -p sys/class/net/eth0 sys/class/virtio-ports/vport0p1
echo rootfs >sys/block/vda/serial && echo config >sys/block/vdb/serial
echo org.ironworks.control >sys/class/virtio-ports/vport0p1/name
ip tuntap add eth0 mode tap
exec setpriv --bounding-set=-sys_time,-sys_module --inh-caps=-sys_time,-sys_module chroot . /init
"""


@pytest.fixture(scope="session")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("init") / "init"
    sources = [*default_source_dir().glob("*.c"), Path(__file__).with_name("sandbox.c")]
    flags = ("-static", "-s", "-Os", "-std=gnu11", "-D_GNU_SOURCE", "-Wl,--wrap=mount")
    subprocess.run(["musl-gcc", *flags, "-o", program, *sources], check=True)
    return program


class Terminal:
    """A terminal of which the sandbox has one end."""

    def __init__(self) -> None:
        self._ours, theirs = os.openpty()
        tty.setraw(theirs)
        self.path = os.ttyname(theirs)
        self._theirs = theirs
        self.text = ""

    def read(self) -> str:
        """All that was said so far."""
        os.set_blocking(self._ours, False)
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._ours, 65536):
                self.text += data.decode(errors="replace")
        return self.text

    def say(self, line: str) -> None:
        os.write(self._ours, line.encode() + b"\n")

    async def until(self, words: str) -> str:
        """What was said, once it has these words."""
        async with asyncio.timeout(SECONDS):
            while words not in self.read():  # noqa: ASYNC110 - another process makes it so
                await asyncio.sleep(0.01)
        return self.text

    def close(self) -> None:
        os.close(self._ours)
        os.close(self._theirs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """An init that runs."""

    process: asyncio.subprocess.Process
    console: Terminal
    control: Terminal

    async def end(self) -> tuple[int, str, str]:
        """Status of the sandbox, what was on the console, what was told the host."""
        async with asyncio.timeout(SECONDS):
            await self.process.wait()
        return self.process.returncode or 0, self.console.read(), self.control.read()


class Sandboxes:
    """Makes them."""

    def __init__(self, directory: Path, init: Path) -> None:
        self._root = directory / "root"
        for name in ("dev", "sys", "proc"):
            (self._root / name).mkdir(parents=True)
        make_tree(self._root / "image")
        shutil.copy(init, self._root / "init")
        (self._root / "modules.list").write_text("")
        self.made: list[Sandbox] = []

    async def start(
        self, guest: GuestConfig, power_off: PowerOff = PowerOff.ACPI, *, control: bool = True
    ) -> Sandbox:
        channel = Control.VIRTIO_SERIAL if control else Control.NONE
        disk = config_disk(guest, root_format="squashfs", control=channel, power_off=power_off)
        (self._root / "config").write_bytes(disk)
        console, port = Terminal(), Terminal()
        own = str(Path("/proc/self/ns/pid").readlink())
        process = await asyncio.create_subprocess_exec(
            *("unshare", "-m", "-p", "-f", "-u", "-i", "-n", "-C", "--kill-child"),
            *("/bin/sh", "-c", _LAUNCH, "sh", own, self._root, console.path, port.path),
        )
        self.made.append(Sandbox(process=process, console=console, control=port))
        return self.made[-1]

    async def run(self, script: str, **changes: object) -> tuple[int, str, str]:
        """Have a shell run a script to its end."""
        guest = replace(GUEST, argv=("/bin/sh", "-c", script), **changes)  # pyright: ignore[reportArgumentType] - fields of GuestConfig
        return await (await self.start(guest)).end()

    async def close(self) -> None:
        for one in self.made:
            if one.process.returncode is None:
                one.process.kill()
                await one.process.wait()
            one.console.close()
            one.control.close()


@pytest.fixture
async def sandboxes(tmp_path: Path, init: Path) -> AsyncGenerator[Sandboxes]:
    made = Sandboxes(tmp_path, init)
    yield made
    await made.close()


async def test_the_workload_finds_what_an_image_expects(sandboxes: Sandboxes) -> None:
    script = (
        "cat /proc/mounts; hostname; cat /etc/hostname /etc/resolv.conf /etc/hosts;"
        " cat /proc/net/if_inet6; ip addr show dev eth0; echo new >/etc/new && cat /etc/new;"
        " ls -ld /dev/shm /tmp; readlink /dev/fd"
    )
    _, said, told = await sandboxes.run(script)
    mounts = {tuple(line.split()[1:3]) for line in said.splitlines() if line.count(" ") == 5}
    assert {
        ("/", "overlay"),
        ("/proc", "proc"),
        ("/dev/pts", "devpts"),
        ("/dev/shm", "tmpfs"),
        ("/sys/fs/cgroup", "cgroup2"),
    } <= mounts
    assert {"box", "nameserver 192.0.2.53", "fd00::2\tbox", "172.16.0.2\tbox", "new"} <= set(
        said.splitlines()
    )
    assert "inet 172.16.0.2/30" in said
    assert "fd000000000000000000000000000002" in said
    assert said.count("drwxrwxrwt") == 2
    assert "/proc/self/fd" in said
    assert told.splitlines() == ["ready", "exited 0"]


async def test_arguments_environment_user_and_directory_are_as_the_image_says(
    sandboxes: Sandboxes,
) -> None:
    guest = replace(
        GUEST,
        argv=(
            "sh",
            "-c",
            'for one in "$0" "$@"; do echo "[$one]"; done; id; pwd; env',
            "a b",
            "",
            "ü",
        ),
        env=(("ONE", "first"), ("TWO", "a  b"), ("EMPTY", "")),
        user="app",
        workdir="/srv/made here",
    )
    _, said, _ = await (await sandboxes.start(guest)).end()
    lines = said.splitlines()
    assert lines[:3] == ["[a b]", "[]", "[ü]"]
    assert "uid=1000(app) gid=1001(app) groups=1001(app),2000(extra)" in lines
    assert {"/srv/made here", "ONE=first", "TWO=a  b", "EMPTY=", "HOME=/srv/app"} <= set(lines)


@pytest.mark.parametrize(
    ("script", "word"), [("exit 3", "exited 3"), ("kill -9 $$", "signal 9"), ("exit 0", "exited 0")]
)
async def test_the_end_is_told_on_both_ways(sandboxes: Sandboxes, script: str, word: str) -> None:
    _, said, told = await sandboxes.run(script)
    assert f"ironworks: {word}" in said
    assert told.splitlines() == ["ready", word]


@pytest.mark.parametrize(("power_off", "status"), [(PowerOff.ACPI, 2), (PowerOff.REBOOT, 1)])
async def test_the_machine_is_ended_as_its_driver_needs_it(
    sandboxes: Sandboxes, power_off: PowerOff, status: int
) -> None:
    # A namespace's power-off ends its process 1 by SIGINT, a reboot by SIGHUP.
    ended, _, _ = await (await sandboxes.start(GUEST, power_off)).end()
    assert ended in {-status, 128 + status}


async def test_orphans_are_reaped_and_signals_reach_the_workload(sandboxes: Sandboxes) -> None:
    script = (
        "trap 'echo caught; exit 5' USR1; for i in 1 2 3; do (sleep 0.05 &) ; done; sleep 0.3;"
        " grep -c zombie /proc/[0-9]*/status; echo armed; while :; do sleep 0.05; done"
    )
    guest = replace(GUEST, argv=("/bin/sh", "-c", script), stop_signal="SIGUSR1")
    sandbox = await sandboxes.start(guest)
    said = await sandbox.console.until("armed")
    assert all(line.endswith(":0") for line in said.splitlines() if "/status" in line)
    sandbox.control.say("stop")
    _, said, told = await sandbox.end()
    assert "caught" in said
    assert told.splitlines() == ["ready", "exited 5"]


async def test_one_that_ignores_its_signal_is_killed_after_the_grace(sandboxes: Sandboxes) -> None:
    script = "trap '' TERM; echo armed; while :; do sleep 0.05; done"
    guest = replace(GUEST, argv=("/bin/sh", "-c", script), stop_grace_seconds=0.2)
    sandbox = await sandboxes.start(guest)
    await sandbox.console.until("armed")
    sandbox.control.say("stop")
    assert (await sandbox.end())[2].splitlines() == ["ready", "signal 9"]


async def test_the_host_is_answered_and_what_it_never_says_is_ignored(sandboxes: Sandboxes) -> None:
    script = "trap 'exit 0' TERM; while :; do sleep 0.05; done"
    sandbox = await sandboxes.start(replace(GUEST, argv=("/bin/sh", "-c", script)))
    await sandbox.control.until("ready")
    for line in ("nonsense", "stop never", "clock", "clock x", "x" * 5000, "clock 1", "memory"):
        sandbox.control.say(line)
    told = await sandbox.control.until("memory ")
    total, available = (int(word) for word in told.split("memory ")[1].split()[:2])
    assert 0 < available < total
    sandbox.control.say("stop")
    _, said, told = await sandbox.end()
    assert told.splitlines()[-1] == "exited 0"
    assert "the clock could not be set" in said, "it tried, and lives without"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"argv": ("/app/nothing",)}, 'The entrypoint "/app/nothing" does not exist in the image.'),
        ({"argv": ("nothing",)}, 'The entrypoint "nothing" is nowhere on the image\'s PATH.'),
        ({"user": "nobody"}, 'The image\'s user "nobody" is not in its /etc/passwd.'),
        ({"workdir": "/etc/passwd"}, 'The working directory "/etc/passwd" cannot be entered'),
    ],
)
async def test_what_cannot_be_started_is_said(
    sandboxes: Sandboxes, changes: dict[str, object], sentence: str
) -> None:
    guest = replace(GUEST, **changes)  # pyright: ignore[reportArgumentType] - fields of GuestConfig
    _, said, told = await (await sandboxes.start(guest)).end()
    assert f"ironworks: failed: {sentence}" in said
    assert f"failed {sentence}" in told


async def test_an_init_of_the_image_becomes_process_1(sandboxes: Sandboxes) -> None:
    sandbox = await sandboxes.start(replace(GUEST, argv=("--all", "of it"), image_init=True))
    await sandbox.console.until("process 1: /sbin/init --all of it")
    assert await sandbox.control.until("ready") == "ready\n"
