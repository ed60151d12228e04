"""A program in the place of QEMU attacks from inside the very jail that QEMU would be in.

The driver's own command line is used, with another program at its end: the same keeper, cgroup,
namespaces, user, limits, filter and descriptors. Each attack prints what it has reached; a jail
that holds prints `held` and nothing else. A victim in a jail of its own watches.
"""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ironworks.metald.cgroup.groups import GroupLimits, HostGroups
from ironworks.metald.drivers.driver import Accel, GuestConfig, VmmSpec
from ironworks.metald.drivers.kept import end_all
from ironworks.metald.drivers.qemu import driver as qemu
from ironworks.metald.drivers.qemu.argv import Machine, MachineSpec
from ironworks.metald.drivers.qemu.files import VmFiles
from ironworks.metald.drivers.qemu.probe import Finding
from ironworks.metald.guest.build import DEFAULT_DIR
from ironworks.metald.jail.keeper import build_keeper
from ironworks.metald.jail_directories import JailDirectories
from ironworks.metald.network import naming
from ironworks.metald.network.naming import first_slot
from ironworks.metald.network.plan import Plan
from ironworks.metald.network.slots import HostNetwork
from ironworks.model.ids import derived_id
from ironworks.model.units import MIB
from ironworks.runtime.cgroup_layout import read_layout
from ironworks.runtime.clock import SystemClock
from ironworks.runtime.settings import tag_of

pytestmark = pytest.mark.root
UID = 1_900_300
PIDS = 64
CONSOLE_BYTES = 64 * 1024
FINDING = Finding(machine=Machine.Q35, accel=Accel.TCG, version="7", sentence="")
VICTIM = "import time\nwhile True:\n    print('alive', flush=True)\n    time.sleep(0.02)\n"
PRELUDE = """
import ctypes, errno, fcntl, os, resource, signal, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
reached = []
def attack(what, work):
    try:
        answer = work()
    except (OSError, ValueError, PermissionError) as error:
        return
    if answer is not False:
        reached.append(f"{what}: {answer!r}"[:200])
def call(number, *arguments):
    if libc.syscall(number, *arguments) == -1:
        raise OSError(ctypes.get_errno(), "refused")
"""
VERDICT = """
print("\\n".join(reached) or "held", flush=True)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A jail with a program in the place of the VMM."""

    spec: VmmSpec
    files: VmFiles
    groups: HostGroups
    keeper_pid: int

    @property
    def console(self) -> str:
        return self.files.console.read_text(errors="replace")

    def pids(self) -> list[int]:
        """Processes of the cgroup, the keeper's apart."""
        text = self.spec.cgroup_join_paths[0].read_text()
        return [int(pid) for pid in text.split() if int(pid) != self.keeper_pid]

    def program(self) -> int:
        """The program in the VMM's place, seen from the host."""
        return next(pid for pid in self.pids() if b"bwrap" not in command_of(pid))

    async def end(self) -> int:
        """Wait for the program's end; its exit status."""
        async with asyncio.timeout(60):
            _, status = await asyncio.to_thread(os.waitpid, self.keeper_pid, 0)
        return os.waitstatus_to_exitcode(status)


def command_of(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
    return b""


class Prison:
    """Makes cells."""

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self._patch = patch
        self._tag = tag_of(directory)
        self.network = HostNetwork(self._tag)
        self.groups = HostGroups(read_layout(), self._tag, SystemClock())
        self.jails = JailDirectories(directory / "jails", directory / "consoles", MIB)
        self.cells: list[Cell] = []

    async def cell(self, name: str, code: str) -> Cell:
        """Run Python code in the jail of a VM of its own."""
        vm_id, number = derived_id("vm", name), len(self.cells)
        uid = UID + number
        slot = first_slot(self._tag) + number
        names = await self.network.create(slot, uid, Plan(tenant_id=name))
        limits = GroupLimits(memory_bytes=96 * MIB, cpus=1, cpu_weight=100, pids=PIDS)
        group = await self.groups.create(vm_id, limits)
        jail = await self.jails.create(vm_id, uid)
        for asset in ("kernel", "initrd", "rootfs"):
            (jail / asset).write_text(f"{name}'s {asset}")
        spec = VmmSpec(
            vm_id=vm_id,
            vcpus=1,
            memory_bytes=64 * MIB,
            kernel_path=jail / "kernel",
            initrd_path=jail / "initrd",
            rootfs_path=jail / "rootfs",
            rootfs_format="squashfs",
            guest=GuestConfig(hostname=name, argv=("/x",)),
            jail_dir=jail,
            uid=uid,
            gid=uid,
            netns=names.netns,
            tap=naming.TAP,
            mac=naming.GUEST_MAC,
            cgroup_join_paths=group.join_paths,
            pids_max=PIDS,
            console_max_bytes=CONSOLE_BYTES,
        )
        files = VmFiles(jail)
        files.write_config(spec)
        argv = ["/usr/bin/python3", "-I", "-c", code]

        def in_its_place(machine: MachineSpec) -> list[str]:
            del machine
            return argv

        self._patch.setattr(qemu, "qemu_argv", in_its_place)
        keeper = await build_keeper(DEFAULT_DIR)
        spawned = qemu._spawn(spec, files, keeper, FINDING)  # pyright: ignore[reportPrivateUsage] - the driver's very own jail
        spawned.process.close()
        made = Cell(spec=spec, files=files, groups=self.groups, keeper_pid=spawned.process.pid)
        self.cells.append(made)
        return made

    async def attack(self, code: str) -> str:
        """What an attacker's program has reached."""
        cell = await self.cell("attacker", PRELUDE + code + VERDICT)
        await cell.end()
        return cell.console.strip() or cell.files.errors.read_text()[-2000:]

    async def close(self) -> None:
        """Take everything away."""
        for cell in self.cells:
            await end_all(cell.files.console, None)
            await self.groups.remove(cell.spec.vm_id)
            await self.jails.remove(cell.spec.vm_id)
        for slot in await self.network.present():
            await self.network.remove(slot)
        await self.network.drain()


@pytest.fixture
async def prison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Prison]:
    tmp_path.chmod(0o755)
    prison = Prison(tmp_path, monkeypatch)
    yield prison
    await prison.close()


async def lives(cell: Cell) -> bool:
    """Whether a victim goes on printing."""
    before: int | None = None
    for _ in range(400):
        with contextlib.suppress(FileNotFoundError):
            size = cell.files.console.stat().st_size
            if before is not None and size != before:
                return True
            before = size
        await asyncio.sleep(0.05)
    return False


FILES = """
for path in {paths!r}:
    attack("opened " + path, lambda: os.close(os.open(path, os.O_RDONLY)))
    attack("listed " + path, lambda: os.listdir(path))
    attack("wrote " + path, lambda: os.close(os.open(path + "/x", os.O_CREAT | os.O_WRONLY)))
for root, directories, names in os.walk("/"):
    if root.startswith("/usr"):
        continue
    for name in names:
        path = os.path.join(root, name)
        attack("changed " + path, lambda: os.close(os.open(path, os.O_WRONLY)))
    attack("wrote in " + root, lambda: os.close(os.open(root + "/x", os.O_CREAT | os.O_WRONLY)))
seen = set(os.listdir("/")) - {{"bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "vm"}}
attack("saw", lambda: seen or False)
files = set(os.listdir("/vm")) - {{"kernel", "initrd", "rootfs", "config"}}
attack("saw others' files", lambda: files or False)
attack("opened a device", lambda: os.mknod("/vm/mem", 0o20600, os.makedev(1, 1)))
"""
SOCKETS = """
for path in {paths!r}:
    one = socket.socket(socket.AF_UNIX)
    attack("connected " + path, lambda: one.connect(path))
one = socket.socket(socket.AF_UNIX)
attack("connected to an abstract socket", lambda: one.connect({abstract!r}))
for kind in (socket.SOCK_STREAM,):
    for port in {ports!r}:
        for address in ("127.0.0.1", "172.16.0.1", "198.18.0.1"):
            one = socket.socket(socket.AF_INET, kind)
            one.settimeout(0.3)
            attack(f"connected {{address}}:{{port}}", lambda: one.connect((address, port)))
"""
PROCESSES = """
attack("saw processes", lambda: os.listdir("/proc"))
attack("is not alone", lambda: os.getpid() != 1 and os.getpid())
for pid in {pids!r}:
    attack(f"signalled {{pid}}", lambda: os.kill(pid, signal.SIGKILL))
    attack(f"traced {{pid}}", lambda: call(101, 16, pid, 0, 0))
    attack(f"read memory of {{pid}}", lambda: call(310, pid, 0, 0, 0, 0, 0))
    attack(f"limited {{pid}}", lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE, (9, 9)))
attack("signalled all", lambda: os.kill(-1, signal.SIGKILL))
"""
NETWORK = """
attack("opened tun", lambda: os.open("/dev/net/tun", os.O_RDWR))
for name in (b"iwtap0", b"iwtap1", b"iwveth0"):
    request = struct.pack("16sH22x", name, 0x1002)
    attack(f"took {name}", lambda: fcntl.ioctl(10, 0x400454CA, request))
attack("packet socket", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x0300))
attack("raw socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
message = struct.pack("=IHHIIBBHiII", 32, 16, 5, 1, 0, 0, 0, 0, 2, 0, 1)
def lower():
    link.send(message)
    return struct.unpack_from("=i", link.recv(4096), 16)[0] == 0 or False
attack("changed a link", lower)
attack("spoke to nftables", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12).sendto(
    struct.pack("=IHHII", 20, 0x0A00, 5, 1, 0) + bytes(4), (0, 0)) and False)
"""
PRIVILEGES = """
attack("became root", lambda: os.setuid(0))
attack("became another", lambda: os.setresuid({victim}, {victim}, {victim}))
attack("joined a group", lambda: os.setgroups([0]))
attack("may gain privileges", lambda: libc.prctl(39, 0, 0, 0, 0) == 0 and "no_new_privs is off")
held = [number for number in range(41) if libc.prctl(23, number, 0, 0, 0) == 1]
attack("has capabilities", lambda: held or False)
for program in (["su", "-s", "/bin/sh", "-c", "exit 0"], ["mount", "--bind", "/usr", "/vm"],
                ["newgrp", "root"], ["umount", "/usr"]):
    child = os.fork()
    if child == 0:
        os.execv("/usr/bin/" + program[0], program)
    status = os.waitpid(child, 0)[1]
    attack("used " + program[0], lambda: status == 0 and "as root")
attack("is somebody else", lambda: (os.getresuid() != ({own},) * 3) and os.getresuid())
"""
LIMITS = """
for name in ("CORE", "NOFILE", "NPROC", "MEMLOCK", "MSGQUEUE", "RTPRIO", "NICE"):
    number = getattr(resource, "RLIMIT_" + name)
    _, hard = resource.getrlimit(number)
    attack("no limit of " + name, lambda: hard == resource.RLIM_INFINITY and hard)
    attack("raised " + name, lambda: resource.setrlimit(number, (hard + 1, hard + 1)))
attack("made itself more important", lambda: os.setpriority(0, 0, -5))
attack("real time", lambda: os.sched_setscheduler(0, 1, os.sched_param(1)))
for path in ("/sys/fs/cgroup", "/proc/self/cgroup"):
    attack("saw " + path, lambda: os.stat(path))
attack("left its cgroup namespace", lambda: call(272, 0x02000000))
attack("mounted cgroups", lambda: call(165, b"none", b"/vm", b"cgroup2", 0, 0))
"""
KERNEL = """
for flag in (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
    attack(f"made a namespace {flag:#x}", lambda: call(272, flag))
for name, number in (("mount", 165), ("pivot_root", 155), ("bpf", 321), ("io_uring", 425),
                     ("keyctl", 250), ("open_by_handle_at", 304), ("userfaultfd", 323),
                     ("perf_event_open", 298), ("init_module", 175), ("kexec_load", 246),
                     ("reboot", 169), ("sethostname", 170), ("clock_settime", 227)):
    ctypes.set_errno(0)
    libc.syscall(number, 0, 0, 0, 0, 0, 0)
    attack("called " + name, lambda: ctypes.get_errno() != errno.EPERM and ctypes.get_errno())
"""
BOMB = """
import os, time
while True:
    try:
        os.fork()
    except OSError:
        time.sleep(0.01)
"""
FLOOD = """
import os
for _ in range(2000):
    os.write(1, b"x" * 4096)
    os.write(2, b"y" * 4096)
"""
DESCRIPTORS = """
def kinds():
    found = []
    for number in range(3, 256):
        try:
            fcntl.fcntl(number, fcntl.F_GETFD)
        except OSError:
            continue
        if number not in (10, 11, 12):
            found.append(number)
    return found or False
attack("inherited", kinds)
"""


async def test_the_hosts_files_and_another_vms_cannot_be_seen_or_changed(prison: Prison) -> None:
    victim = await prison.cell("victim", VICTIM)
    paths = [
        *("/etc/shadow", "/etc/passwd", "/root", "/home", "/var/lib", "/tmp", "/run", "/proc/1"),
        *("/sys/kernel", "/dev/mem", "/dev/vda", "/dev/kvm", "/usr/../etc/shadow", "/vm/../root"),
        *(str(prison.directory), str(victim.spec.jail_dir), str(victim.files.config)),
    ]
    assert await prison.attack(FILES.format(paths=paths)) == "held"
    assert await lives(victim)


async def test_sockets_of_the_host_and_of_another_vm_cannot_be_reached(prison: Prison) -> None:
    victim = await prison.cell("victim", VICTIM)
    with socket.socket(socket.AF_UNIX) as abstract, socket.create_server(("", 0)) as service:
        abstract.bind("\0ironworks-host-service")
        abstract.listen()
        paths = [str(victim.files.qmp), str(victim.files.control), "/run/dbus/system_bus_socket"]
        code = SOCKETS.format(
            paths=paths,
            abstract="\0ironworks-host-service",
            ports=[22, service.getsockname()[1]],
        )
        assert await prison.attack(code) == "held"
    assert await lives(victim)


async def test_no_other_process_can_be_seen_signalled_or_traced(prison: Prison) -> None:
    victim = await prison.cell("victim", VICTIM)
    assert await lives(victim)
    pids = [victim.keeper_pid, *victim.pids(), os.getpid(), 2]
    assert await prison.attack(PROCESSES.format(pids=[pid for pid in pids if pid != 1])) == "held"
    assert await lives(victim)


async def test_no_tap_link_or_firewall_can_be_touched_but_its_own_open_tap(
    prison: Prison,
) -> None:
    assert await prison.attack(NETWORK) == "held"


async def test_setuid_programs_and_changing_users_give_nothing(prison: Prison) -> None:
    victim = await prison.cell("victim", VICTIM)
    code = PRIVILEGES.format(victim=victim.spec.uid, own=UID + 1)
    assert await prison.attack(code) == "held"


async def test_limits_cannot_be_raised_and_the_cgroup_not_left(prison: Prison) -> None:
    assert await prison.attack(LIMITS) == "held"


async def test_system_calls_that_exploits_begin_with_are_refused(prison: Prison) -> None:
    assert await prison.attack(KERNEL) == "held"


async def test_nothing_of_metald_is_inherited_but_the_vms_own_tap_and_sockets(
    prison: Prison,
) -> None:
    assert await prison.attack(DESCRIPTORS) == "held"


async def test_a_fork_bomb_stays_in_its_jail(prison: Prison) -> None:
    victim = await prison.cell("victim", VICTIM)
    cell = await prison.cell("bomb", BOMB)
    for _ in range(400):
        if len(cell.pids()) >= PIDS - 2:
            break
        await asyncio.sleep(0.02)
    most = max([len(cell.pids()) for _ in range(20)])
    assert PIDS // 2 < most <= PIDS
    assert await lives(victim)
    assert await asyncio.create_subprocess_exec("/bin/true")


async def test_memory_pressure_kills_in_its_jail_only(prison: Prison) -> None:
    victim = await prison.cell("victim", VICTIM)
    eater = "held = []\nwhile True:\n    held.append(bytearray(b'x' * (1 << 20)))\n"
    cell = await prison.cell("eater", eater)
    assert await cell.end() != 0
    assert prison.groups.oom_kills(cell.spec.vm_id) >= 1
    assert prison.groups.oom_kills(victim.spec.vm_id) == 0
    assert await lives(victim)


async def test_a_file_in_memory_is_memory_of_its_jail(prison: Prison) -> None:
    code = "import os\nfd = os.memfd_create('x')\nwhile True:\n    os.write(fd, bytes(1 << 20))\n"
    cell = await prison.cell("eater", code)
    assert await cell.end() != 0
    assert prison.groups.oom_kills(cell.spec.vm_id) >= 1


async def test_a_flood_fills_no_disk(prison: Prison) -> None:
    cell = await prison.cell("flood", FLOOD)
    assert await cell.end() == 0
    kept = sum(path.lstat().st_size for path in cell.spec.jail_dir.iterdir())
    assert kept < 4 * CONSOLE_BYTES


async def test_the_program_is_in_namespaces_of_its_own_without_any_privilege(
    prison: Prison,
) -> None:
    one, two = await prison.cell("one", VICTIM), await prison.cell("two", VICTIM)
    assert await lives(one)
    assert await lives(two)
    for kind in ("mnt", "pid", "ipc", "uts", "net", "cgroup"):
        pids = (one.program(), two.program(), os.getpid())
        spaces = {Path(f"/proc/{pid}/ns/{kind}").readlink() for pid in pids}
        assert len(spaces) == 3, kind
    for cell in (one, two):
        status = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{cell.program()}/status").read_text().splitlines()
            if ":\t" in line
        )
        assert set(status["Uid"].split()) == {str(cell.spec.uid)}
        assert set(status["Gid"].split()) == {str(cell.spec.gid)}
        for field in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[field], 16) == 0, field
        assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
        cgroups = Path(f"/proc/{cell.program()}/cgroup").read_text()
        assert cell.spec.vm_id in cgroups
        os.kill(cell.keeper_pid, signal.SIGKILL)
