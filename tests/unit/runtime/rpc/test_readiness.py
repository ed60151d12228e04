"""A service that is not there, or goes while it is asked, is not ready; nobody who asks falls."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable

import pytest

from ironworks.runtime.rpc.readiness import Readiness

_Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
_RESET = struct.pack("ii", 1, 0)


def _answering(text: bytes) -> _Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(text)
        writer.close()

    return serve


async def _resetting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


async def _ready(serve: _Serve) -> bool:
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        return await Readiness().of(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("status", "ready"), [(b"200 OK", True), (b"503 Service Unavailable", False)]
)
async def test_a_service_says_itself_whether_it_is_ready(status: bytes, ready: bool) -> None:
    answer = b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    assert await _ready(_answering(answer)) is ready


async def test_one_that_breaks_off_or_talks_nonsense_is_not_ready() -> None:
    assert await _ready(_resetting) is False
    assert await _ready(_answering(b"")) is False
    assert await _ready(_answering(b"what?\r\n\r\n")) is False


async def test_one_that_is_not_there_is_not_ready(unused_tcp_port: int) -> None:
    assert await Readiness().of(f"http://127.0.0.1:{unused_tcp_port}") is False
