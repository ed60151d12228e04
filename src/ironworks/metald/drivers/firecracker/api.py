"""Firecracker's API: HTTP/1.1 and JSON over a unix socket, one request at a time.

Source: Firecracker's `firecracker.yaml`. It takes ten connections and answers 503 beyond them; we
keep one.
"""

import asyncio
import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Self, cast

from ironworks.metald.drivers.sockets import connect

REQUEST_TIMEOUT_SECONDS = 60.0
"""It answers within milliseconds; on a host that does everything else first, it has taken 10 s."""
MAX_BODY_BYTES = 51_200
"""Of a request; Firecracker refuses larger ones."""
MAX_ANSWER_BYTES = 1024 * 1024
_MAX_HEADER_LINES = 64
_OK = range(200, 300)


class ApiError(Exception):
    """Firecracker refused, or is gone; the message is its own, for the log and for sentences."""


Json = Mapping[str, object]


class Api:
    """One connection to a Firecracker."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take a connection; use `open`."""
        self._reader = reader
        self._writer = writer
        self._lock = asyncio.Lock()

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Connect, at once or not at all.

        Raises:
            OSError: nobody listens there.
        """
        connection = connect(path)
        try:
            reader, writer = await asyncio.open_unix_connection(
                sock=connection, limit=MAX_ANSWER_BYTES
            )
        except BaseException:
            connection.close()
            raise
        return cls(reader, writer)

    async def version(self) -> tuple[int, int, int]:
        """Firecracker's version, for example `(1, 16, 1)`.

        Raises:
            ApiError: it does not say.
        """
        return parse_version(str((await self.get("/version")).get("firecracker_version", "")))

    async def get(self, path: str) -> Json:
        """Ask for something.

        Raises:
            ApiError: it was refused.
        """
        return await self._request("GET", path, None)

    async def put(self, path: str, body: Json) -> None:
        """Set or do something.

        Raises:
            ApiError: it was refused.
        """
        await self._request("PUT", path, body)

    async def patch(self, path: str, body: Json) -> None:
        """Change something.

        Raises:
            ApiError: it was refused.
        """
        await self._request("PATCH", path, body)

    async def _request(self, method: str, path: str, body: Json | None) -> Json:
        content = b"" if body is None else json.dumps(body).encode()
        if len(content) > MAX_BODY_BYTES:
            raise ApiError(f"{method} {path}: the request is larger than {MAX_BODY_BYTES} bytes")
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_SECONDS), self._lock:
                self._writer.write(head.encode("ascii") + content)
                await self._writer.drain()
                status, answer = await self._answer()
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            # What comes now may answer what nobody asked: this connection is of no use any more.
            self._writer.close()
            raise ApiError(f"{method} {path}: {error!r}") from error
        if status not in _OK:
            fault = answer.get("fault_message", f"status {status}")
            raise ApiError(f"{method} {path}: {fault}")
        return answer

    async def _answer(self) -> tuple[int, Json]:
        status_line = (await self._reader.readuntil(b"\r\n")).decode("ascii")
        status = int(status_line.partition(" ")[2][:3])
        length = 0
        for _ in range(_MAX_HEADER_LINES):
            line = (await self._reader.readuntil(b"\r\n")).decode("ascii").strip()
            if not line:
                break
            name, _, value = line.partition(":")
            if name.lower() == "content-length":
                length = int(value)
        if not 0 <= length <= MAX_ANSWER_BYTES:
            raise ValueError(f"an answer of {length} bytes")
        content = await self._reader.readexactly(length)
        answer: object = json.loads(content) if content.strip() else {}
        return status, cast("Json", answer) if isinstance(answer, dict) else {}

    async def close(self) -> None:
        """End the connection; Firecracker runs on."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


def parse_version(text: str) -> tuple[int, int, int]:
    """Read `1.16.1`, `v1.16.1` or `1.17.0-dev`.

    Raises:
        ApiError: it is no version.
    """
    numbers = text.strip().removeprefix("v").partition("-")[0].split(".")
    try:
        major, minor, patch = (int(number) for number in numbers)
    except ValueError:
        raise ApiError(f"{text[:40]!r} is no version of Firecracker") from None
    return major, minor, patch
