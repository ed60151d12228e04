"""Run what touches an image's bytes where nothing of the host can be reached.

bubblewrap: own user, mount, pid, ipc, uts and (but for pulls) network namespaces, no capability, no
host path but programs, read-only, and the build's own scratch. It dies with builderd.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ironworks
from ironworks.builderd.cgroup import BuildGroups
from ironworks.builderd.flatten.plan import Flattened, Plan, encode, read_flattened
from ironworks.model.errors import FailedPrecondition, Internal, IronError, kind_of
from ironworks.runtime.process import run

FLATTEN = (sys.executable, "-I", "-B", "-m", "ironworks.builderd.flatten")
"""The program that flattens; its plan comes on standard input."""
REGISTRY = (*FLATTEN[:-1], "ironworks.builderd.registry")
"""The program that asks registries, likewise."""
_PROGRAMS = ("ironworks.builderd.flatten.run", "ironworks.builderd.registry.fetch")
_WARM_UP_SECONDS = 60.0
_LINE_BYTES = 64 << 20
_SAID_BYTES = 1 << 20
_TAIL_CHARS = 2000
_MAX_FILES = 4096
_KEPT_BYTES = str(32 << 20)
_JOIN = 'until [ "$1" = -- ]; do echo $$ >"$1" || exit 1; shift; done; shift; exec "$@"'
OnStep = Callable[[str, int, int], None]
_PACKAGE_ROOT = Path(ironworks.__file__).parents[1]
_NETWORK_FILES = (
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/ssl",
    "/etc/gai.conf",
    "/usr/local/share/ca-certificates",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """What a program in it sees.

    Attributes:
        readable: Path inside → file or directory of the host, read-only.
        writable: Path inside → directory of the host.
        network: Whether it shares the host's network.
        file_bytes: Largest file that it may write.
        join_paths: Files of its cgroup that it writes itself into before it starts.
    """

    readable: Mapping[str, Path] = field(default_factory=dict[str, Path])
    writable: Mapping[str, Path] = field(default_factory=dict[str, Path])
    network: bool = False
    file_bytes: int = 1 << 36
    join_paths: Sequence[Path] = ()

    def argv(self, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` in the sandbox."""
        argv = ["/bin/sh", "-c", _JOIN, "sh", *map(str, self.join_paths), "--"]
        argv += ["prlimit", "--core=0", f"--nofile={_MAX_FILES}", f"--fsize={self.file_bytes}"]
        argv += ["--", "bwrap", "--unshare-all", "--die-with-parent", "--new-session"]
        # A user namespace of its own would give it capabilities to try the kernel with.
        argv += ["--unshare-user", "--disable-userns"]
        argv += ["--share-net"] if self.network else []
        argv += ["--uid", "65534", "--gid", "65534", "--cap-drop", "ALL", "--clearenv"]
        argv += ["--setenv", "PATH", "/usr/bin:/bin", "--setenv", "HOME", "/nonexistent"]
        argv += ["--setenv", "LC_ALL", "C.UTF-8", "--setenv", "TMPDIR", "/tmp"]  # noqa: S108 - its own
        # Pieces of a MiB are taken and given back all the time: the kernel need not hear of it.
        argv += ["--setenv", "MALLOC_TRIM_THRESHOLD_", _KEPT_BYTES]
        argv += ["--setenv", "MALLOC_MMAP_THRESHOLD_", _KEPT_BYTES]
        argv += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]  # noqa: S108 - its own
        # To the kernel its user is builderd's: where that is root, /proc/sys would be writable.
        argv += ["--remount-ro", "/proc", "--ro-bind", "/usr", "/usr"]
        for name in ("bin", "sbin", "lib", "lib64"):
            argv += ["--symlink", f"usr/{name}", f"/{name}"]
        if self.network:
            for path in _NETWORK_FILES:
                argv += ["--ro-bind-try", path, path]
        for inside, outside in self.readable.items():
            argv += ["--ro-bind", str(outside), inside]
        for inside, outside in self.writable.items():
            argv += ["--bind", str(outside), inside]
        return [*argv, "--chdir", "/", "--", *command]


def python_paths() -> dict[str, Path]:
    """Paths that our own Python needs beside /usr."""
    needed = {Path(sys.prefix), Path(sys.base_prefix), _PACKAGE_ROOT}
    return {str(path): path for path in needed if not path.is_relative_to("/usr")}


async def _start(argv: Sequence[str]) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=_LINE_BYTES,
        )
    except FileNotFoundError:
        raise FailedPrecondition(
            "prlimit or bubblewrap is not installed.",
            hint="Run `./iron setup`, which installs deploy/debian-packages.txt.",
        ) from None


def flatten_sandbox(plan: Plan, *, blobs: Sequence[Path], scratch: Path) -> Sandbox:
    """Where `FLATTEN` runs; see `run_flatten`."""
    return Sandbox(
        readable={**python_paths(), **{f"/blobs/{n}": path for n, path in enumerate(blobs)}},
        writable={"/scratch": scratch},
        # One tar may be as large as all of them together; headers and inode tables come on top.
        file_bytes=2 * plan.limits.unpacked_bytes + 1024 * plan.limits.file_count + (1 << 20),
    )


async def warm_up() -> None:
    """Have the programs that run in sandboxes compiled, which there they cannot keep."""
    await run(
        [sys.executable, "-I", "-c", f"import {', '.join(_PROGRAMS)}"],
        timeout_seconds=_WARM_UP_SECONDS,
        check=False,
    )


async def run_flatten(
    plan: Plan,
    *,
    blobs: Sequence[Path],
    scratch: Path,
    on_step: OnStep,
    groups: BuildGroups | None = None,
) -> Flattened:
    """Flatten an image in a process of its own.

    Args:
        plan: Paths in it are those of the sandbox: `/blobs/N` and `/scratch`.
        blobs: Files of the host that appear as `/blobs/N`.
        scratch: Directory of the host that appears as `/scratch`.
        on_step: Is told what it does, and how many bytes it has done of how many; 0: not known.
        groups: Where the process gets its cgroup; None: it has no limits of that kind.

    Raises:
        IronError: what the process refused the image with.
        ResourceExhausted: it needed more memory than it may have.
        Internal: the process died; the context has the end of what it said.
    """
    sandbox = flatten_sandbox(plan, blobs=blobs, scratch=scratch)
    name = f"{scratch.name}.flatten"
    return read_flattened(await ask(FLATTEN, sandbox, encode(plan), on_step, groups, name))


async def ask(
    command: Sequence[str],
    sandbox: Sandbox,
    plan: str,
    on_step: OnStep,
    groups: BuildGroups | None,
    name: str,
) -> dict[str, Any]:
    """Give a program of ours its plan; answers its result.

    Args:
        command: `FLATTEN` or `REGISTRY`.
        sandbox: What it sees.
        plan: Goes to its standard input.
        on_step: See `run_flatten`.
        groups: Where the process gets its cgroup; None: it has no limits of that kind.
        name: Of the cgroup.

    Raises:
        IronError: what it refused.
        ResourceExhausted: it needed more memory than it may have.
        Internal: it died; the context has the end of what it said.
    """
    async with AsyncExitStack() as held:
        group = None
        if groups is not None:
            group = await held.enter_async_context(groups.held(name))
            sandbox = replace(sandbox, join_paths=group.join_paths)
        last, said, status = await _run(sandbox.argv(command), plan, on_step)
        if group is not None and "result" not in last:
            group.check_memory()
    if "result" in last:
        return last["result"]
    if "error" in last:
        raise _error(last)
    raise died(status, said)


async def _run(
    argv: Sequence[str], plan: str, on_step: OnStep
) -> tuple[dict[str, Any], str, int | None]:
    process = await _start(argv)
    try:
        last, said = await _converse(process, plan, on_step)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return last, said, process.returncode


def died(status: int | None, said: str) -> IronError:
    """Why a build's process ended without a word of its own.

    Args:
        status: Its exit status.
        said: The end of its standard error.
    """
    context: dict[str, object] = {"status": status, "stderr": said}
    if "bwrap:" in said and "namespace" in said:
        return FailedPrecondition(
            "This machine refuses user namespaces, and no build runs without its sandbox.",
            hint="Raise the sysctl user.max_user_namespaces, and run the platform in no chroot.",
            context=context,
        )
    return Internal("The build's process died.", hint="See builderd's log.", context=context)


async def _converse(
    process: asyncio.subprocess.Process, plan: str, on_step: OnStep
) -> tuple[dict[str, Any], str]:
    if process.stdin is None or process.stdout is None or process.stderr is None:
        raise Internal("A pipe to a program could not be made.")
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(plan.encode())
        await process.stdin.drain()
    process.stdin.close()
    last: dict[str, Any] = {}
    async for line in process.stdout:
        last = json.loads(line)
        if "step" in last:
            on_step(str(last["step"]), int(last["done_bytes"]), int(last["total_bytes"]))
    said = (await process.stderr.read(_SAID_BYTES)).decode(errors="replace")
    await process.wait()
    return last, said[-_TAIL_CHARS:]


def _error(line: dict[str, Any]) -> IronError:
    kind = kind_of(str(line["error"]))
    context: dict[str, object] = dict(line.get("context", {}))
    return kind(str(line["message"]), hint=str(line.get("hint", "")), context=context)
