"""The host's end of the guest's vsock: a unix socket at which Firecracker knocks for the guest.

A guest that connects to the host's port N makes Firecracker connect to `<socket>_N`. The guest's
init connects again whenever its connection breaks, so a metald that restarts just listens again.
"""

import asyncio
import os
import socket
from pathlib import Path

from ironworks.metald.drivers.sockets import listen
from ironworks.metald.guest.control import ControlChannel

MAX_CONNECTIONS = 64
"""In the life of one listener. Init makes one; a guest that makes more than these is not listened
to any more."""

_TURNS = 10


class _Connection(asyncio.Protocol):
    """One knock; what it brings goes to the channel for as long as no later one comes."""

    def __init__(self, listener: "ControlListener") -> None:
        self._listener = listener
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._listener.connected(transport)

    def data_received(self, data: bytes) -> None:
        if self._listener.current is self._transport:
            self._listener.channel.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._listener.current is self._transport:
            self._listener.current = None
            self._listener.channel.connection_lost(exc)


class ControlListener:
    """Listens for one VM's init.

    Attributes:
        channel: What it says, over all connections: its bound holds for all of them together.
        current: The connection in use.
        attached: Set once the guest has connected.
    """

    def __init__(self) -> None:
        """Make one that does not listen yet; use `open`."""
        self.channel = ControlChannel()
        self.current: asyncio.BaseTransport | None = None
        self.attached = asyncio.Event()
        self._listener: socket.socket | None = None
        self._coming: set[asyncio.Task[object]] = set()
        self._connections = 0
        self._closed = False

    async def open(self, path: Path, uid: int, gid: int) -> None:
        """Listen at `path`, in place of an earlier metald.

        Raises:
            OSError: there is no such place.
        """
        listener = listen(path)
        try:
            os.chown(path, uid, gid, follow_symlinks=False)
        except BaseException:
            listener.close()
            raise
        listener.setblocking(False)
        self._listener = listener
        # Not asyncio's server: one that is closed loses the socket that it has just accepted.
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept)

    def _accept(self) -> None:
        if self._listener is None:
            return
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        task: asyncio.Task[object] = loop.create_task(
            loop.connect_accepted_socket(lambda: _Connection(self), connection)
        )
        self._coming.add(task)
        task.add_done_callback(self._coming.discard)

    def connected(self, transport: asyncio.BaseTransport) -> None:
        """A guest has connected: it replaces an earlier connection, which is dead if it is ours."""
        self._connections += 1
        wanted = self._connections <= MAX_CONNECTIONS and not self._closed
        if not wanted or not isinstance(transport, asyncio.WriteTransport):
            transport.close()
            self._stop_listening()
            return
        previous, self.current = self.current, transport
        if isinstance(previous, asyncio.WriteTransport):
            previous.abort()
        self.channel.connection_made(transport)
        self.attached.set()

    def _stop_listening(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None

    async def close(self) -> None:
        """Let go; the guest will knock at the next metald's."""
        self._closed = True
        self._stop_listening()
        await asyncio.gather(*self._coming, return_exceptions=True)
        if self.current is not None:
            self.channel.close()
            await self.channel.wait_closed()
        # What was refused, or came just now, is let go of in the loop's next turns.
        for _ in range(_TURNS):
            await asyncio.sleep(0)
