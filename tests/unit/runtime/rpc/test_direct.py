from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from pyqwest import Client, HTTPTransport

from ironworks.runtime.rpc.direct import DIRECT


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello")
    await writer.drain()
    writer.close()
    await writer.wait_closed()


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


@pytest.fixture(autouse=True)
def dead_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


async def test_a_direct_client_goes_past_the_proxy_of_the_environment(url: str) -> None:
    client = Client(HTTPTransport(proxy=DIRECT, connect_timeout=5.0))
    response = await client.execute("GET", url)
    assert bytes(response.content) == b"hello"


async def test_any_other_client_does_not_which_is_why_it_is_needed(url: str) -> None:
    client = Client(HTTPTransport(connect_timeout=5.0))
    with pytest.raises(OSError, match=r"(?i)connect|error|refused"):
        await client.execute("GET", url)
