"""A registry on loopback that misbehaves: the repository's name says how.

`REGISTRY/hang:1` never answers, `REGISTRY/limited:1` limits, and so on: see `MANIFESTS`, `BLOBS`.
What is not misbehaviour is an honest image of one small layer.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from ironworks.testkit.images import CONFIG_TYPE, INDEX_TYPE, MANIFEST_TYPE, File, make_tar

_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
_PLATFORM = {"os": "linux", "architecture": "amd64"}
_SLOW_SECONDS = 0.2
_SLOW_BYTES = 10_000
_LOOK_SECONDS = 0.01
_TLS_HELLO = b"\x16"
_HUGE_BYTES = 64 << 20
_CHUNK = b" " * (1 << 16)


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _descriptor(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": _digest(data), "size": len(data)}


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


LAYER = make_tar([File(name="app", data=b"hello" * 1000)])
CONFIG = _json(
    {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/app"]},
        "rootfs": {"type": "layers", "diff_ids": [_digest(LAYER)]},
    }
)
LAYER_DIGEST = _digest(LAYER)
HONEST = _json(
    {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": _descriptor(CONFIG_TYPE, CONFIG),
        "layers": [_descriptor(_LAYER_TYPE, LAYER)],
    }
)


@dataclass
class HostileRegistry:
    """Where it is, what was asked of it, and which parts of blobs."""

    address: str = ""
    asked: list[str] = field(default_factory=list[str])
    ranges: list[str] = field(default_factory=list[str])
    broken: bool = False


@dataclass(frozen=True, slots=True)
class _Request:
    registry: HostileRegistry
    reference: str
    writer: asyncio.StreamWriter
    part: str = ""

    async def answer(
        self, status: str, body: bytes = b"", *headers: str, length: int | None = None
    ) -> None:
        size = len(body) if length is None else length
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {size}", "Connection: close", *headers]
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await self.writer.drain()

    async def manifest(self, body: bytes, media_type: str = MANIFEST_TYPE) -> None:
        await self.answer(
            "200 OK",
            body,
            f"Content-Type: {media_type}",
            f"Docker-Content-Digest: {_digest(body)}",
        )


Handler = Callable[[_Request], Awaitable[None]]


async def _hang(_: _Request) -> None:
    await asyncio.Event().wait()


async def _slow(request: _Request) -> None:
    await request.answer("200 OK", b"", f"Content-Type: {MANIFEST_TYPE}", length=_SLOW_BYTES)
    for _ in range(_SLOW_BYTES):
        request.writer.write(b" ")
        await request.writer.drain()
        await asyncio.sleep(_SLOW_SECONDS)


async def _redirect_in_circles(request: _Request) -> None:
    place = f"http://{request.registry.address}/v2/circle/manifests/{request.reference}"
    await request.answer("307 Temporary Redirect", b"", f"Location: {place}")


async def _huge(request: _Request) -> None:
    kind = f"Content-Type: {MANIFEST_TYPE}"
    await request.answer("200 OK", b"", kind, length=_HUGE_BYTES)
    for _ in range(_HUGE_BYTES // len(_CHUNK)):
        request.writer.write(_CHUNK)
        await request.writer.drain()


async def _nested(request: _Request) -> None:
    index = _json(
        {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [
            {**_descriptor(INDEX_TYPE, HONEST), "platform": _PLATFORM}
        ]}
    )  # fmt: skip
    await request.manifest(index, INDEX_TYPE)


def _to(place: str) -> Handler:
    return lambda it: it.answer("307 Temporary Redirect", b"", f"Location: {place}")


MANIFESTS: dict[str, Handler] = {
    "hang": _hang,
    "slow": _slow,
    "limited": lambda it: it.answer("429 Too Many Requests", b"{}", "Retry-After: 60"),
    "denied": lambda it: it.answer("401 Unauthorized", b"{}", 'WWW-Authenticate: Basic realm="x"'),
    "forbidden": lambda it: it.answer("403 Forbidden", b"{}"),
    "broken": lambda it: it.answer("500 Internal Server Error"),
    "html": lambda it: it.answer("200 OK", b"<html>log in</html>", "Content-Type: text/html"),
    "deep": lambda it: it.manifest(b'{"layers":' + b"[" * 200_000),
    "circle": _redirect_in_circles,
    "to-metadata": _to("http://169.254.169.254/latest/meta-data/"),
    "to-loopback": _to("https://127.0.0.1:9/v2/x/manifests/1"),
    "to-private": _to("https://[fd00::1]/v2/x/manifests/1"),
    "to-file": _to("file:///etc/passwd"),
    "token-elsewhere": lambda it: it.answer(
        "401 Unauthorized", b"{}", 'WWW-Authenticate: Bearer realm="https://10.0.0.1/token"'
    ),
    "huge": _huge,
    "nested": _nested,
    "schema1": lambda it: it.manifest(
        _json({"schemaVersion": 1, "name": "x", "tag": "1", "fsLayers": [], "history": []}),
        "application/vnd.docker.distribution.manifest.v1+json",
    ),
    "other-digest": lambda it: it.manifest(HONEST + b" "),
}


async def _other_bytes(request: _Request) -> None:
    await request.answer("200 OK", bytes(len(LAYER)))


async def _cut_off(request: _Request) -> None:
    await request.answer("200 OK", LAYER[:100], length=len(LAYER))


async def _slow_bytes(request: _Request) -> None:
    await request.answer("200 OK", b"", length=len(LAYER))
    for byte in LAYER:
        request.writer.write(bytes([byte]))
        await request.writer.drain()
        await asyncio.sleep(_SLOW_SECONDS)


async def _elsewhere(request: _Request) -> None:
    place = f"http://{request.registry.address}/v2/other-bytes/blobs/{request.reference}"
    await request.answer("307 Temporary Redirect", b"", f"Location: {place}")


async def _breaks_once(request: _Request) -> None:
    """Half of it; and the rest to whoever comes back for it."""
    half = len(LAYER) // 2
    if request.part == f"bytes={half}-":
        found = f"Content-Range: bytes {half}-{len(LAYER) - 1}/{len(LAYER)}"
        await request.answer("206 Partial Content", LAYER[half:], found)
    elif request.registry.broken:
        await request.answer("200 OK", LAYER)
    else:
        request.registry.broken = True
        await request.answer("200 OK", LAYER[:half], length=len(LAYER))


async def _denied(request: _Request) -> None:
    """Not before the configuration was asked for: the client gives up at the first refusal."""
    while not any(path.endswith(_digest(CONFIG)) for path in request.registry.asked):  # noqa: ASYNC110 - many requests share the list
        await asyncio.sleep(_LOOK_SECONDS)
    await request.answer("403 Forbidden", b"{}")


BLOBS: dict[str, Handler] = {
    "other-bytes": _other_bytes,
    "more-bytes": lambda it: it.answer("200 OK", LAYER + bytes(100)),
    "cut-off": _cut_off,
    "slow-bytes": _slow_bytes,
    "elsewhere": _elsewhere,
    "gone": lambda it: it.answer("404 Not Found", b"{}"),
    "hang-bytes": _hang,
    "blob-to-loopback": _to("https://localhost/layer"),
    "blob-to-metadata": _to("http://169.254.169.254/layer"),
}


ONCE: dict[str, Handler] = {
    "breaks-once": _breaks_once,
    "denied-bytes": _denied,
}
"""What is not simply refused."""


async def _serve(request: _Request, repository: str, kind: str) -> None:
    if kind == "manifests":
        await MANIFESTS.get(repository, lambda it: it.manifest(HONEST))(request)
        return
    if request.part:
        request.registry.ranges.append(request.part)
    if request.reference == _digest(CONFIG):
        await request.answer("200 OK", CONFIG)
    else:
        await (BLOBS | ONCE).get(repository, lambda it: it.answer("200 OK", LAYER))(request)


@asynccontextmanager
async def hostile_registry() -> AsyncGenerator[HostileRegistry]:
    """Serve on a free port of loopback until the context ends."""
    registry = HostileRegistry()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            first = await reader.readexactly(1)
            if first == _TLS_HELLO:
                writer.close()
                return
            head = (first + await reader.readuntil(b"\r\n\r\n")).decode()
            path = head.split(" ", 2)[1]
            registry.asked.append(path)
            parts = path.strip("/").split("/")
            part = next((line[7:] for line in head.split("\r\n") if line.startswith("Range: ")), "")
            request = _Request(registry, parts[-1], writer, part)
            if len(parts) == 4 and parts[0] == "v2":  # noqa: PLR2004 - v2/NAME/KIND/REFERENCE
                await _serve(request, parts[1], parts[2])
            else:
                await request.answer("200 OK", b"{}")
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    registry.address = "127.0.0.1:%d" % server.sockets[0].getsockname()[1]  # noqa: UP031 - a port
    try:
        yield registry
    finally:
        server.close()
