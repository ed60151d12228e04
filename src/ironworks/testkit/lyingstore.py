"""A proxy in front of an S3 that lies, stalls and fails as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from enum import Enum
from urllib.parse import urlsplit

from ironworks.runtime.tasks import Tasks

_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"(?im)^content-length:\s*(\d+)")
_ETAG = re.compile(rb"(?im)^etag:.*?\r\n")


class Lie(Enum):
    """What the proxy does with answers."""

    NONE = "none"
    OTHER_ETAG = "another ETag each time"
    CUT_BODY = "the connection ends within the body"
    SHORT_BODY = "a body that is shorter, and a length that agrees"
    FLIPPED_BYTE = "a byte of the body is another"
    KEEPS_NOTHING = "what is written is acknowledged and thrown away"
    FAILS = "500 to everything"
    HANGS_UP = "no answer at all"
    STALLS = "half an answer, and then nothing"


class LyingStore:
    """The proxy; set `lie` at any time."""

    def __init__(self, upstream: str) -> None:
        address = urlsplit(upstream)
        self._upstream = (address.hostname or "", address.port or 0)
        self.lie = Lie.NONE
        self.endpoint = ""
        self.requests: list[str] = []
        """Method and path of each request that came."""
        self._tags = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        try:
            while await self._one(reader, writer):
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(_END)
        length = _LENGTH.search(head)
        body = await reader.readexactly(int(length[1])) if length else b""
        method, path = head.split(b" ", 2)[:2]
        self.requests.append(f"{method.decode()} {path.decode()}")
        if self.lie is Lie.HANGS_UP:
            return False
        if self.lie is Lie.FAILS:
            writer.write(b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n")
            return True
        if self.lie is Lie.KEEPS_NOTHING and method == b"PUT":
            writer.write(b'HTTP/1.1 200 OK\r\netag: "x"\r\ncontent-length: 0\r\n\r\n')
            return True
        answer_head, answer = await self._ask(head, body)
        return await self._answer(writer, method, answer_head, answer)

    async def _ask(self, head: bytes, body: bytes) -> tuple[bytes, bytes]:
        reader, writer = await asyncio.open_connection(*self._upstream)
        try:
            writer.write(head[: -len(_END)] + b"\r\nconnection: close" + _END + body)
            await writer.drain()
            answer_head = await reader.readuntil(_END)
            return answer_head, await reader.read()
        finally:
            writer.close()

    async def _answer(
        self, writer: asyncio.StreamWriter, method: bytes, head: bytes, body: bytes
    ) -> bool:
        if b"chunked" in head.lower():
            raise OSError("The proxy takes no chunked answers.")
        is_object = method == b"GET" and b"xml" not in head.lower()
        if self.lie is Lie.OTHER_ETAG:
            self._tags += 1
            head = _ETAG.sub(b'etag: "%032x"\r\n' % self._tags, head)
        if is_object and self.lie is Lie.SHORT_BODY:
            body = body[: len(body) // 2]
            head = _LENGTH.sub(b"content-length: %d" % len(body), head)
        if is_object and self.lie is Lie.FLIPPED_BYTE:
            body = bytes([body[0] ^ 1]) + body[1:]
        head = head.replace(b"Connection: close\r\n", b"")
        if is_object and self.lie in (Lie.CUT_BODY, Lie.STALLS):
            writer.write(head + body[: len(body) // 2])
            await writer.drain()
            if self.lie is Lie.STALLS:
                await asyncio.Event().wait()
            return False
        if self.lie is Lie.STALLS:
            await asyncio.Event().wait()
        writer.write(head + body)
        return True


@asynccontextmanager
async def lying_store(upstream: str) -> AsyncGenerator[LyingStore]:
    """A proxy in front of `upstream` on a port of its own; honest until told otherwise."""
    store = LyingStore(upstream)
    async with Tasks() as tasks:

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tasks.start(store.serve(reader, writer), name="connection")

        server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=1 << 26)
        async with server:
            store.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            yield store
