"""Take archives on this machine apart, through skopeo in a sandbox without a network."""

from __future__ import annotations

import itertools
import os
import signal
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from ironworks.builderd.cgroup import BuildGroups
from ironworks.builderd.sandbox import Sandbox
from ironworks.builderd.sources.local import read_directory, unreadable
from ironworks.builderd.types import Pulled, Resolved, Transport
from ironworks.model.errors import DeadlineExceeded, InvalidRequest, IronError, ResourceExhausted
from ironworks.runtime.architecture import host_architecture
from ironworks.runtime.process import Completed, run

_TEMPORARY = "/work"
"""Where skopeo, in its sandbox, takes archives apart: on disk, where /tmp is memory."""

_TOO_LARGE = 128 + signal.SIGXFSZ


class Skopeo:
    """Takes archives apart."""

    def __init__(self, *, file_bytes: int, groups: BuildGroups | None = None) -> None:
        """Nothing is started.

        Args:
            file_bytes: Largest blob.
            groups: Where skopeo gets its cgroup; None: it has no limits of that kind.
        """
        self._file_bytes = file_bytes
        self._groups = groups
        self._numbers = itertools.count()

    async def unpack_archive(
        self, path: Path, transport: Transport, name: str, *, scratch: Path, timeout_seconds: float
    ) -> tuple[Resolved, Pulled]:
        """Take an archive apart.

        Raises:
            InvalidRequest: it cannot be read, or has no such image.
            DeadlineExceeded: it takes too long.
        """
        target, temporary = scratch / "archive", scratch / "work"
        target.mkdir()
        temporary.mkdir()
        sandbox = Sandbox(
            readable={"/archive.tar": path},
            writable={"/scratch": target, _TEMPORARY: temporary},
            file_bytes=self._file_bytes,
        )
        source = f"{transport.value}:/archive.tar" + (f":{name}" if name else "")
        command = [
            "skopeo", "--insecure-policy", "--tmpdir", _TEMPORARY,
            "--override-os", "linux", "--override-arch", host_architecture(),
            "copy", "--quiet", source, "dir:/scratch",
        ]  # fmt: skip
        done = await self._run(path, sandbox, command, timeout_seconds)
        if done.status != 0:
            raise _explain(path, name, done)
        return read_directory(target)

    async def inflate(self, path: Path, *, scratch: Path, timeout_seconds: float) -> Path:
        """An archive without what `docker save | gzip` and its like put around it.

        Raises:
            InvalidRequest: it is damaged, or larger than a blob may be.
            DeadlineExceeded: it takes too long.
        """
        target = scratch / "inflated"
        target.mkdir()
        sandbox = Sandbox(
            readable={"/archive": path},
            writable={_TEMPORARY: target},
            file_bytes=self._file_bytes,
        )
        # It knows gzip, xz and lz4 as well.
        command = ["zstd", "-dq", "-o", f"{_TEMPORARY}/{path.name}", "/archive"]
        done = await self._run(path, sandbox, command, timeout_seconds)
        if done.status == _TOO_LARGE:
            raise InvalidRequest(
                f"The archive {path.name} has more than {self._file_bytes} bytes unpacked.",
                hint="Push the image to a registry, or have the limit max_packed_bytes raised.",
            )
        if done.status != 0:
            raise _explain(path, "", done)
        return target / path.name

    async def _run(
        self, path: Path, sandbox: Sandbox, command: list[str], timeout_seconds: float
    ) -> Completed:
        async with AsyncExitStack() as held:
            if self._groups is not None:
                group_name = f"{os.getpid()}.{next(self._numbers)}.archive"
                group = await held.enter_async_context(self._groups.held(group_name))
                sandbox = replace(sandbox, join_paths=group.join_paths)
            try:
                return await run(
                    sandbox.argv(command), timeout_seconds=timeout_seconds, check=False
                )
            except DeadlineExceeded:
                raise DeadlineExceeded(
                    f"The archive {path.name} could not be taken apart within {timeout_seconds:g} "
                    "seconds."
                ) from None


def _explain(path: Path, name: str, done: Completed) -> IronError:
    lowered = done.stderr_tail.lower()
    context: dict[str, object] = {"skopeo": done.stderr_tail}
    if "no space left" in lowered:
        return ResourceExhausted(
            f"There is no room on the disk for image {path.name}.",
            hint="Free space in the data directory, then deploy again.",
            context=context,
        )
    if name and ("not found" in lowered or "no descriptor" in lowered or "does not" in lowered):
        return InvalidRequest(
            f"The archive {path.name} has no image named {name!r}.", context=context
        )
    refusal = unreadable(path)
    refusal.context.update(context)
    return refusal
