"""A ClickHouse server for tests: the real engine (chDB) behind the HTTP interface of a server.

Source of the interface: ClickHouse, "HTTP Interface". What `clickhouse-connect` uses of it is here:
statements and data in body or URL, parameters, settings, compression of requests, summaries and
exceptions in headers.
"""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl, urlsplit

import zstandard

from ironworks.storage.clickhouse import load_engine

_TRANSPORT = {
    "query", "database", "default_format", "session_id", "query_id", "compress", "user", "password",
    "enable_http_compression", "wait_end_of_query", "client_protocol_version", "buffer_size",
    "send_progress_in_http_headers", "http_headers_progress_interval_ms", "role", "decompress",
    "cancel_http_readonly_queries_on_client_close",
}  # fmt: skip
_INSERT = re.compile(rb"\s*(INSERT\s+INTO\s.*?)\s+FORMAT\s+(\w+)[ ]*\n?", re.IGNORECASE | re.DOTALL)
"""One newline ends the statement: the data behind it may begin with what looks like another."""
_CODE = re.compile(r"Code: (\d+)")


class Front(ThreadingHTTPServer):
    """The server. `down` makes it hang up on everybody, as a server that has died does."""

    daemon_threads = True

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        directory.mkdir(parents=True, exist_ok=True)
        self.connection: Any = load_engine().connect(f"{directory}?max_thread_pool_size=512")
        self.lock = threading.Lock()
        self.down = False
        self.statements = 0

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def front(self) -> Front:
        """The server that this request came to."""
        return cast("Front", self.server)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - inherited
        """Tests want no log."""

    def do_GET(self) -> None:
        """Ping, or a query in the URL."""
        self._serve(b"")

    def do_POST(self) -> None:
        """A statement, its data, or both."""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = self._chunks()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        encoding = self.headers.get("Content-Encoding", "")
        if encoding == "gzip":
            body = gzip.decompress(body)
        elif encoding == "zstd":
            body = zstandard.ZstdDecompressor().decompressobj().decompress(body)
        elif encoding == "lz4":
            import lz4.frame  # noqa: PLC0415 # pyright: ignore[reportMissingTypeStubs]

            body = bytes(lz4.frame.decompress(body))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
        self._serve(body)

    def _chunks(self) -> bytes:
        parts: list[bytes] = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _serve(self, body: bytes) -> None:
        if self.front.down:
            self.close_connection = True
            self.connection.close()
            return
        url = urlsplit(self.path)
        if url.path == "/ping":
            self._answer(200, b"Ok.\n", {})
            return
        arguments = dict(parse_qsl(url.query, keep_blank_values=True))
        said = arguments.get("query", "").rstrip().encode()
        statement = said + (b"\n" if said and body else b"") + body
        try:
            with self.front.lock:
                answer, written = self._run(statement, arguments)
        except RuntimeError as error:
            code = _CODE.search(str(error))
            headers = {"X-ClickHouse-Exception-Code": code[1] if code else "1"}
            self._answer(500, str(error).encode(), headers)
            return
        summary = json.dumps({"read_rows": "0", "written_rows": str(written)})
        self._answer(200, answer, {"X-ClickHouse-Summary": summary})

    def _run(self, statement: bytes, arguments: dict[str, str]) -> tuple[bytes, int]:
        self.front.statements += 1
        connection = self.front.connection
        insert = _INSERT.match(statement)
        if insert is not None:
            handle = connection.send_insert(insert[1].decode(), insert[2].decode())
            try:
                connection.insert_append(handle, statement[insert.end() :])
            except BaseException:
                connection.insert_cancel(handle)
                raise
            return b"", int(connection.insert_done(handle).rows_written())
        for name, value in arguments.items():
            if name not in _TRANSPORT and not name.startswith("param_"):
                quoted = value.replace("\\", "\\\\").replace("'", "\\'")
                connection.query(f"SET {name} = '{quoted}'", "Null")
        given = {
            name.removeprefix("param_"): value
            for name, value in arguments.items()
            if name.startswith("param_")
        }
        wanted = arguments.get("default_format", "TabSeparated")
        return connection.query(statement.decode(), wanted, params=given).bytes(), 0

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def clickhouse_server(directory: Path) -> Generator[Front]:
    """A server on this directory; what is in it is taken up."""
    front = Front(directory)
    thread = threading.Thread(target=front.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield front
    finally:
        front.shutdown()
        thread.join()
        front.server_close()
        front.connection.close()
