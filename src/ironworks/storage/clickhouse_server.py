"""ClickHouse as a server or a cluster, over HTTP, behind the interface of `clickhouse`.

A server that is down is no reason not to start: statements answer `Unavailable` until it is back,
and what `prepare` was given is run before the first one that is answered.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast
from urllib.parse import unquote, urlsplit

import clickhouse_connect
import structlog
from clickhouse_connect.driver.exceptions import ClickHouseError

from ironworks.model.errors import InvalidRequest, Unavailable
from ironworks.storage.clickhouse import JSON_SETTINGS
from ironworks.storage.native import Column, insert_into, native_block

_log = structlog.stdlib.get_logger()
_T = TypeVar("_T")
STATEMENTS_AT_ONCE = 4
CONNECT_SECONDS = 3
ANSWER_SECONDS = 120
_CLUSTER_SETTINGS: Mapping[str, object] = {
    # An insert answers when every shard has its rows, and on more than half of the replicas.
    "distributed_foreground_insert": 1,
    "insert_quorum": "auto",
}


def check_url(url: str) -> str:
    """The URL, if it is one of a server.

    Raises:
        InvalidRequest: it is not.
    """
    try:
        parts = urlsplit(url)
        sound = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise InvalidRequest(
            "The URL of ClickHouse must be `http[s]://[user:password@]host[:port][/database]`."
        )
    return url


class ServerEngine:
    """ClickHouse over HTTP."""

    def __init__(self, url: str, *, cluster: str = "") -> None:
        self._url = check_url(url)
        self._insert_settings = dict(_CLUSTER_SETTINGS) if cluster else {}
        self._threads = ThreadPoolExecutor(STATEMENTS_AT_ONCE, thread_name_prefix="clickhouse")
        self._lock = threading.Lock()
        self._client: Any = None
        self._unprepared: list[str] = []

    async def prepare(self, statements: Sequence[str]) -> None:
        """Run statements now or, if the server is down, before the first one that it answers."""
        with self._lock:
            self._unprepared = list(statements)
        try:
            await self._run(lambda client: client.ping())
        except Unavailable as error:
            _log.warning("clickhouse_unavailable", **error.context)

    async def execute(self, sql: str, parameters: Mapping[str, object] | None = None) -> None:
        """Run a statement that answers nothing."""
        await self._run(lambda client: client.command(sql, parameters=dict(parameters or {})))

    async def insert(self, table: str, columns: Sequence[Column]) -> int:
        """Append rows as one block."""
        insert_into(table, columns)
        if not columns or not len(columns[0].values):
            return 0
        names = [column.name for column in columns]

        def work(client: Any) -> int:
            block = native_block(columns)
            client.raw_insert(
                table, names, insert_block=block, fmt="Native", settings=self._insert_settings
            )
            return len(columns[0].values)

        return await self._run(work)

    async def rows(
        self, sql: str, parameters: Mapping[str, object] | None = None
    ) -> list[list[Any]]:
        """Run a query; 64-bit and 128-bit numbers come back exact."""

        def work(client: Any) -> list[list[Any]]:
            answer = client.raw_query(
                sql + JSON_SETTINGS, parameters=dict(parameters or {}), fmt="JSONCompactEachRow"
            )
            return [json.loads(line) for line in answer.splitlines()]

        return await self._run(work)

    async def rest(self) -> bool:
        """There is nothing to give back: the memory is the server's."""
        return False

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                parts = urlsplit(self._url)
                # The library's types are partial: its client stays inside of this class.
                self._client = cast("Any", clickhouse_connect).get_client(
                    host=parts.hostname,
                    port=parts.port or (8443 if parts.scheme == "https" else 8123),
                    interface=parts.scheme,
                    username=unquote(parts.username or "default"),
                    password=unquote(parts.password or ""),
                    database=parts.path.strip("/") or "default",
                    # Statements of many threads share the connection; a session would serialise.
                    autogenerate_session_id=False,
                    connect_timeout=CONNECT_SECONDS,
                    send_receive_timeout=ANSWER_SECONDS,
                )
            while self._unprepared:
                self._client.command(self._unprepared[0])
                self._unprepared.pop(0)
            return self._client

    async def _run(self, work: Callable[[Any], _T]) -> _T:
        def mapped() -> _T:
            try:
                return work(self._connected())
            except (ClickHouseError, OSError) as error:
                raise Unavailable(
                    "The usage store is not reachable or refused a statement.",
                    context={"clickhouse_error": str(error)[:2000]},
                ) from error

        return await asyncio.get_running_loop().run_in_executor(self._threads, mapped)

    async def close(self) -> None:
        """Wait for what runs and close the connections."""
        self._threads.shutdown()
        if self._client is not None:
            self._client.close()
            self._client = None
