"""The real client against the real engine behind HTTP; `test_clickhouse` is its conformance."""

from __future__ import annotations

from pathlib import Path

import pytest

from ironworks.model.errors import InvalidRequest, Unavailable
from ironworks.storage.clickhouse_server import ServerEngine, check_url
from ironworks.testkit.clickhouse_http import clickhouse_server

TABLE = "CREATE TABLE IF NOT EXISTS pets (name String) ENGINE = MergeTree ORDER BY name"


async def test_a_server_that_is_down_is_unavailable_and_comes_back(tmp_path: Path) -> None:
    with clickhouse_server(tmp_path) as front:
        front.down = True
        engine = ServerEngine(front.url)
        await engine.prepare([TABLE])
        with pytest.raises(Unavailable):
            await engine.rows("SELECT count() FROM pets")
        front.down = False
        assert await engine.rows("SELECT count() FROM pets") == [[0]], "it was prepared first"
        front.down = True
        with pytest.raises(Unavailable):
            await engine.execute("INSERT INTO pets VALUES ('Rex')")
        front.down = False
        assert await engine.rows("SELECT count() FROM pets") == [[0]]
        await engine.close()


async def test_nobody_listens(tmp_path: Path) -> None:
    with clickhouse_server(tmp_path) as front:
        url = front.url
    engine = ServerEngine(url)
    with pytest.raises(Unavailable, match="not reachable"):
        await engine.rows("SELECT 1")
    await engine.close()


async def test_a_restart_of_the_server_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    for expected in (1, 2):
        with clickhouse_server(tmp_path) as front:
            engine = ServerEngine(front.url)
            await engine.prepare([TABLE])
            await engine.execute("INSERT INTO pets VALUES ('Rex')")
            assert await engine.rows("SELECT count() FROM pets") == [[expected]]
            await engine.close()


@pytest.mark.parametrize(
    "url", ["", "localhost:8123", "ftp://host", "http://", "http://host:99999", "http://host:x"]
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match="URL of ClickHouse"):
        check_url(url)
