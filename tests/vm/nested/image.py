"""The root file system of the nested VM: this machine's programs, our environment, and the tree.

A squashfs, made in seconds by piping `tar` into `sqfstar`: the programs that the drivers run with
the libraries that they need, Python with the environment's packages, the repository, the built
guest, and kernel modules that a machine needs to run VMs of its own.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ironworks.metald.guest.build import Guest

PROGRAMS = (
    *("bash", "busybox", "bwrap", "cat", "chmod", "cp", "id", "ip", "kmod", "ls", "mke2fs"),
    *("mkdir", "mkfs.ext4", "mknod", "mksquashfs", "modprobe", "mount", "nft", "nsenter", "ps"),
    *("python3", "qemu-system-x86_64", "setpriv", "sh", "sleep", "taskset", "unshare"),
)
DIRECTORIES = (
    "/usr/lib/python3.11",
    "/usr/lib/x86_64-linux-gnu/qemu",
    "/usr/share/qemu",
    "/usr/share/seabios",
    "/etc/ssl",
    "/etc/protocols",
    "/etc/services",
    "/etc/nsswitch.conf",
)
"""Beside the programs; those that are missing are left out."""
MODULE_DIRECTORIES = (
    "arch/x86/kvm",
    "virt",
    "drivers/net",
    "net",
    "drivers/block",
    "lib",
    "crypto",
)
"""Of the kernel's modules, what a machine that runs VMs may ask for; the kernel loads it itself."""
MAX_PACKAGE_BYTES = 26 * 1024 * 1024
"""Packages that are larger (databases, checkers, data frames) are left at home."""
_KEPT_OF_TREE = ("src", "tests", "guest", "proto", "deploy", "pyproject.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What goes into the image.

    Attributes:
        repository: Root of the tree that is tested, at the same path in the VM.
        environment: Its virtual environment, likewise.
        guest: The guest that inner VMs boot.
        extra: Path in the image → file of this machine, for what is elsewhere here.
    """

    repository: Path
    environment: Path
    guest: Guest
    extra: dict[str, Path]


def _libraries(files: Iterable[Path]) -> set[Path]:
    """What the dynamic loader would load for these files."""
    done = subprocess.run(
        ["ldd", *map(str, files)], capture_output=True, text=True, check=False
    ).stdout
    found: set[Path] = set()
    for line in done.splitlines():
        words = line.replace("=>", " ").split()
        found.update(
            Path(os.path.normpath(word)) for word in words if word[0] == "/" and ":" not in word
        )
    return found


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(one.lstat().st_size for one in path.rglob("*"))


def _packages(environment: Path) -> list[Path]:
    site = next((environment / "lib").glob("python3*/site-packages"))
    return [path for path in sorted(site.iterdir()) if _size(path) <= MAX_PACKAGE_BYTES]


def _with_links(path: Path) -> list[Path]:
    """A path and, if it is a symbolic link, all that it leads through."""
    found = [path]
    while path.is_symlink():
        path = Path(os.path.normpath(path.parent / path.readlink()))
        found.append(path)
    return found


def _members(contents: Contents) -> list[Path]:
    programs = [Path(found) for name in PROGRAMS if (found := shutil.which(name))]
    programs.append(contents.environment / "bin/python")
    packages = _packages(contents.environment)
    shared = [one for path in packages for one in ([path] if path.is_file() else path.rglob("*"))]
    binaries = [path.resolve() for path in programs]
    shared += Path("/usr/lib/python3.11/lib-dynload").iterdir()
    libraries = _libraries([*binaries, *(one for one in shared if ".so" in one.name)])
    loaders = [Path("/lib64/ld-linux-x86-64.so.2")]
    members = [
        *(link for path in programs for link in _with_links(path)),
        *(link for path in (*libraries, *loaders) for link in _with_links(path)),
        *(Path(name) for name in DIRECTORIES if Path(name).exists()),
        *packages,
        contents.environment / "bin",
        contents.environment / "pyvenv.cfg",
        *(contents.repository / name for name in _KEPT_OF_TREE),
        contents.guest.directory,
        *contents.guest.directory.parent.glob("keeper-*"),
        *contents.guest.directory.parent.glob("firecracker-sealed-*"),
        *(Path(name) for name in ("/bin", "/sbin", "/lib", "/lib64", "/etc/passwd", "/etc/group")),
    ]
    # /bin and its like lead into /usr: what is named by both stands there once.
    unique = {_without_root_links(path): None for path in members}
    return list(unique)


def _without_root_links(path: Path) -> Path:
    """The path with a first directory that is a link, such as /lib, replaced by where it leads."""
    top = Path("/", *path.parts[1:2])
    if len(path.parts) > len(top.parts) and top.is_symlink():
        return top.resolve().joinpath(*path.parts[2:])
    return path


def _unpack_modules(guest: Guest, stage: Path, scratch: Path) -> None:
    """Put modules of the guest's own kernel into the image, where its modprobe finds them."""
    package = guest.directory.parent / "packages" / guest.package
    subprocess.run(["dpkg-deb", "-x", str(package), str(scratch)], check=True)
    tree = scratch / "lib/modules" / guest.kernel_version
    for path in list((tree / "kernel").rglob("*.ko")):
        name = str(path.relative_to(tree / "kernel"))
        if not name.startswith(tuple(f"{one}/" for one in MODULE_DIRECTORIES)):
            path.unlink()
    subprocess.run(["depmod", "-b", str(scratch), guest.kernel_version], check=True)
    (stage / "usr/lib/modules").mkdir(parents=True)
    tree.rename(stage / "usr/lib/modules" / guest.kernel_version)


def build(contents: Contents, scratch: Path) -> Path:
    """Make the image in `scratch`; answers its path."""
    stage = scratch / "stage"
    _unpack_modules(contents.guest, stage, scratch / "package")
    for inside, outside in contents.extra.items():
        (stage / inside.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(outside, stage / inside.lstrip("/"))
    for name in ("tmp", "run", "proc", "sys", "dev", "root", "var/lib"):
        (stage / name).mkdir(parents=True, exist_ok=True)
    names = scratch / "members"
    names.write_text("".join(f"{path}\n".lstrip("/") for path in _members(contents)))
    image, archive = scratch / "nested.squashfs", scratch / "nested.tar"
    subprocess.run(
        ["tar", "-C", "/", "-cf", str(archive), "--exclude=__pycache__/*.tmp", "-T", str(names)],
        check=True,
        stderr=sys.stderr,
    )
    subprocess.run(["tar", "-C", str(stage), "-rf", str(archive), "."], check=True)
    with archive.open("rb") as source:
        subprocess.run(
            ["sqfstar", "-comp", "lz4", "-no-progress", "-quiet", str(image)],
            stdin=source,
            check=True,
            capture_output=True,
        )
    archive.unlink()
    shutil.rmtree(stage)
    return image
