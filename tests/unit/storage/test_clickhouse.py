"""The real engine, in this process and as a server: what goes in comes out, exactly and once.

One suite for both: a service must not notice which one it has.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ironworks.model.errors import Internal, Unavailable
from ironworks.storage.clickhouse import ChdbEngine, ClickHouseEngine
from ironworks.storage.clickhouse_server import ServerEngine
from ironworks.storage.native import Column
from ironworks.testkit.clickhouse_http import clickhouse_server

MIXED = (
    "name String, small UInt8, count UInt64, delta Int64, sum Int128, maybe Nullable(Int64), "
    "at Int64"
)


@pytest.fixture(params=["chdb", "server"])
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ClickHouseEngine]:
    with ExitStack() as stack:
        made: ClickHouseEngine
        if request.param == "chdb":
            made = ChdbEngine(tmp_path / "usage")
            await made.open()
        else:
            front = stack.enter_context(clickhouse_server(tmp_path / "server"))
            made = ServerEngine(front.url)
        await made.prepare([f"CREATE TABLE mixed ({MIXED}) ENGINE = MergeTree ORDER BY at"])
        yield made
        await made.close()


def mixed(
    names: Sequence[str], numbers: Sequence[int], maybe: Sequence[int | None]
) -> list[Column]:
    """Columns of `mixed` with the same numbers in every width that holds them."""
    rows = len(names)
    return [
        Column(name="name", kind="String", values=names),
        Column(name="small", kind="UInt8", values=np.arange(rows) % 256),
        Column(
            name="count",
            kind="UInt64",
            values=np.array([number % (1 << 64) for number in numbers], dtype=np.uint64),
        ),
        Column(
            name="delta",
            kind="Int64",
            values=np.array([number % (1 << 63) for number in numbers], dtype=np.int64),
        ),
        Column(name="sum", kind="Int128", values=[number << 40 for number in numbers]),
        Column(name="maybe", kind="Nullable(Int64)", values=maybe),
        Column(name="at", kind="Int64", values=np.arange(rows)),
    ]


async def test_every_kind_of_column_comes_back_exact(engine: ClickHouseEngine) -> None:
    names = ["", "a", "ünï\n\t'\\\"", "x" * 300, "\0zero"]
    numbers = [0, 1, (1 << 64) - 1, (1 << 63) + 1, -5]
    maybe = [None, 0, -1, (1 << 63) - 1, -(1 << 63)]
    assert await engine.insert("mixed", mixed(names, numbers, maybe)) == 5
    rows = await engine.rows(
        "SELECT name, small, count, delta, toString(sum), maybe FROM mixed ORDER BY at"
    )
    assert rows == [
        [name, row, number % (1 << 64), number % (1 << 63), str(number << 40), one]
        for row, (name, number, one) in enumerate(zip(names, numbers, maybe, strict=True))
    ]


async def test_a_large_block_is_one_insert(engine: ClickHouseEngine) -> None:
    count = 60_000
    columns = mixed(["vm_1"] * count, range(count), [None] * count)
    assert await engine.insert("mixed", columns) == count
    answer = await engine.rows("SELECT count(), sum(delta), uniqExact(name) FROM mixed")
    assert answer == [[count, count * (count - 1) // 2, 1]]
    parts = "SELECT count() FROM system.parts WHERE table = 'mixed' AND active"
    assert await engine.rows(parts) == [[1]]


async def test_no_rows_are_no_insert(engine: ClickHouseEngine) -> None:
    assert await engine.insert("mixed", mixed([], [], [])) == 0
    assert await engine.insert("mixed", []) == 0


@pytest.mark.parametrize(
    "value",
    ["plain", "o'brien", "' OR 1 = 1 --", "\\", "\\'", "tab\tline\n", "{name:String}", "ü", ""],
)
async def test_a_parameter_cannot_break_out_of_its_query(
    engine: ClickHouseEngine, value: str
) -> None:
    await engine.insert("mixed", mixed([value, "other"], [1, 2], [None, None]))
    query = "SELECT name FROM mixed WHERE name = {name:String}"
    assert await engine.rows(query, {"name": value}) == [[value]]
    query = "SELECT name FROM mixed WHERE name IN {names:Array(String)}"
    assert await engine.rows(query, {"names": [value, "absent"]}) == [[value]]


async def test_numbers_are_parameters_too(engine: ClickHouseEngine) -> None:
    await engine.insert("mixed", mixed(["a", "b"], [1, 2], [None, None]))
    query = "SELECT name FROM mixed WHERE at >= {at:Int64}"
    assert await engine.rows(query, {"at": 1}) == [["b"]]


@pytest.mark.parametrize("name", ["mixed; DROP TABLE mixed", "a b", "", "1a", "mixed\n"])
async def test_names_of_tables_and_columns_are_names(engine: ClickHouseEngine, name: str) -> None:
    column = Column(name="name", kind="String", values=["a"])
    with pytest.raises(Internal, match="not the name of"):
        await engine.insert(name, [column])
    with pytest.raises(Internal, match="not the name of"):
        await engine.insert("mixed", [Column(name=name, kind="String", values=["a"])])


async def test_a_block_that_does_not_fit_its_table_leaves_nothing(engine: ClickHouseEngine) -> None:
    with pytest.raises(Unavailable):
        await engine.insert("absent", [Column(name="name", kind="String", values=["a"])])
    with pytest.raises(Unavailable):
        await engine.insert("mixed", [Column(name="nope", kind="String", values=["a"])])
    assert await engine.rows("SELECT count() FROM mixed") == [[0]]
    assert await engine.insert("mixed", mixed(["a"], [1], [None])) == 1


async def test_what_the_engine_said_is_for_the_log_only(engine: ClickHouseEngine) -> None:
    with pytest.raises(Unavailable) as caught:
        await engine.rows("SELECT secret_column FROM mixed")
    assert "secret_column" not in str(caught.value)
    assert "secret_column" in str(caught.value.context)


async def test_statements_of_many_tasks_take_turns(engine: ClickHouseEngine) -> None:
    async def one(number: int) -> list[list[Any]]:
        await engine.insert("mixed", mixed([f"n{number}"], [number], [None]))
        return await engine.rows(
            "SELECT toInt64(sum) FROM mixed WHERE name = {name:String}", {"name": f"n{number}"}
        )

    answers = await asyncio.gather(*(one(number) for number in range(10)))
    assert answers == [[[number << 40]] for number in range(10)]


async def test_what_was_inserted_survives_a_restart(tmp_path: Path) -> None:
    first = ChdbEngine(tmp_path / "kept")
    await first.open()
    await first.execute(f"CREATE TABLE mixed ({MIXED}) ENGINE = MergeTree ORDER BY at")
    await first.insert("mixed", mixed(["kept"], [1], [None]))
    await first.close()
    second = ChdbEngine(tmp_path / "kept")
    await second.open()
    assert await second.rows("SELECT name FROM mixed") == [["kept"]]
    await second.close()


async def test_memory_goes_back_only_while_nothing_runs(tmp_path: Path) -> None:
    engine = ChdbEngine(tmp_path / "resting")
    await engine.open()
    await engine.rows("SELECT 1")
    assert not await engine.rest()
    assert await engine.rest()
    assert await engine.rows("SELECT 2") == [[2]]
    assert not await engine.rest()
    await engine.close()


async def test_a_statement_may_have_parameters_and_answer_nothing(
    engine: ClickHouseEngine,
) -> None:
    await engine.insert("mixed", mixed(["a", "b"], [1, 2], [None, None]))
    await engine.execute(
        "INSERT INTO mixed (name, at) SELECT concat(name, {more:String}), at FROM mixed"
        " WHERE name IN {names:Array(String)}",
        {"more": "'); --", "names": ["a"]},
    )
    assert await engine.rows("SELECT name FROM mixed ORDER BY name") == [
        ["a"],
        ["a'); --"],
        ["b"],
    ]


async def test_what_is_prepared_is_there(engine: ClickHouseEngine) -> None:
    table = "CREATE TABLE IF NOT EXISTS more (a Int64) ENGINE = MergeTree ORDER BY a"
    await engine.prepare([table, table])
    assert await engine.rows("SELECT count() FROM more") == [[0]]
