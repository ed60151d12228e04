from __future__ import annotations

import re
from pathlib import Path

import pytest

from ironworks.aggregatord.schema import drop_partition, partitions, schema
from ironworks.aggregatord.types import AggregatordSettings
from ironworks.testkit.aggregator import Aggregator
from ironworks.testkit.metering import window

TABLES = {
    "raw_samples": 0,
    "windows": 0,
    "five_minute_rates": 90,
    "hourly_usage": 90,
    "daily_usage": 730,
    "billing_records": 0,
    "gaps": 0,
    "lifecycle_events": 0,
    "quarantine": 0,
    "ledger": 0,
}
"""Days that the engine keeps them by itself; `retention` ends the life of the first two."""
NOWHERE = AggregatordSettings(data_dir=Path("/nowhere"))


def test_each_table_is_kept_as_long_as_the_architecture_says() -> None:
    days: dict[str, int] = {}
    for statement in schema(NOWHERE):
        name = re.search(r"EXISTS (\w+)", statement)
        expiry = re.search(r"INTERVAL (\d+) DAY", statement)
        assert name
        if statement.startswith("ALTER"):
            continue
        days[name[1]] = int(expiry[1]) if expiry else 0
    assert days == TABLES


async def test_the_engine_takes_it_any_number_of_times(made: Aggregator) -> None:
    await made.warehouse.prepare()
    rows = await made.engine.rows(
        "SELECT name, engine, partition_key != '' FROM system.tables"
        " WHERE database = currentDatabase() ORDER BY name"
    )
    assert rows == [[name, "ReplacingMergeTree", 1] for name in sorted(TABLES)]


@pytest.mark.parametrize("setting", ["fsync_after_insert", "ttl_only_drop_parts"])
def test_what_is_inserted_is_on_disk_and_expires_by_whole_parts(setting: str) -> None:
    for statement in schema(NOWHERE):
        assert f"{setting} = 1" in statement or statement.startswith("ALTER")


async def test_the_engine_reads_the_schema_of_a_cluster(made: Aggregator) -> None:
    cluster = NOWHERE.model_copy(update={"clickhouse_cluster": "main"})
    statements = [
        *schema(cluster),
        partitions("raw_samples", "main"),
        drop_partition("raw_samples", 20261123, "main"),
    ]
    for statement in statements:
        [[tree], *_] = await made.engine.rows(f"EXPLAIN AST {statement}")
        assert tree
    made_of = "\n".join(statements)
    for name in TABLES:
        assert f"TABLE IF NOT EXISTS {name}_local ON CLUSTER 'main'" in made_of
        assert f"'/clickhouse/tables/{{shard}}/ironworks/{name}', '{{replica}}'" in made_of
        assert f"Distributed('main', currentDatabase(), '{name}_local'" in made_of


async def test_rows_of_a_vm_are_on_one_shard() -> None:
    cluster = NOWHERE.model_copy(update={"clickhouse_cluster": "main"})
    spread = [one for one in schema(cluster) if "Distributed(" in one]
    assert len(spread) == len(TABLES)
    assert sum("cityHash64(vm_id)" in one for one in spread) == len(TABLES) - 1


@pytest.mark.parametrize("table", ["raw_samples", "windows"])
async def test_a_day_is_a_partition(made: Aggregator, table: str) -> None:
    await made.clock.advance(86_400)
    await made.submit([window(range(5)), window(range(864_000, 864_003))])
    days = [row[0] for row in await made.engine.rows(partitions(table, ""))]
    assert days == ["20250615", "20250616"]
    await made.engine.execute(drop_partition(table, 20250615, ""))
    assert [row[0] for row in await made.engine.rows(partitions(table, ""))] == ["20250616"]


async def test_a_table_of_an_earlier_version_gets_its_new_columns(made: Aggregator) -> None:
    for column in ("first_", "last_", "grown_"):
        await made.engine.execute(f"ALTER TABLE windows DROP COLUMN {column}network_internal_bytes")
    await made.engine.execute("ALTER TABLE raw_samples DROP COLUMN network_internal_bytes")
    await made.warehouse.prepare()
    await made.submit([window(range(600))])
    assert await made.engine.rows("SELECT last_network_internal_bytes FROM windows") == [
        [599 * 300]
    ]
