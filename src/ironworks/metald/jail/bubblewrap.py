"""The command line that puts a program into a jail of bubblewrap; a pure function."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

BWRAP = "/usr/bin/bwrap"
SETPRIV = "/usr/bin/setpriv"
LOADER_DIRECTORIES = ("lib", "lib32", "lib64", "libx32", "bin", "sbin")
"""Directories of the root that programs need by their old paths."""


def _system(root: Path) -> list[str]:
    argv = ["--ro-bind", str(root / "usr"), "/usr"]
    for name in LOADER_DIRECTORIES:
        path = root / name
        if path.is_symlink():
            argv += ["--symlink", str(path.readlink()), f"/{name}"]
        elif path.is_dir():
            argv += ["--ro-bind", str(path), f"/{name}"]
    return argv


def jail_argv(
    program: Sequence[str],
    *,
    uid: int,
    gid: int,
    files: Mapping[str, Path],
    devices: Mapping[str, Path] | None = None,
    status_descriptor: int | None = None,
    seccomp_descriptor: int | None = None,
    root: Path = Path("/"),
) -> list[str]:
    """Command line of `program` in a jail. It must be run as root, in the VM's network namespace.

    Args:
        program: What to run, with its path as it is in the jail.
        uid: The user that it runs as; of this VM alone.
        gid: Its only group.
        files: Path in the jail → file of the host, shown read-only.
        devices: Path in the jail → device node of the host that `uid` may open.
        status_descriptor: Where bubblewrap writes the child's pid, and at the end its exit code,
            as lines of JSON.
        seccomp_descriptor: Where bubblewrap reads `seccomp.jail_filter`.
        root: The host's root; another one in tests.
    """
    argv = [
        BWRAP,
        "--unshare-pid",
        "--unshare-ipc",
        "--unshare-uts",
        "--unshare-cgroup-try",
        "--as-pid-1",
        "--clearenv",
        # Needed to change to the VM's user and to drop the rest for ever; setpriv does both.
        *("--cap-drop", "ALL"),
        *("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_SETPCAP"),
        *_system(root),
    ]
    shown = {**files, **(devices or {})}
    for directory in sorted({os.path.dirname(inside) for inside in shown} - {"/"}):  # noqa: PTH120
        # By itself bubblewrap makes the directories of a file for root alone.
        argv += ["--perms", "0755", "--dir", directory]
    for inside, outside in files.items():
        argv += ["--ro-bind", str(outside), inside]
    for inside, outside in (devices or {}).items():
        argv += ["--dev-bind", str(outside), inside]
    argv += ["--remount-ro", "/", "--chdir", "/"]
    if status_descriptor is not None:
        argv += ["--json-status-fd", str(status_descriptor)]
    if seccomp_descriptor is not None:
        argv += ["--seccomp", str(seccomp_descriptor)]
    return [*argv, "--", *_as_user(uid, gid), "--", *program]


def _as_user(uid: int, gid: int) -> list[str]:
    """Command line that gives up all that a VM's user must not have."""
    return [
        SETPRIV,
        f"--reuid={uid}",
        f"--regid={gid}",
        "--clear-groups",
        "--inh-caps=-all",
        "--ambient-caps=-all",
        "--bounding-set=-all",
        "--no-new-privs",
    ]
