"""QEMU's monitor, over the library `qemu.qmp`, whose answers are untyped."""

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import Self, cast

from qemu.qmp import ExecuteError, QMPClient, QMPError

from ironworks.metald.drivers.driver import BlockCounters
from ironworks.metald.drivers.sockets import connect

CONNECT_TIMEOUT_SECONDS = 20.0
"""QEMU answers once it has set itself up: a fraction of a second, but for a loaded host."""
COMMAND_TIMEOUT_SECONDS = 5.0

# What goes wrong is raised; the library also logs it, with stack traces, as an error of its own.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


class MonitorError(Exception):
    """QEMU did not do what it was told, or cannot be told; the message is for the log."""


class Monitor:
    """One session with a QEMU's monitor."""

    def __init__(self, client: QMPClient) -> None:
        """Take a connected client; use `open`."""
        self._client = client

    @classmethod
    async def open(cls, path: Path, *, timeout_seconds: float = CONNECT_TIMEOUT_SECONDS) -> Self:
        """Connect and wait for QEMU's greeting.

        Raises:
            MonitorError: nobody answers.
        """
        client = QMPClient()
        try:
            connection = connect(path)
            try:
                async with asyncio.timeout(timeout_seconds):
                    await client.connect(connection)
            except BaseException:
                # A cancellation may come before the library has taken the socket over.
                connection.close()
                raise
        except (OSError, QMPError, TimeoutError) as error:
            raise MonitorError(f"no monitor at {path}: {error!r}") from error
        return cls(client)

    async def execute(self, command: str) -> object:
        """Run a command without arguments and return its answer.

        Raises:
            MonitorError: QEMU refused, is gone, or did not answer in time.
        """
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_SECONDS):
                return await self._client.execute(command)
        except (QMPError, ExecuteError, TimeoutError, OSError) as error:
            raise MonitorError(f"{command}: {error!r}") from error

    async def block_counters(self) -> BlockCounters:
        """Counters of all disks, summed.

        Raises:
            MonitorError: they cannot be read, or look otherwise than this QEMU's do.
        """
        answer = await self.execute("query-blockstats")
        try:
            disks = [disk["stats"] for disk in cast("list[dict[str, dict[str, int]]]", answer)]
            return BlockCounters(
                read_bytes=sum(disk["rd_bytes"] for disk in disks),
                written_bytes=sum(disk["wr_bytes"] for disk in disks),
                read_operations=sum(disk["rd_operations"] for disk in disks),
                write_operations=sum(disk["wr_operations"] for disk in disks),
            )
        except (KeyError, TypeError) as error:
            raise MonitorError(f"query-blockstats: {error!r}") from error

    async def stands_still(self) -> bool:
        """Whether the vCPUs do not run: paused, or stopped by QEMU as the host's disk was full.

        Raises:
            MonitorError: it does not tell.
        """
        answer = await self.execute("query-status")
        return not cast("dict[str, object]", answer)["running"]

    async def close(self) -> None:
        """End the session; QEMU runs on."""
        with contextlib.suppress(QMPError, OSError, EOFError):
            await self._client.disconnect()
