"""What metald makes around a VM before it calls a driver, made by hand for one test of a driver."""

import asyncio
import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from ironworks.builderd.flatten.plan import Layer, Limits, Plan
from ironworks.builderd.flatten.run import flatten
from ironworks.metald.drivers.driver import GuestConfig, VmmSpec
from ironworks.metald.guest.build import Guest
from ironworks.model.units import MIB

UID = 1_900_001
IMAGE_INIT = """#!/bin/sh
echo "process $$: $0 $*"
exec 3</dev/input/event0
echo waits
head -c 1 <&3 >/dev/null && echo the button was pressed
poweroff -f
"""
APPLETS = ("sh", "httpd", "cat", "id", "env", "sleep", "mount", "grep", "head", "hostname", "kill")
NETNS = "iwtest-qemu"
TAP = "iwtap0"
GATEWAY = "172.16.0.1"
GUEST = "172.16.0.2"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def make_tree(tree: Path, *, programs: tuple[Path, ...] = ()) -> None:
    """An image's files: busybox, two users, a page, an init, and `programs` in its /bin."""
    for name in ("bin", "sbin", "etc", "www", "app"):
        (tree / name).mkdir(parents=True)
    shutil.copy("/usr/bin/busybox", tree / "bin/busybox")
    for applet in APPLETS:
        (tree / "bin" / applet).symlink_to("busybox")
    for program in programs:
        shutil.copy(program, tree / "bin")
    (tree / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/srv/app:\n")
    (tree / "etc/group").write_text("root:x:0:\napp:x:1001:\nextra:x:2000:other,app\n")
    (tree / "etc/resolv.conf").symlink_to("../run/nowhere/resolv.conf")
    (tree / "www/index.html").write_text("it works\n")
    (tree / "app/loop").write_text("#!/lib/no-such-loader\n")
    (tree / "sbin/init").write_text(IMAGE_INIT)
    for name in ("app/loop", "sbin/init"):
        (tree / name).chmod(0o755)


def build_program(source: Path, directory: Path) -> Path:
    """Compile a file of C into a directory, static, so that it runs in any guest."""
    program = directory / source.stem
    flags = ("-static", "-s", "-Os", "-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror")
    subprocess.run(["musl-gcc", *flags, "-o", program, source], check=True)
    return program


def make_rootfs(
    directory: Path, file_system: str = "squashfs", *, programs: tuple[Path, ...] = ()
) -> Path:
    """A file system of `make_tree`; an ext4 is one that builderd has made of it as an image."""
    tree = directory / "tree"
    make_tree(tree, programs=programs)
    image = directory / f"rootfs.{file_system}"
    if file_system == "ext4":
        _build(tree, image)
        return image
    command = ["mksquashfs", str(tree), str(image), "-comp", "lz4", "-quiet", "-no-progress"]
    subprocess.run(command, check=True, capture_output=True)
    return image


def _build(tree: Path, image: Path) -> None:
    path = image.with_name("layer.tar")
    with tarfile.open(path, "w") as archive:
        archive.add(tree, arcname=".")
    digest = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    layer = Layer(path=str(path), digest=digest, size_bytes=path.stat().st_size, diff_id=digest)
    plan = Plan(
        layers=(layer,),
        output=str(image),
        scratch=str(image.parent),
        format="ext4",
        limits=Limits(free_bytes=0),
    )
    flatten(plan, lambda _: None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """A namespace with a tap, a cgroup, a directory."""

    jail_dir: Path
    cgroups: tuple[Path, ...]
    guest: Guest
    rootfs: Path

    def spec(self, guest: GuestConfig) -> VmmSpec:
        """A VM in this room that runs what `guest` says."""
        return VmmSpec(
            vm_id="vm_test",
            vcpus=1,
            memory_bytes=192 * MIB,
            kernel_path=self.jail_dir / self.guest.kernel.name,
            initrd_path=self.jail_dir / self.guest.initrd.name,
            rootfs_path=self.jail_dir / self.rootfs.name,
            rootfs_format=self.rootfs.suffix.removeprefix("."),
            guest=guest,
            jail_dir=self.jail_dir,
            uid=UID,
            gid=UID,
            netns=NETNS,
            tap=TAP,
            mac="02:00:00:00:00:01",
            cgroup_join_paths=tuple(path / "cgroup.procs" for path in self.cgroups),
            console_max_bytes=256 * 1024,
        )

    def processes(self) -> list[int]:
        """Pids in the VM's cgroup."""
        return [int(pid) for pid in (self.cgroups[0] / "cgroup.procs").read_text().split()]


def _cgroup_roots() -> list[Path]:
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        return [root]
    return [path for name in ("memory", "unified") if (path := root / name).is_dir()]


def _remove_cgroup(path: Path) -> None:
    for pid in (path / "cgroup.procs").read_text().split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    for _ in range(1000):
        try:
            path.rmdir()
        except OSError:
            os.sched_yield()
        else:
            return


@contextlib.contextmanager
def make_room(directory: Path, guest: Guest, rootfs: Path) -> Generator[Room]:
    """Make all that a driver expects; remove it whatever happens."""
    jail_dir = directory / "jail"
    jail_dir.mkdir(mode=0o750)
    os.chown(jail_dir, 0, UID)
    for source in (guest.kernel_path, guest.initrd_path, rootfs):
        target = jail_dir / source.name
        shutil.copy(source, target)
        target.chmod(0o444)
    cgroups = tuple(root / "ironworks-test-qemu" for root in _cgroup_roots())
    with contextlib.ExitStack() as undo:
        for path in cgroups:
            path.mkdir(exist_ok=True)
            undo.callback(_remove_cgroup, path)
        _ip("netns", "add", NETNS)
        undo.callback(_ip, "netns", "delete", NETNS)
        _ip("-n", NETNS, "tuntap", "add", TAP, "mode", "tap", "user", str(UID), "vnet_hdr")
        _ip("-n", NETNS, "addr", "add", f"{GATEWAY}/30", "dev", TAP)
        _ip("-n", NETNS, "link", "set", TAP, "up")
        yield Room(jail_dir=jail_dir, cgroups=cgroups, guest=guest, rootfs=rootfs)


_FETCH = """
import sys, urllib.request
sys.stdout.write(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())
"""


async def get_page(path: str) -> str:
    """Ask the guest's HTTP server from within its namespace, until it listens."""
    address = f"http://{GUEST}:8080{path}"
    for _ in range(20):
        process = await asyncio.create_subprocess_exec(
            *("ip", "netns", "exec", NETNS, "/usr/bin/python3", "-I", "-c", _FETCH, address),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
        if process.returncode == 0:
            return out.decode()
        await asyncio.sleep(0.1)
    return ""
