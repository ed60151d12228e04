"""The client, against a server that says what Firecracker would."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ironworks.metald.drivers.firecracker import api as module
from ironworks.metald.drivers.firecracker.api import Api, ApiError, parse_version

Answer = Callable[[str, bytes], bytes]


def response(status: str, body: bytes = b"") -> bytes:
    head = f"HTTP/1.1 {status}\r\nServer: Firecracker API\r\nConnection: keep-alive\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


@asynccontextmanager
async def server(path: Path, answer: Answer) -> AsyncGenerator[Api]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                lengths = [line.split(": ")[1] for line in lines if line.startswith("Content-Le")]
                body = await reader.readexactly(int(lengths[0]))
                writer.write(answer(lines[0].removesuffix(" HTTP/1.1"), body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_unix_server(serve, path)
    client = await Api.open(path)
    try:
        yield client
    finally:
        await client.close()
        listening.close()


async def test_one_connection_asks_sets_and_changes(tmp_path: Path) -> None:
    seen: list[tuple[str, bytes]] = []

    def answer(request: str, body: bytes) -> bytes:
        seen.append((request, body))
        if request == "GET /version":
            return response("200 OK", b'{"firecracker_version":"1.16.1"}')
        return response("204 No Content")

    async with server(tmp_path / "api", answer) as client:
        assert await client.version() == (1, 16, 1)
        await client.put("/actions", {"action_type": "InstanceStart"})
        await asyncio.gather(
            client.patch("/vm", {"state": "Paused"}), client.patch("/vm", {"state": "Resumed"})
        )
    assert [request for request, _ in seen] == [
        "GET /version", "PUT /actions", "PATCH /vm", "PATCH /vm",
    ]  # fmt: skip
    assert [json.loads(body)["state"] for _, body in seen[2:]] == ["Paused", "Resumed"]


async def test_a_refusal_is_told_in_its_words_and_the_connection_goes_on(tmp_path: Path) -> None:
    def answer(request: str, body: bytes) -> bytes:
        if body == b"{}":
            return response("204 No Content")
        return response("400 Bad Request", b'{"fault_message":"Invalid tap."}')

    async with server(tmp_path / "api", answer) as client:
        with pytest.raises(ApiError, match=r"PUT /x: Invalid tap\."):
            await client.put("/x", {"a": 1})
        await client.put("/x", {})


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{]]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
    ],
)
async def test_an_answer_that_is_none_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setattr(module, "REQUEST_TIMEOUT_SECONDS", 0.2)
    async with server(tmp_path / "api", lambda _, __: answer) as client:
        with pytest.raises(ApiError):
            await client.version()


async def test_after_no_answer_the_connection_is_not_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REQUEST_TIMEOUT_SECONDS", 0.1)
    async with server(tmp_path / "api", lambda _, __: b"") as client:
        for call in (client.get("/"), client.get("/")):
            with pytest.raises(ApiError):
                await call


async def test_what_is_too_large_is_not_sent(tmp_path: Path) -> None:
    async with server(tmp_path / "api", lambda _, __: response("204 No Content")) as client:
        with pytest.raises(ApiError, match="larger than"):
            await client.put("/mmds", {"a": "x" * module.MAX_BODY_BYTES})


async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        await Api.open(tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("1.16.1", (1, 16, 1)),
        ("v1.7.0", (1, 7, 0)),
        ("1.17.0-dev", (1, 17, 0)),
        (" 2.0.1\n", (2, 0, 1)),
    ],
)
def test_versions(text: str, version: tuple[int, int, int]) -> None:
    assert parse_version(text) == version


@pytest.mark.parametrize("text", ["", "1.16", "one", "1.2.3.4"])
def test_no_versions(text: str) -> None:
    with pytest.raises(ApiError):
        parse_version(text)
